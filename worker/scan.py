"""One pass over training rows: all that fitting an encoding must know of them.

Rows are looked at in blocks of a size that depends on the columns alone, so that the sums are the same however they are read.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.arrays import AnyArray
from worker.columns import Column, Columns, Feature, Numbers
from worker.errors import require
from worker.model import ModelSpec
from worker.statistics import Counts, Statistics
from worker.values import Where, label_values, not_finite, read_numbers, read_weights

BLOCK_VALUES: Final = 1 << 21
"""Numbers looked at together."""

MOST_CATEGORIES: Final = 100_000
"""Different values of a column of categories or classes, at most. Who has more sees it in the whole if not in a part."""


@dataclass(frozen=True)
class Scan:
    """What the encoding must know of the training rows of some shards.

    Attributes:
        features: of each column to learn from.
        classes: of the label; None for regressions.
        targets: of each column of a regression's label; else empty.
        weights: of the rows that have a label; None where they have none.
        unlabelled: rows without a label, or without one of its values.
        moments: of each date or time to learn from in parts: as a whole.
    """

    features: tuple[Statistics | Counts, ...]
    classes: Counts | None
    targets: tuple[Statistics, ...] = ()
    weights: Statistics | None = None
    unlabelled: int = 0
    moments: tuple[Statistics, ...] = ()

    def __add__(self, other: Self) -> "Scan":
        """Return what is known of both sets of rows."""
        return Scan(
            tuple(left + right for left, right in zip(self.features, other.features, strict=True)),  # type: ignore[operator]
            None if self.classes is None or other.classes is None else self.classes + other.classes,
            tuple(left + right for left, right in zip(self.targets, other.targets, strict=True)),
            None if self.weights is None or other.weights is None else self.weights + other.weights,
            self.unlabelled + other.unlabelled,
            tuple(left + right for left, right in zip(self.moments, other.moments, strict=True)),
        )


def scan_sum(scans: Iterable[Scan], columns: Columns) -> Scan:
    """Return what all scans tell together, added in the order given. Raises JobError where a column has too many categories."""
    return reduce(lambda left, right: _limited(left + right, columns), scans)


def _limited(scan: Scan, columns: Columns) -> Scan:
    for known, feature in zip(scan.features, columns.features, strict=True):
        if isinstance(known, Counts):
            _require_few(known, "data.features", feature.column)
    if scan.classes is not None:
        _require_few(scan.classes, "data.label", columns.labels[0])
    return scan


def _require_few(counts: Counts, key: str, column: Column) -> None:
    require(
        len(counts.of) <= MOST_CATEGORIES,
        key,
        f"column '{column.name}' has more than {MOST_CATEGORIES:,} different values in the training rows, too many for "
        "categories; leave it out",
    )


def scan_rows(tables: Iterable[pa.Table], columns: Columns, model: ModelSpec, where: Where) -> Scan:
    """Return what the encoding must know of a shard's training rows, one at least.

    Args:
        tables: the rows in order, in pieces of whatever size; beside a piece, only a block's rows are held.
        columns: what a row is made of.
        model: the network.
        where: names a row by its place among all of them.

    Raises:
        DataError: a value can't be used.
        JobError: a column has too many categories.
    """
    width = sum(len(feature.numbers.names) for feature in columns.features if not feature.category)
    return scan_sum(_block_scans(rechunk(tables, max(256, BLOCK_VALUES // max(width, 8))), columns, model, where), columns)


def _block_scans(blocks: Iterable[pa.Table], columns: Columns, model: ModelSpec, where: Where) -> Iterator[Scan]:
    place = 0
    for block in blocks:
        yield _limited(_scan_block(block, columns, model, partial(_from, where, place)), columns)
        place += block.num_rows


def _from(where: Where, place: int, row: int) -> str:
    return where(place + row)


def rechunk(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of so many, the last one of fewer."""
    waiting: list[pa.Table] = []
    for table in tables:
        while table.num_rows:
            lacking = rows - sum(piece.num_rows for piece in waiting)
            waiting.append(table.slice(0, lacking))
            table = table.slice(lacking)
            if waiting[-1].num_rows == lacking:
                yield pa.concat_tables(waiting)
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _scan_block(table: pa.Table, columns: Columns, model: ModelSpec, where: Where) -> Scan:
    features = tuple(
        count_labels(table, feature.column, where, gaps=feature.missing != "error")
        if feature.category
        else _statistics(table, feature, where, model.dtype)
        for feature in columns.features
    )
    classes: Counts | None = None
    targets: list[Statistics] = []
    missing_N = np.zeros(table.num_rows, np.bool_)
    for column in columns.labels:
        if model.task != "regression":
            labels = label_values(table, column, where, gaps=columns.unlabelled)
            classes, missing_N = _counts(labels), labels.is_null().to_numpy(zero_copy_only=False)
        else:
            values_NV = _finite_numbers(table, Numbers(column), where, model.dtype, gaps=columns.unlabelled)
            targets.append(Statistics.of(values_NV))
            missing_N |= np.isnan(values_NV).any(axis=1)
    weights = None
    if columns.weight is not None:
        weights_N1 = read_weights(table, columns.weight, where)
        weights = Statistics.of(np.where(missing_N[:, np.newaxis], np.nan, weights_N1))
    moments = tuple(
        Statistics.of(read_numbers(table, Numbers(feature.column), where, gaps=True))
        for feature in columns.features
        if feature.parts
    )
    return Scan(features, classes, tuple(targets), weights, int(missing_N.sum()), moments)


def _statistics(table: pa.Table, feature: Feature, where: Where, dtype: str) -> Statistics:
    values_NV = _finite_numbers(table, feature.numbers, where, dtype, gaps=feature.missing != "error")
    return Statistics.of(values_NV, median=feature.missing == "median")


def _finite_numbers(table: pa.Table, numbers: Numbers, where: Where, dtype: str, *, gaps: bool) -> AnyArray:
    """Return a column's values as `read_numbers` does. Raises DataError for an infinity, and without `gaps` for NaN."""
    values_NV = read_numbers(table, numbers, where, gaps=gaps)
    bad: Callable[[AnyArray], AnyArray] = np.isinf if gaps else lambda values: ~np.isfinite(values)
    if values_NV.dtype.kind == "f" and bad(values_NV).any():
        row, entry = (int(index) for index in np.argwhere(bad(values_NV))[0])
        raise not_finite(table, numbers, where, row, entry, dtype)
    return values_NV


def count_labels(table: pa.Table, column: Column, where: Where, *, gaps: bool) -> Counts:
    """Return how often each class or category occurs. Raises DataError as `label_values` does."""
    return _counts(label_values(table, column, where, gaps=gaps))


def _counts(labels: pa.Array) -> Counts:
    found = pc.value_counts(labels.drop_null())
    counts = dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))
    return Counts(counts, labels.null_count)
