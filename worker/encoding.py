"""Rows of a table as arrays: numbers out of columns, features scaled, labels as classes or values.

Shapes: N rows, F inputs (flattened features), O outputs.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.arrays import AnyArray, Floats, Integers
from worker.data import Column, Columns, Scale
from worker.errors import DataError, require
from worker.model import ModelSpec, Task

BLOCK_ROWS: Final = 256
"""Rows converted and scaled at once."""

Label = int | str | bool
Where = Callable[[int], str]
"""Names the file and row of a row of the table at hand, for errors."""


@dataclass(frozen=True)
class Statistics:
    """What scaling needs to know of some rows, in float64, one entry a feature.

    Attributes:
        rows: rows that were looked at.
        mean_F: their mean.
        squares_F: sum of squared deviations from that mean.
        low_F: smallest value.
        high_F: largest value.
    """

    rows: int
    mean_F: Floats
    squares_F: Floats
    low_F: Floats
    high_F: Floats

    @classmethod
    def of(cls, values_NF: Floats) -> Self:
        """Return the statistics of a shard's rows."""
        mean_F = values_NF.mean(axis=0, dtype=np.float64)
        squares_F = np.square(values_NF - mean_F).sum(axis=0)
        return cls(len(values_NF), mean_F, squares_F, values_NF.min(axis=0), values_NF.max(axis=0))

    def __add__(self, other: Self) -> "Statistics":
        """Return the statistics of both sets of rows (Chan, Golub and LeVeque, 1979, eq. 2.1)."""
        rows = self.rows + other.rows
        shift_F = other.mean_F - self.mean_F
        return Statistics(
            rows,
            self.mean_F + shift_F * (other.rows / rows),
            self.squares_F + other.squares_F + np.square(shift_F) * (self.rows * other.rows / rows),
            np.minimum(self.low_F, other.low_F),
            np.maximum(self.high_F, other.high_F),
        )


@dataclass(frozen=True)
class Scan:
    """What the encoding must know of the training rows of some shards.

    Attributes:
        statistics: None where no scaling was asked for.
        classes: labels that occur, sorted; None for regressions.
    """

    statistics: Statistics | None
    classes: tuple[Label, ...] | None

    def __add__(self, other: Self) -> "Scan":
        """Return what is known of both sets of rows."""
        return Scan(
            None if self.statistics is None or other.statistics is None else self.statistics + other.statistics,
            None if self.classes is None or other.classes is None else merge_classes((self.classes, other.classes)),
        )


def merge_classes(several: Iterable[tuple[Label, ...]]) -> tuple[Label, ...]:
    """Return the labels of all, each once, sorted."""
    return tuple(sorted(set().union(*several)))


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a row of a table becomes inputs and targets. Fitted once, kept with the model.

    Attributes:
        columns: where the values come from.
        shift: subtracted from each feature; None where nothing is scaled.
        scale: then divides each feature.
        task: what the label means.
        classes: labels in the order of their class numbers; None for regressions.
        within_unit: whether targets must lie in 0..1, as binary cross-entropy needs.
    """

    columns: Columns
    shift: tuple[float, ...] | None
    scale: tuple[float, ...] | None
    task: Task
    classes: tuple[Label, ...] | None
    within_unit: bool = False

    @classmethod
    def fit(cls, columns: Columns, scale: Scale, model: ModelSpec, scan: Scan) -> Self:
        """Return the encoding for training rows of which `scan` tells.

        A feature that never changes is shifted and not scaled. Raises JobError where the classes don't fit the task.
        """
        shift: tuple[float, ...] | None = None
        divisor: tuple[float, ...] | None = None
        if scan.statistics is not None:
            known = scan.statistics
            if scale == "standard":
                shift_F, divisor_F = known.mean_F, np.sqrt(known.squares_F / known.rows)
            else:
                shift_F, divisor_F = known.low_F, known.high_F - known.low_F
            shift = tuple(shift_F.tolist())
            # By the range and not by the divisor: the deviation of a constant may be rounding noise.
            divisor = tuple(np.where(known.high_F > known.low_F, divisor_F, 1.0).tolist())
        _check_classes(scan.classes, columns, model)
        return cls(
            columns=columns,
            shift=shift,
            scale=divisor,
            task=model.task,
            classes=scan.classes,
            within_unit=model.task == "regression" and model.loss_name == "binary_cross_entropy",
        )

    @property
    def outputs(self) -> int:
        """Outputs of a network for this encoding, O."""
        if self.task == "regression":
            return len(self.columns.label_names)
        return 1 if self.task == "binary" else len(self.classes or ())

    def features(self, table: pa.Table, where: Where, dtype: str) -> Floats:
        """Return the scaled features (N, F). Raises DataError for nulls and values that are not finite."""
        if self.shift is None or self.scale is None:
            return numbers(table, self.columns.features, where, dtype)
        return numbers(table, self.columns.features, where, dtype, (np.array(self.shift), np.array(self.scale)))

    def class_numbers(self, table: pa.Table, where: Where) -> Integers:
        """Return the class number of each row's label (N,). Raises DataError for nulls and unknown classes."""
        assert self.classes is not None
        column = self.columns.labels[0]
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
        values_NO = numbers(table, self.columns.labels, where, dtype)
        if self.within_unit and ((values_NO < 0) | (values_NO > 1)).any():
            row, output = np.argwhere((values_NO < 0) | (values_NO > 1))[0]
            raise DataError(
                f"{where(int(row))}, column '{self.columns.label_names[output]}': {values_NO[row, output]} lies outside "
                "0 to 1, which binary_cross_entropy needs; scale the column or use another loss"
            )
        return values_NO


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


