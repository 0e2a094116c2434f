"""Columns of a table: their types, and which of them a job's rows are made of."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

from worker.data import Missing, Part, Scale
from worker.dates import part_names
from worker.errors import DataError
from worker.sources import Source

Kind = Literal["number", "integer", "boolean", "text", "date", "timestamp", "time", "duration"]

NUMBERS: Final[frozenset[Kind]] = frozenset({"number", "integer", "boolean"})
"""Kinds that can stand for each other in another dataset."""

ACCEPTED_TYPES: Final = "numbers, booleans, text, dates and times, and fixed-size lists of numbers or booleans"


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        name: as in the file.
        kind: how its values are read.
        width: entries of a fixed-size list; None for a plain value.
        dictionary: whether it comes as a dictionary and the numbers of its entries.
    """

    name: str
    kind: Kind
    width: int | None = None
    dictionary: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the flattened values: `pixels[0]`, `pixels[1]`, … for a list."""
        return [self.name] if self.width is None else [f"{self.name}[{entry}]" for entry in range(self.width)]


def value_names(columns: Iterable[Column]) -> list[str]:
    """Return a name for each value of some columns, lists flattened."""
    return [name for column in columns for name in column.names]


@dataclass(frozen=True)
class Numbers:
    """What is read of a column of numbers, or of dates and times.

    Attributes:
        column: the column.
        parts: of dates and times; none takes the whole as one number.
        cyclical: whether a part that comes round again becomes its sine and cosine.
    """

    column: Column
    parts: tuple[Part, ...] = ()
    cyclical: bool = False

    @property
    def names(self) -> list[str]:
        """A name for each value of a row."""
        return part_names(self.column.name, self.parts, cyclical=self.cyclical) if self.parts else self.column.names


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A column to learn from, and what is to become of it.

    Attributes:
        column: the column.
        category: whether each of its values is a category, with an input of its own; else they are numbers.
        scale: of numbers.
        missing: what to do about missing values.
        fill: what "constant" puts in their place; None makes them a category.
        categories: with an input of their own, at most.
        parts: as `Numbers` has them.
        cyclical: likewise.
    """

    column: Column
    category: bool = False
    scale: Scale = "none"
    missing: Missing = "error"
    fill: float | str | None = None
    categories: int = 0
    parts: tuple[Part, ...] = ()
    cyclical: bool = False

    @property
    def numbers(self) -> Numbers:
        """What is read of it, where its values are numbers."""
        return Numbers(self.column, self.parts, self.cyclical)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a row is made of, in the order of its values.

    Attributes:
        features: to learn from.
        labels: to learn.
        scale_target: whether a regression's targets are standardised.
        weight: of the rows' weights; None where there is none.
        balanced: whether classes weigh alike, however many rows they have.
        unlabelled: whether there may be rows without a label, which weigh nothing.
    """

    features: tuple[Feature, ...]
    labels: tuple[Column, ...]
    scale_target: bool = False
    weight: Column | None = None
    balanced: bool = False
    unlabelled: bool = False

    @property
    def needed(self) -> list[str]:
        """The columns to read, each once."""
        return list(dict.fromkeys(column.name for column in self.all))

    @property
    def all(self) -> tuple[Column, ...]:
        """All columns: features, labels and weight."""
        weight = () if self.weight is None else (self.weight,)
        return (*(feature.column for feature in self.features), *self.labels, *weight)


def describe_type(arrow: pa.DataType) -> Column | None:
    """Return a nameless Column for a type that can be read, else None."""
    if pa.types.is_dictionary(arrow):
        inner = describe_type(arrow.value_type)
        return Column("", inner.kind, dictionary=True) if inner is not None and inner.kind in (*NUMBERS, "text") else None
    if pa.types.is_fixed_size_list(arrow) and arrow.list_size > 0:
        inner = describe_type(arrow.value_type)
        plain = inner is not None and inner.width is None and not inner.dictionary
        return Column("", inner.kind, arrow.list_size) if plain and inner is not None and inner.kind in NUMBERS else None
    kind = _plain_kind(arrow)
    return None if kind is None else Column("", kind)


def _plain_kind(arrow: pa.DataType) -> Kind | None:
    types = pa.types
    tests: dict[Kind, bool] = {
        "boolean": types.is_boolean(arrow),
        "integer": types.is_integer(arrow) or types.is_null(arrow),  # of an empty column any type would do
        "number": types.is_floating(arrow) or types.is_decimal(arrow),
        "text": types.is_string(arrow) or types.is_large_string(arrow) or types.is_string_view(arrow),
        "date": types.is_date(arrow),
        "timestamp": types.is_timestamp(arrow),
        "time": types.is_time(arrow),
        "duration": types.is_duration(arrow),
    }
    return next((kind for kind, found in tests.items() if found), None)


def csv_type(column: Column, *, category: bool) -> pa.DataType | None:
    """Return what a CSV's column is to be read as, whatever the beginning of the file looks like; None goes by that."""
    if column.kind in NUMBERS and not category:
        return pa.float64()
    types: dict[Kind, pa.DataType] = {"text": pa.string(), "integer": pa.int64(), "boolean": pa.bool_()}
    return types.get(column.kind)


def require_columns(source: Source, wanted: Iterable[Column]) -> None:
    """Raise DataError unless another dataset has these columns, in kinds and widths that can stand for them."""
    path = source.files[0].path
    for column in wanted:
        if column.name not in source.schema.names:
            raise DataError(f"{path}: has no column '{column.name}', which the training data has")
        arrow = source.schema.field(column.name).type
        found = describe_type(arrow)
        fits = found is not None and found.width == column.width and _stands_for(found.kind, column.kind)
        if not fits and not pa.types.is_null(arrow):
            raise DataError(f"{path}: column '{column.name}' has type {arrow}, which does not match the training data's")


def _stands_for(found: Kind, wanted: Kind) -> bool:
    return found == wanted or {found, wanted} <= NUMBERS
