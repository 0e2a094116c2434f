"""What fitting must know of columns, in forms that add up: of rows, of shards, of all.

Shapes: N rows, V values of a column.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from worker.arrays import AnyArray, Floats, Integers
from worker.values import Label

MEDIAN_BITS: Final = 12
"""Binary digits after the first that values are rounded to for their median: to 0.013 %, whole numbers up to 8,192 exactly."""


@dataclass(frozen=True)
class Statistics:
    """Of numbers, in float64, one entry a value; NaN counts as missing.

    Attributes:
        rows: rows that were looked at.
        count_V: of them, those that have a value.
        mean_V: mean of those.
        squares_V: sum of squared deviations from that mean.
        low_V: smallest value; infinite where there is none.
        high_V: largest value; minus infinity where there is none.
        spread: rounded values, for their median; None where it was not asked for.
    """

    rows: int
    count_V: Integers
    mean_V: Floats
    squares_V: Floats
    low_V: Floats
    high_V: Floats
    spread: "tuple[Spread, ...] | None" = None

    @classmethod
    def of(cls, values_NV: AnyArray, *, median: bool = False) -> Self:
        """Return the statistics of some rows, one at least."""
        numbers_NV = values_NV.astype(np.float64, copy=False)
        present_NV = ~np.isnan(numbers_NV)
        whole = bool(present_NV.all())
        where = True if whole else present_NV
        count_V = present_NV.sum(axis=0)
        with np.errstate(over="ignore", invalid="ignore"):  # which whoever scales by them will see
            mean_V = np.add.reduce(numbers_NV, axis=0, where=where) / np.maximum(count_V, 1)
            deviations_NV = numbers_NV - mean_V
            np.square(deviations_NV, out=deviations_NV)
            squares_V = np.add.reduce(deviations_NV, axis=0, where=where)
        return cls(
            len(numbers_NV),
            count_V,
            mean_V,
            squares_V,
            numbers_NV.min(axis=0, initial=np.inf, where=where),
            numbers_NV.max(axis=0, initial=-np.inf, where=where),
            tuple(Spread.of(column[here]) for column, here in zip(numbers_NV.T, present_NV.T, strict=True)) if median else None,
        )

    def __add__(self, other: Self) -> "Statistics":
        """Return the statistics of both sets of rows (Chan, Golub and LeVeque, 1979, eq. 2.1)."""
        count_V = self.count_V + other.count_V
        share_V = other.count_V / np.maximum(count_V, 1)
        with np.errstate(over="ignore", invalid="ignore"):
            shift_V = other.mean_V - self.mean_V
            mean_V = self.mean_V + shift_V * share_V
            squares_V = self.squares_V + other.squares_V + np.square(shift_V) * (self.count_V * share_V)
        return Statistics(
            self.rows + other.rows,
            count_V,
            mean_V,
            squares_V,
            np.minimum(self.low_V, other.low_V),
            np.maximum(self.high_V, other.high_V),
            None
            if self.spread is None or other.spread is None
            else tuple(left + right for left, right in zip(self.spread, other.spread, strict=True)),
        )


@dataclass(frozen=True)
class Spread:
    """How often each number occurs, rounded to `MEDIAN_BITS`: sorted, each once. Adding up is exact, in whatever order."""

    numbers: Floats
    counts: Integers

    @classmethod
    def of(cls, values_N: Floats) -> Self:
        """Count finite values."""
        dropped = 52 - MEDIAN_BITS
        # Rounding the bits of a float64 rounds the number: a carry into the exponent is the next power of 2.
        bits_N = values_N.copy().view(np.int64)
        rounded_N = ((bits_N + (1 << (dropped - 1))) >> dropped << dropped).view(np.float64)
        return cls(*np.unique(rounded_N, return_counts=True))

    def __add__(self, other: Self) -> "Spread":
        """Return the counts of both."""
        numbers, places = np.unique(np.concatenate([self.numbers, other.numbers]), return_inverse=True)
        counts = np.zeros(len(numbers), np.int64)
        np.add.at(counts, places, np.concatenate([self.counts, other.counts]))
        return Spread(numbers, counts)

    @property
    def median(self) -> float:
        """The middle value, or the mean of the two in the middle. There must be one."""
        ends = np.cumsum(self.counts)
        left, right = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
        return float((self.numbers[left] + self.numbers[right]) / 2)


@dataclass(frozen=True)
class Counts:
    """How often each label or category occurs, and how many rows have none."""

    of: dict[Label, int]
    missing: int = 0

    def __add__(self, other: Self) -> "Counts":
        """Return the counts of both sets of rows."""
        both = dict(self.of)
        for label, count in other.of.items():
            both[label] = both.get(label, 0) + count
        return Counts(both, self.missing + other.missing)

    @property
    def rows(self) -> int:
        """Rows that were looked at."""
        return self.missing + sum(self.of.values())

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels, sorted."""
        return tuple(sorted(self.of))

    def most_frequent(self, most: int) -> tuple[Label, ...]:
        """Return so many labels at most, sorted: the most frequent ones, and of equally frequent ones the first in order."""
        ranked: Sequence[Label] = sorted(self.labels, key=lambda label: -self.of[label])  # a stable sort
        return tuple(sorted(ranked[:most]))