def scan_rows(table: pa.Table, columns: Columns, scale: Scale, model: ModelSpec, where: Where) -> Scan:
    """Return what the encoding must know of these training rows. Raises DataError as `Encoding.features` does."""
    statistics = None
    if scale != "none":
        statistics = Statistics.of(numbers(table, columns.features, where, "float64"))
    classes: tuple[Label, ...] | None = None
    if model.task != "regression":
        classes = tuple(sorted(pc.unique(label_values(table, columns.labels[0], where)).to_pylist()))
    return Scan(statistics, classes)


def scan_sum(scans: Iterable[Scan]) -> Scan:
    """Return what is known of all shards, added in the order given."""
    return reduce(Scan.__add__, scans)


def numbers(
    table: pa.Table,
    columns: tuple[Column, ...],
    where: Where,
    dtype: str,
    scaling: tuple[Floats, Floats] | None = None,
) -> Floats:
    """Return the columns' values side by side (N, F), lists flattened.

    Args:
        table: N rows.
        columns: which columns, in order.
        where: names a row for an error.
        dtype: of the result.
        scaling: what to subtract from each value and then to divide by, (F,) each, in float64.

    Raises:
        DataError: a value is null, or not a finite number in `dtype`.
    """
    parts = [_column_numbers(table, column, where) for column in columns]
    values_NF = np.empty((table.num_rows, sum(part.shape[1] for part in parts)), dtype)
    scratch_BF = np.empty((min(BLOCK_ROWS, len(values_NF)), values_NF.shape[1])) if scaling is not None else None
    # A block at a time, so that it stays in the cache from the first pass over it to the last.
    for first in range(0, len(values_NF), BLOCK_ROWS):
        block_BF = values_NF[first : first + BLOCK_ROWS]
        raw_BF = block_BF if scratch_BF is None else scratch_BF[: len(block_BF)]
        with np.errstate(over="ignore", invalid="ignore"):
            np.concatenate([part[first : first + BLOCK_ROWS] for part in parts], axis=1, out=raw_BF, casting="same_kind")
            if scaling is not None:
                np.subtract(raw_BF, scaling[0], out=raw_BF)
                np.divide(raw_BF, scaling[1], out=block_BF, casting="same_kind")
        if not np.isfinite(block_BF).all():
            row, place = (int(index) for index in np.argwhere(~np.isfinite(block_BF))[0])
            raise _not_finite(table, columns, where, first + row, place, dtype)
    return values_NF


def _not_finite(table: pa.Table, columns: tuple[Column, ...], where: Where, row: int, place: int, dtype: str) -> DataError:
    column, entry = [(column, entry) for column in columns for entry in range(column.width or 1)][place]
    value = table.column(column.name)[row].as_py()
    shown = value if column.width is None else value[entry]
    return DataError(
        f"{where(row)}, column '{column.names[entry]}': {shown} is not a finite {dtype} number; mend or leave out the row"
    )


def _column_numbers(table: pa.Table, column: Column, where: Where) -> AnyArray:
    values = plain_values(table, column.name)
    _refuse_nulls(values, column.name, where)
    if column.width is not None:
        entries = values.flatten()
        if entries.null_count:
            _refuse_nulls(entries, column.name, lambda entry: where(entry // (column.width or 1)))
        values = entries
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    elif pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    array: AnyArray = values.to_numpy(zero_copy_only=False)
    return array.reshape(len(table), column.width or 1)


def label_values(table: pa.Table, column: Column, where: Where) -> pa.Array:
    """Return class labels as one array of int64, bool or string. Raises DataError for a null."""
    values = plain_values(table, column.name)
    _refuse_nulls(values, column.name, where)
    if column.kind == "text":
        return values.cast(pa.string())
    labels = values.cast(pa.bool_() if column.kind == "boolean" else pa.int64(), safe=False)
    same = pc.equal(labels.cast(values.type, safe=False), values)
    if not pc.all(same).as_py():
        row = first_true(pc.invert(same))
        accepted = "true and false" if column.kind == "boolean" else "64-bit integers"
        raise DataError(f"{where(row)}, column '{column.name}': {values[row].as_py()} is no class label; accepted are {accepted}")
    return labels


def plain_values(table: pa.Table, name: str) -> pa.Array:
    """Return a column in one piece, and a dictionary's entries in place of their numbers."""
    values = table.column(name).combine_chunks()
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _refuse_nulls(values: pa.Array, name: str, where: Where) -> None:
    if values.null_count:
        raise DataError(
            f"{where(first_true(values.is_null()))}, column '{name}' has no value (null); "
            "every label and feature needs one: fill it in or leave out the row"
        )


def first_true(flags: pa.Array) -> int:
    """Return the place of the first true entry."""
    return int(np.argmax(flags.to_numpy(zero_copy_only=False)))
