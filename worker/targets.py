"""What rows are to be taught, and how much each of them weighs.

Shapes: N rows, O outputs.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.arrays import AnyArray, Floats
from worker.columns import Column, Columns, Numbers, value_names
from worker.errors import DataError, require
from worker.inputs import scaling
from worker.model import ModelSpec, Task
from worker.scan import Scan
from worker.statistics import Counts
from worker.values import Label, Where, first_true, label_values, not_finite, read_numbers, read_weights

Scaling = tuple[tuple[float, ...], tuple[float, ...]]
"""What is subtracted from each value, and what then divides it."""


@dataclass(frozen=True, kw_only=True)
class Targets:
    """How the label and the weight of a row become targets. Fitted once.

    Attributes:
        labels: where targets come from.
        task: what they mean.
        classes: labels in the order of their class numbers; None for regressions.
        within_unit: whether targets must lie in 0..1, as binary cross-entropy needs.
        scaling: of a regression's targets; None where they are as in the table.
        weight: the column of the rows' weights; None where there is none.
        class_weights: by class number, which multiply them; None where classes weigh alike.
        unlabelled: whether rows may lack a label; they weigh nothing.
    """

    labels: tuple[Column, ...]
    task: Task
    classes: tuple[Label, ...] | None
    within_unit: bool = False
    scaling: Scaling | None = None
    weight: Column | None = None
    class_weights: tuple[float, ...] | None = None
    unlabelled: bool = False

    def __post_init__(self) -> None:
        if any(len(entries) != self.outputs for entries in self.scaling or ()):
            raise ValueError(f"scaling is not for {self.outputs} outputs")
        if self.class_weights is not None and len(self.class_weights) != len(self.classes or ()):
            raise ValueError(f"class_weights are not for {len(self.classes or ())} classes")

    @classmethod
    def fit(cls, columns: Columns, model: ModelSpec, scan: Scan) -> Self:
        """Return the targets for training rows of which `scan` tells. Raises JobError where they don't fit the job."""
        classes = None if scan.classes is None else scan.classes.labels
        _check_classes(classes, columns, model)
        for column, known in zip(columns.labels, scan.targets, strict=not classes):
            require(bool(known.count_V.all()), "data.label", f"column '{column.name}' has no value in any training row")
        some = not scan.targets or scan.unlabelled < scan.targets[0].rows
        require(some, "data.label", "no training row has a value in all columns; choose fewer, or fill them in")
        weighs = scan.weights is None or bool(scan.weights.high_V.astype(model.dtype)[0] > 0)
        require(weighs, "data.weight", f"no training row that has a label weighs more than 0 in {model.dtype}")
        known_columns = zip(columns.labels, scan.targets, strict=not classes) if columns.scale_target else ()
        parts = [scaling("standard", known, "data.label", column) for column, known in known_columns]
        shift = tuple(entry for column, _ in parts for entry in column)
        scale = tuple(entry for _, column in parts for entry in column)
        return cls(
            labels=columns.labels,
            task=model.task,
            classes=classes,
            within_unit=model.task == "regression" and model.loss_name == "binary_cross_entropy",
            scaling=(shift, scale) if parts else None,
            weight=columns.weight,
            class_weights=_balanced(scan.classes) if columns.balanced and scan.classes is not None else None,
            unlabelled=columns.unlabelled,
        )

    @property
    def names(self) -> list[str]:
        """A name for each value of the label."""
        return value_names(self.labels)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that are needed."""
        return self.labels if self.weight is None else (*self.labels, self.weight)

    @property
    def outputs(self) -> int:
        """Outputs of a network for these targets, O."""
        if self.task == "regression":
            return len(self.names)
        return 1 if self.task == "binary" else len(self.classes or ())

    @property
    def weighted(self) -> bool:
        """Whether rows have weights."""
        return self.weight is not None or self.class_weights is not None or self.unlabelled

    @property
    def units(self) -> tuple[float, ...] | None:
        """What 1 of each output is in the targets' own units; None where outputs are in these."""
        return None if self.scaling is None else self.scaling[1]

    def room(self, rows: int, dtype: str) -> AnyArray:
        """Return an array for the targets of so many rows, to be filled: class numbers (N,) or values (N, O).

        Where rows have weights, it is structured: such a `target`, and the `weight`.
        """
        kind, shape = (np.dtype(np.intp), ()) if self.classes is not None else (np.dtype(dtype), (self.outputs,))
        if self.weighted:
            return np.empty(rows, [("target", kind, shape), ("weight", np.dtype(dtype))])
        return np.empty((rows, *shape), kind)

    def of(self, table: pa.Table, where: Where, dtype: str) -> AnyArray:
        """Return the targets of a table's rows, as `room` has them.

        Raises:
            DataError: a label is missing where it is needed, or none that can be learnt; a weight is none.
        """
        targets, missing_N = self._values(table, where, dtype) if self.classes is None else self._numbers(table, where)
        if not self.weighted:
            return targets
        both_N = self.room(table.num_rows, dtype)
        both_N["target"] = targets
        weights_N = np.ones(table.num_rows) if self.weight is None else read_weights(table, self.weight, where)[:, 0]
        if self.class_weights is not None:
            weights_N = weights_N * np.array(self.class_weights)[targets]
        both_N["weight"] = np.where(missing_N, 0.0, weights_N)
        return both_N

    def _numbers(self, table: pa.Table, where: Where) -> tuple[AnyArray, AnyArray]:
        """Return class numbers (N,), and whether there is none, with 0 as its number (N,)."""
        assert self.classes is not None
        column = self.labels[0]
        values = label_values(table, column, where, gaps=self.unlabelled)
        found = pc.index_in(values, value_set=pa.array(self.classes, values.type))
        if found.null_count > values.null_count:
            row = first_true(pc.and_(found.is_null(), values.is_valid()))
            raise DataError(
                f"{where(row)}, column '{column.name}': class {values[row].as_py()!r} does not occur in the training rows"
            )
        return pc.fill_null(found, 0).to_numpy().astype(np.intp), values.is_null().to_numpy(zero_copy_only=False)

    def _values(self, table: pa.Table, where: Where, dtype: str) -> tuple[AnyArray, AnyArray]:
        """Return a regression's values (N, O), and whether one of a row is missing, with 0 in its place (N,)."""
        parts = [read_numbers(table, Numbers(column), where, gaps=self.unlabelled) for column in self.labels]
        with np.errstate(over="ignore", invalid="ignore"):
            own_NO = np.concatenate(parts, axis=1, dtype=np.float64, casting="same_kind")
            missing_N: AnyArray = np.logical_or.reduce(np.isnan(own_NO) & self.unlabelled, axis=1)
            if self.scaling is not None:
                own_NO = (own_NO - self.scaling[0]) / self.scaling[1]
            own_NO[missing_N] = 0.0
            values_NO = own_NO.astype(dtype)
        if not np.isfinite(values_NO).all():
            row, output = (int(index) for index in np.argwhere(~np.isfinite(values_NO))[0])
            column, entry = [(column, entry) for column in self.labels for entry in range(column.width or 1)][output]
            raise not_finite(table, Numbers(column), where, row, entry, dtype)
        outside_NO = ((values_NO < 0) | (values_NO > 1)) & self.within_unit
        if outside_NO.any():
            row, output = np.argwhere(outside_NO)[0]
            raise DataError(
                f"{where(int(row))}, column '{self.names[output]}': {values_NO[row, output]} lies outside "
                "0 to 1, which binary_cross_entropy needs; scale the column or use another loss"
            )
        return values_NO, missing_N

    def own_units(self, a_BO: Floats) -> Floats:
        """Return a regression's outputs in the units of its targets.

        In float64 where they were scaled: next to what was subtracted, the outputs may be far below a float32's last digit.
        """
        if self.scaling is None:
            return a_BO
        own_BO: Floats = a_BO * np.array(self.scaling[1]) + np.array(self.scaling[0])
        return own_BO


def _balanced(counts: Counts) -> tuple[float, ...]:
    """Return weights by which all classes together weigh the same, and a row 1 on average (King and Zeng, 2001)."""
    rows = sum(counts.of.values())
    return tuple(rows / (len(counts.of) * counts.of[label]) for label in counts.labels)


def _check_classes(classes: tuple[Label, ...] | None, columns: Columns, model: ModelSpec) -> None:
    if classes is None:
        return
    name = columns.labels[0].name
    shown = ", ".join(map(repr, classes[:5])) + (", …" if len(classes) > 5 else "")
    require(
        len(classes) > 1,
        "data.label",
        f"column '{name}' has {f'only one class in the training rows ({shown})' if classes else 'no value in any training row'}; "
        "at least 2 are needed",
    )
    require(
        model.task != "binary" or len(classes) == 2,
        "model.task",
        f"binary takes a label of 2 classes, but column '{name}' has {len(classes)} ({shown}); use classification",
    )
