"""Rows of a table as arrays: inputs out of features, labels as classes or values. Fitted once, kept with the model.

Shapes: N rows, B rows of a block, F inputs, O outputs.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.arrays import AnyArray, Floats, Integers
from worker.columns import Column, Columns, Numbers
from worker.errors import DataError, require
from worker.inputs import CategoryInputs, Inputs, NumberInputs, Sliceable, scaling
from worker.model import ModelSpec, Task
from worker.scan import Scan, not_finite
from worker.statistics import Counts
from worker.values import Label, Where, first_true, label_values, read_numbers

BLOCK_ROWS: Final = 256
"""Rows converted and scaled at once."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a row of a table becomes inputs and targets.

    Attributes:
        inputs: what each column to learn from becomes.
        labels: where the targets come from.
        task: what the label means.
        classes: labels in the order of their class numbers; None for regressions.
        within_unit: whether targets must lie in 0..1, as binary cross-entropy needs.
        target_scaling: what is subtracted from each target, and what then divides it; None where they are as in the table.
    """

    inputs: tuple[Inputs, ...]
    labels: tuple[Column, ...]
    task: Task
    classes: tuple[Label, ...] | None
    within_unit: bool = False
    target_scaling: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        if any(len(entries) != self.outputs for entries in self.target_scaling or ()):
            raise ValueError(f"target_scaling is not for {self.outputs} outputs")

    @classmethod
    def fit(cls, columns: Columns, model: ModelSpec, scan: Scan) -> Self:
        """Return the encoding for training rows of which `scan` tells. Raises JobError where they don't fit the job."""
        inputs: list[Inputs] = []
        for feature, known in zip(columns.features, scan.features, strict=True):
            inputs.append(CategoryInputs.fit(feature, known) if isinstance(known, Counts) else NumberInputs.fit(feature, known))
        classes = None if scan.classes is None else scan.classes.labels
        _check_classes(classes, columns, model)
        targets = [scaling("standard", known) for known in scan.targets] if columns.scale_target else []
        shift = tuple(entry for column, _ in targets for entry in column)
        scale = tuple(entry for _, column in targets for entry in column)
        return cls(
            inputs=tuple(inputs),
            labels=columns.labels,
            task=model.task,
            classes=classes,
            within_unit=model.task == "regression" and model.loss_name == "binary_cross_entropy",
            target_scaling=(shift, scale) if targets else None,
        )

    @property
    def feature_columns(self) -> tuple[Column, ...]:
        """The columns to learn from."""
        return tuple(given.column for given in self.inputs)

    @property
    def categories(self) -> tuple[Column, ...]:
        """The columns whose values are categories or classes, not numbers."""
        classes = self.labels if self.classes is not None else ()
        return (*(given.column for given in self.inputs if isinstance(given, CategoryInputs)), *classes)

    @property
    def input_names(self) -> list[str]:
        """A name for each of the F inputs."""
        return [name for given in self.inputs for name in given.names]

    @property
    def label_names(self) -> list[str]:
        """A name for each value of the label."""
        return [name for column in self.labels for name in column.names]

    @property
    def outputs(self) -> int:
        """Outputs of a network for this encoding, O."""
        if self.task == "regression":
            return len(self.label_names)
        return 1 if self.task == "binary" else len(self.classes or ())

    def features(self, table: pa.Table, where: Where, dtype: str) -> Floats:
        """Return the inputs (N, F).

        Raises:
            DataError: a value is missing where there must be one, or not a finite number in `dtype`.
        """
        parts = [part for given in self.inputs for part in given.parts(table, where)]
        x_NF = np.empty((table.num_rows, sum(part.shape[1] for part in parts)), dtype)
        treatment = _Treatment(self.inputs)
        # A block at a time, so that it stays in the cache from the first pass over it to the last.
        for first in range(0, len(x_NF), BLOCK_ROWS):
            block_BF = x_NF[first : first + BLOCK_ROWS]
            treatment.apply(parts, slice(first, first + len(block_BF)), block_BF)
            if not np.isfinite(block_BF).all():
                row, place = (int(index) for index in np.argwhere(~np.isfinite(block_BF))[0])
                raise self._not_finite(table, where, first + row, place, dtype)
        return x_NF

    def _not_finite(self, table: pa.Table, where: Where, row: int, place: int, dtype: str) -> DataError:
        for given in self.inputs:
            width = len(given.names)
            if place < width:
                assert isinstance(given, NumberInputs), "categories are 0 or 1"
                return not_finite(table, given.numbers, where, row, place, dtype)
            place -= width
        raise AssertionError("the place lies beyond the inputs")

    def class_numbers(self, table: pa.Table, where: Where) -> Integers:
        """Return the class number of each row's label (N,). Raises DataError for nulls and unknown classes."""
        assert self.classes is not None
        column = self.labels[0]
        values = label_values(table, column, where)
        found = pc.index_in(values, value_set=pa.array(self.classes, values.type))
        if found.null_count:
            row = first_true(found.is_null())
            raise DataError(
                f"{where(row)}, column '{column.name}': class {values[row].as_py()!r} does not occur in the training rows"
            )
        numbers_N: Integers = found.to_numpy().astype(np.intp)
        return numbers_N

    def targets(self, table: pa.Table, where: Where, dtype: str) -> AnyArray:
        """Return what the rows are to be taught: class numbers (N,), or a regression's values (N, O)."""
        return self.values(table, where, dtype) if self.classes is None else self.class_numbers(table, where)

    def values(self, table: pa.Table, where: Where, dtype: str) -> Floats:
        """Return a regression's targets (N, O). Raises DataError for nulls and values that are not accepted."""
        parts = [read_numbers(table, Numbers(column), where, gaps=False) for column in self.labels]
        with np.errstate(over="ignore", invalid="ignore"):
            own_NO = np.concatenate(parts, axis=1, dtype=np.float64, casting="same_kind")
            if self.target_scaling is not None:
                shift, scale = self.target_scaling
                own_NO = (own_NO - shift) / scale
            values_NO = own_NO.astype(dtype)
        if not np.isfinite(values_NO).all():
            row, output = (int(index) for index in np.argwhere(~np.isfinite(values_NO))[0])
            raise self._bad_target(row, output, table, where, dtype)
        if self.within_unit and ((values_NO < 0) | (values_NO > 1)).any():
            row, output = np.argwhere((values_NO < 0) | (values_NO > 1))[0]
            raise DataError(
                f"{where(int(row))}, column '{self.label_names[output]}': {values_NO[row, output]} lies outside "
                "0 to 1, which binary_cross_entropy needs; scale the column or use another loss"
            )
        return values_NO

    @property
    def units(self) -> tuple[float, ...] | None:
        """What 1 of each output is in the targets' own units; None where outputs are in these."""
        return None if self.target_scaling is None else self.target_scaling[1]

    def own_units(self, a_BO: Floats) -> Floats:
        """Return a regression's outputs in the units of its targets."""
        if self.target_scaling is None:
            return a_BO
        shift, scale = self.target_scaling
        own_BO: Floats = (a_BO * np.array(scale) + np.array(shift)).astype(a_BO.dtype)
        return own_BO

    def _bad_target(self, row: int, output: int, table: pa.Table, where: Where, dtype: str) -> DataError:
        column, entry = [(column, entry) for column in self.labels for entry in range(column.width or 1)][output]
        return not_finite(table, Numbers(column), where, row, entry, dtype)


