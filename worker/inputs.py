"""How the columns of a table become inputs of a network: fitted once, applied to any table.

Shapes: N rows, V values of a column, F inputs that it becomes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worker.arrays import AnyArray, Integers
from worker.columns import Column, Feature, Numbers
from worker.data import Scale
from worker.errors import require
from worker.statistics import Counts, Statistics
from worker.values import Label, Where, label_values, read_numbers


class Sliceable(Protocol):
    """Some inputs of N rows (N, F): rows are made when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N, F."""

    def __getitem__(self, rows: slice) -> AnyArray:
        """Return the inputs of some rows."""


@dataclass(frozen=True, kw_only=True)
class NumberInputs:
    """Numbers, missing ones filled in, shifted and divided; then for values that were missing, whether they are.

    Attributes:
        numbers: what is read.
        fill: what a missing value is taken for, one entry a value; None where there must be none.
        indicators: places of the values that have an input which is 1 where they are missing, and 0 elsewhere.
        shift: subtracted from each value.
        scale: then divides it.
    """

    numbers: Numbers
    fill: tuple[float, ...] | None
    indicators: tuple[int, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        values = len(self.numbers.names)
        if any(entries is not None and len(entries) != values for entries in (self.fill, self.shift, self.scale)):
            raise ValueError(f"fill, shift and scale are not for {values} values")
        if not all(0 <= place < values for place in self.indicators):
            raise ValueError(f"indicators are not among {values} values")

    @classmethod
    def fit(cls, feature: Feature, known: Statistics) -> "NumberInputs":
        """Return the inputs for a column of which `known` tells. A value that never changes is shifted and not scaled."""
        names = feature.numbers.names
        empty = [name for name, count in zip(names, known.count_V, strict=True) if not count]
        require(not empty, "data.features", f"column '{next(iter(empty), '')}' has no value in any training row; leave it out")
        fill, (shift, scale) = _fill(feature, known), scaling(feature.scale, known, "data.features", feature.column)
        _require_usable(fill or (), "data.features", feature.column)
        indicators = np.flatnonzero(known.count_V < known.rows).tolist() if feature.missing == "indicator" else ()
        return cls(numbers=feature.numbers, fill=fill, indicators=tuple(indicators), shift=shift, scale=scale)

    @property
    def column(self) -> Column:
        """Where the values come from."""
        return self.numbers.column

    @property
    def names(self) -> list[str]:
        """A name for each input."""
        names = self.numbers.names
        return names + [f"{names[place]}[missing]" for place in self.indicators]

    @property
    def fills(self) -> tuple[float, ...]:
        """What a missing value is taken for, by input: NaN where nothing is filled in."""
        fill = self.fill if self.fill is not None else (np.nan,) * len(self.shift)
        return (*fill, *(np.nan for _ in self.indicators))

    @property
    def shifts(self) -> tuple[float, ...]:
        """What is subtracted, by input."""
        return (*self.shift, *(0.0 for _ in self.indicators))

    @property
    def scales(self) -> tuple[float, ...]:
        """What then divides, by input."""
        return (*self.scale, *(1.0 for _ in self.indicators))

    def parts(self, table: pa.Table, where: Where) -> list[Sliceable]:
        """Return the inputs as they are before anything is filled in or scaled. Raises DataError as `read_numbers` does."""
        values_NV = read_numbers(table, self.numbers, where, gaps=self.fill is not None)
        return [values_NV, np.isnan(values_NV[:, self.indicators])] if self.indicators else [values_NV]


def _fill(feature: Feature, known: Statistics) -> tuple[float, ...] | None:
    match feature.missing:
        case "error":
            return None
        case "constant":
            return (float(feature.fill or 0.0),) * len(known.mean_V)
        case "median":
            assert known.spread is not None, "the scan counts what a median needs"
            return tuple(spread.median for spread in known.spread)
    return tuple(known.mean_V.tolist())


def scaling(scale: Scale, known: Statistics, key: str, column: Column) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what to subtract from each value, and then to divide it by.

    Raises:
        JobError: at `key`, where that can't be told in float64: the column's values are too large or too close together.
    """
    match scale:
        case "standard":
            shift_V, divisor_V = known.mean_V, np.sqrt(known.squares_V / known.count_V)
        case "minmax":
            shift_V, divisor_V = known.low_V, known.high_V - known.low_V
        case "none":
            shift_V, divisor_V = np.zeros_like(known.mean_V), np.ones_like(known.mean_V)
    # By the range and not by the divisor: the deviation of a constant may be rounding noise.
    divisor_V = np.where(known.high_V > known.low_V, divisor_V, 1.0)
    with np.errstate(divide="ignore"):
        _require_usable([*shift_V, *divisor_V, *(1.0 / divisor_V)], key, column)
    return tuple(shift_V.tolist()), tuple(divisor_V.tolist())


