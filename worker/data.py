"""The `[data]` section of a job: what is trained on, and what becomes of each column."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import ClassVar, Final, Literal

from worker.csv_dialect import DEFAULT_CSV, CsvSpec
from worker.errors import require
from worker.memory import parse_size
from worker.stores import check_address

Scale = Literal["none", "standard", "minmax"]
Missing = Literal["error", "mean", "median", "constant", "indicator"]
Part = Literal["days", "year", "month", "day", "day_of_year", "weekday", "hour", "minute", "second"]

MOST_SHARDS: Final = 8192
"""A task names its shards in one packet."""

DEFAULT_CATEGORIES: Final = 100


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """What is to become of the columns that a name or glob picks; None leaves it to other globs, then to `[data]`.

    Attributes:
        kind: whether its values are numbers or categories; None goes by the column's type.
        scale: of numbers.
        missing: what to do about missing values.
        fill: what "constant" puts in their place: a number, or a category.
        categories: categories that have an input of their own, at most; the others share one.
        parts: of dates and times, in place of the whole as one number.
        cyclical: whether a part that comes round again becomes two inputs, its sine and cosine.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    kind: Literal["number", "category"] | None = None
    scale: Scale | None = None
    missing: Missing | None = None
    fill: float | str | None = None
    categories: int | None = None
    parts: tuple[Part, ...] | None = None
    cyclical: bool | None = None


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What is trained on.

    Attributes:
        train: a file, folder or glob of Parquet, Arrow IPC/Feather or CSV; a path or a URI.
        label: column to learn, or several for a target of many values; names and globs.
        validation: share of the rows held out (which ones: by the seed), or another file, folder or glob.
        features: columns to learn from; names and globs. A glob leaves the label's columns out, unless `label` has it too.
        shards: parts that the rows are cut into, never tied to the number of workers; 8,192 at most.
        scale: of each number, fitted to the training rows: none, standard (mean 0, deviation 1), minmax (0 to 1).
        missing: what to do about missing values: "error" refuses them; mean, median, constant and indicator fill them in, the
            last with the mean and an input that says so. In columns of categories, what is missing is a category.
        fill: what "constant" puts in the place of missing numbers.
        categories: of a column that have an input of their own, at most; the others share one.
        columns: what is to become of single columns; by name or glob.
        scale_target: of a regression's targets: none or standard.
        weight: column of the rows' weights, 0 or more; None weighs all alike.
        class_weights: none, or balanced: classes weigh alike, however many rows they have.
        unlabelled: what to do about rows without a label: "error" refuses them; "ignore" gives them no weight.
        shuffle: which rows are shuffled together in each epoch: all of a shard ("full"), or those of a window ("window"), which
            can be read as they are needed; "auto" takes windows for data that is larger than a fixed size.
        window_rows: of a window, over all shards; None takes as many as take a fixed size.
        delimiter: between the fields of CSV files: one ASCII character.
        decimal: between the digits of numbers there.
        memory_limit: that the rows of a worker may take, in bytes or as "400 MB"; None takes a share of the node's memory.
            Decides what is kept in memory, and never a result.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    train: str
    label: str | tuple[str, ...]
    validation: float | str | None = None
    features: tuple[str, ...] = ("*",)
    shards: int = 4
    scale: Scale = "none"
    missing: Missing = "error"
    fill: float = 0.0
    categories: int = DEFAULT_CATEGORIES
    columns: dict[str, ColumnSpec] = field(default_factory=dict)
    scale_target: Literal["none", "standard"] = "none"
    weight: str | None = None
    class_weights: Literal["none", "balanced"] = "none"
    unlabelled: Literal["error", "ignore"] = "error"
    shuffle: Literal["auto", "full", "window"] = "auto"
    window_rows: int | None = None
    delimiter: str = DEFAULT_CSV.delimiter
    decimal: Literal[".", ","] = DEFAULT_CSV.decimal
    memory_limit: int | str | None = None

    def __post_init__(self) -> None:
        check_address(self.train, "data.train")
        if isinstance(self.validation, str):
            check_address(self.validation, "data.validation")
        if isinstance(self.validation, float | int):
            require(
                0 < self.validation < 1,
                "data.validation",
                f"a share of the rows must be above 0 and below 1, got {self.validation}; leave it out for no validation",
            )
        require(1 <= self.shards <= MOST_SHARDS, "data.shards", f"must be from 1 to {MOST_SHARDS:,}, got {self.shards}")
        require(bool(self.features), "data.features", "is empty; name at least one column, or leave it out for all")
        require(bool(self.label), "data.label", "is empty; name at least one column")
        require(
            self.window_rows is None or self.window_rows >= 1, "data.window_rows", f"must be at least 1, got {self.window_rows}"
        )
        require(
            self.window_rows is None or self.shuffle != "full",
            "data.window_rows",
            'has no use with shuffle = "full"; leave one of them out',
        )
        require(
            self.memory_limit is None or bool(self.memory_bytes),
            "data.memory_limit",
            f'must be a size above 0 such as "400 MB" or "2 GiB", or a number of bytes, got {self.memory_limit!r}',
        )
        CsvSpec(delimiter=self.delimiter, decimal=self.decimal)  # refuses what fits no file
        _check_values("data", self.fill, self.categories)
        for name, spec in self.columns.items():
            _check_values(f"data.columns.{name}", spec.fill, spec.categories)
            require(spec.parts != (), f"data.columns.{name}.parts", "is empty; name at least one, or leave it out")
            doubled = next((part for part in spec.parts or () if (spec.parts or ()).count(part) > 1), None)
            require(doubled is None, f"data.columns.{name}.parts", f"names {doubled} more than once")

    @property
    def labels(self) -> tuple[str, ...]:
        """The label's names and globs as a tuple."""
        return (self.label,) if isinstance(self.label, str) else self.label

    @property
    def csv(self) -> CsvSpec:
        """How CSV files are written."""
        return CsvSpec(delimiter=self.delimiter, decimal=self.decimal)

    @property
    def memory_bytes(self) -> int | None:
        """The memory limit in bytes; None where there is none."""
        return None if self.memory_limit is None else parse_size(str(self.memory_limit))


def _check_values(table: str, fill: float | str | None, categories: int | None) -> None:
    require(categories is None or categories >= 1, f"{table}.categories", f"must be at least 1, got {categories}")
    require(not isinstance(fill, float) or isfinite(fill), f"{table}.fill", f"must be a finite number, got {fill}")