class _Treatment:
    """What is done to the values of all inputs, in float64: filling in, shifting and dividing; maybe nothing."""

    def __init__(self, inputs: tuple[Inputs, ...]) -> None:
        self._fill_F = np.array([entry for given in inputs for entry in given.fills])
        self._shift_F = np.array([entry for given in inputs for entry in given.shifts])
        self._scale_F = np.array([entry for given in inputs for entry in given.scales])
        self._fills = not np.isnan(self._fill_F).all()
        self._scales = bool(self._shift_F.any() or (self._scale_F != 1.0).any())
        self._scratch_BF = np.empty((BLOCK_ROWS if self._fills or self._scales else 0, len(self._fill_F)))

    def apply(self, parts: list[Sliceable], rows: slice, out_BF: Floats) -> None:
        """Write some rows of all parts, treated, side by side."""
        raw_BF = self._scratch_BF[: len(out_BF)] if self._fills or self._scales else out_BF
        with np.errstate(over="ignore", invalid="ignore"):
            np.concatenate([part[rows] for part in parts], axis=1, out=raw_BF, casting="same_kind")
            if self._fills:
                np.copyto(raw_BF, self._fill_F, where=np.isnan(raw_BF))
            if self._scales:
                np.subtract(raw_BF, self._shift_F, out=raw_BF)
                np.divide(raw_BF, self._scale_F, out=out_BF, casting="same_kind")
            elif raw_BF is not out_BF:
                np.copyto(out_BF, raw_BF, casting="same_kind")


def _check_classes(classes: tuple[Label, ...] | None, columns: Columns, model: ModelSpec) -> None:
    if classes is None:
        return
    name = columns.labels[0].name
    shown = ", ".join(map(repr, classes[:5])) + (", …" if len(classes) > 5 else "")
    require(
        len(classes) > 1,
        "data.label",
        f"column '{name}' has only one class in the training rows ({shown}); at least 2 are needed",
    )
    require(
        model.task != "binary" or len(classes) == 2,
        "model.task",
        f"binary takes a label of 2 classes, but column '{name}' has {len(classes)} ({shown}); use classification",
    )