def _require_usable(found: Sequence[float], key: str, column: Column) -> None:
    require(
        bool(np.isfinite(found).all()),
        key,
        f"column '{column.name}' has numbers too large, or too close together, for what is to be done with them; mend or leave "
        "out the rows",
    )


@dataclass(frozen=True, kw_only=True)
class CategoryInputs:
    """A column of categories, each with an input that is 1 where it occurs, and 0 elsewhere.

    An input that would have been 0 in all training rows is left out, since nothing could be learnt of it: where no training row
    has a category without an input of its own, or none is missing, such a row has 0 in all of them.

    Attributes:
        column: where they come from.
        categories: that have an input of their own.
        rare: all others that training rows have; where there are any, one input is for them and for unknown ones.
        missing: whether there is one for rows without a value.
        gaps: whether a value may be missing.
        fill: the category that is taken for a missing one; None where it stays missing.
    """

    column: Column
    categories: tuple[Label, ...]
    rare: tuple[Label, ...]
    missing: bool
    gaps: bool
    fill: Label | None = None

    @classmethod
    def fit(cls, feature: Feature, known: Counts) -> "CategoryInputs":
        """Return the inputs for a column of which `known` tells."""
        fill: Label | None = None
        if feature.missing == "constant" and feature.fill is not None:
            fill = feature.fill if isinstance(feature.fill, str) else int(feature.fill)
            fill = bool(fill) if feature.column.kind == "boolean" else fill
            known += Counts({fill: known.missing} if known.missing else {}, -known.missing)
        require(bool(known.of), "data.features", f"column '{feature.column.name}' has no value in any training row; leave it out")
        categories = known.most_frequent(feature.categories)
        own = frozenset(categories)
        return cls(
            column=feature.column,
            categories=categories,
            rare=tuple(label for label in known.labels if label not in own),
            missing=known.missing > 0,
            gaps=feature.missing != "error",
            fill=fill,
        )

    @property
    def names(self) -> list[str]:
        """A name for each input."""
        more = [name for name, there in (("(other)", self.other), ("(missing)", self.missing)) if there]
        return [f"{self.column.name}={value}" for value in (*map(_unmistakable, self.categories), *more)]

    @property
    def other(self) -> bool:
        """Whether there is an input for rare categories."""
        return bool(self.rare)

    @property
    def fills(self) -> tuple[float, ...]:
        """Nothing is filled in by input."""
        return (np.nan,) * self._width

    @property
    def shifts(self) -> tuple[float, ...]:
        """Nothing is subtracted."""
        return (0.0,) * self._width

    @property
    def scales(self) -> tuple[float, ...]:
        """Nothing is divided."""
        return (1.0,) * self._width

    @property
    def _width(self) -> int:
        return len(self.categories) + self.other + self.missing

    def parts(self, table: pa.Table, where: Where) -> list[Sliceable]:
        """Return the inputs, made when they are asked for. Raises DataError as `label_values` does."""
        return [OneHot(self.codes(table, where), self._width)]

    def codes(self, table: pa.Table, where: Where) -> Integers:
        """Return the place of each row's input (N,); -1 where it has none."""
        values = label_values(table, self.column, where, gaps=self.gaps)
        if self.fill is not None:
            values = pc.fill_null(values, self.fill)
        found = pc.index_in(values, value_set=pa.array(self.categories, values.type))
        codes_N: Integers = pc.fill_null(found, len(self.categories) if self.other else -1).to_numpy().astype(np.int64)
        if values.null_count:
            codes_N[values.is_null().to_numpy(zero_copy_only=False)] = self._width - 1 if self.missing else -1
        return codes_N


def _unmistakable(category: Label) -> str:
    """Return a category as it stands in the name of an input: quoted where it could be taken for "(other)" or "(missing)"."""
    return repr(category) if isinstance(category, str) and category.startswith(("(", "'", '"')) else str(category)


@dataclass(frozen=True)
class OneHot:
    """Inputs of which at most one is 1 in a row, by its place."""

    codes_N: Integers
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        """N, F."""
        return len(self.codes_N), self.width

    def __getitem__(self, rows: slice) -> AnyArray:
        """Return the inputs of some rows."""
        ones_BF: AnyArray = self.codes_N[rows, np.newaxis] == np.arange(self.width)
        return ones_BF


Inputs = NumberInputs | CategoryInputs
