"""The `[data]` section of a job, and which columns of a table it picks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import ClassVar, Final, Literal

import pyarrow as pa

from worker.errors import DataError, JobError, require
from worker.model import ModelSpec
from worker.sources import Source

Scale = Literal["none", "standard", "minmax"]
MOST_SHARDS: Final = 8192
"""A task names its shards in one packet."""


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What is trained on.

    Attributes:
        train: a file, folder or glob of Parquet, Arrow IPC/Feather or CSV.
        label: column to learn, or several for a target of many values; names and globs.
        validation: share of the rows held out (which ones: by the seed), or another file, folder or glob.
        features: columns to learn from; names and globs. A glob leaves the label's columns out, unless `label` has it too.
        shards: parts that the rows are cut into, never tied to the number of workers; 8,192 at most.
        scale: of each feature, fitted to the training rows: none, standard (mean 0, deviation 1), minmax (0 to 1).
        missing: what to do about nulls; "error" refuses them.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    train: str
    label: str | tuple[str, ...]
    validation: float | str | None = None
    features: tuple[str, ...] = ("*",)
    shards: int = 4
    scale: Scale = "none"
    missing: Literal["error"] = "error"

    def __post_init__(self) -> None:
        if isinstance(self.validation, float | int):
            require(
                0 < self.validation < 1,
                "data.validation",
                f"a share of the rows must be above 0 and below 1, got {self.validation}; leave it out for no validation",
            )
        require(1 <= self.shards <= MOST_SHARDS, "data.shards", f"must be from 1 to {MOST_SHARDS:,}, got {self.shards}")
        require(bool(self.features), "data.features", "is empty; name at least one column, or leave it out for all")
        require(bool(self.label), "data.label", "is empty; name at least one column")

    @property
    def labels(self) -> tuple[str, ...]:
        """The label's names and globs as a tuple."""
        return (self.label,) if isinstance(self.label, str) else self.label


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        name: as in the file.
        kind: how its values are read.
        width: entries of a fixed-size list; None for a plain value.
    """

    name: str
    kind: Literal["number", "integer", "boolean", "text"]
    width: int | None = None

    @property
    def names(self) -> list[str]:
        """Names of the flattened values: `pixels[0]`, `pixels[1]`, … for a list."""
        return [self.name] if self.width is None else [f"{self.name}[{entry}]" for entry in range(self.width)]


@dataclass(frozen=True)
class Columns:
    """The columns of a job, in the order in which their values make up a row."""

    features: tuple[Column, ...]
    labels: tuple[Column, ...]

    @property
    def feature_names(self) -> list[str]:
        """A name for each of the I inputs."""
        return [name for column in self.features for name in column.names]

    @property
    def label_names(self) -> list[str]:
        """A name for each value of the label."""
        return [name for column in self.labels for name in column.names]

    @property
    def needed(self) -> list[str]:
        """The columns to read, each once."""
        return list(dict.fromkeys(column.name for column in (*self.features, *self.labels)))


def describe_type(arrow: pa.DataType) -> Column | None:
    """Return a nameless Column for a type that can be read, else None."""
    if pa.types.is_dictionary(arrow):
        arrow = arrow.value_type
    if pa.types.is_boolean(arrow):
        return Column("", "boolean")
    if pa.types.is_integer(arrow) or pa.types.is_null(arrow):  # of an empty column any type would do
        return Column("", "integer")
    if pa.types.is_floating(arrow) or pa.types.is_decimal(arrow):
        return Column("", "number")
    if pa.types.is_string(arrow) or pa.types.is_large_string(arrow) or pa.types.is_string_view(arrow):
        return Column("", "text")
    if pa.types.is_fixed_size_list(arrow) and arrow.list_size > 0:
        inner = describe_type(arrow.value_type)
        if inner is not None and inner.kind != "text" and inner.width is None:
            return Column("", inner.kind, arrow.list_size)
    return None


def choose_columns(schema: pa.Schema, data: DataSpec, model: ModelSpec) -> Columns:
    """Return the columns that the job picks from a table of this schema.

    Raises:
        JobError: a name is not in the table, or a column's type does not fit its use.
    """
    names = list(schema.names)
    labels = _match(names, data.labels, "data.label", keep_out=())
    shared = set(data.labels)
    features = _match(
        names,
        data.features,
        "data.features",
        keep_out=[name for name in labels if not any(fnmatchcase(name, glob) for glob in shared & set(data.features))],
    )
    require(bool(features), "data.features", "picks no column beside the label")
    columns = Columns(
        tuple(_typed(schema, name, "data.features") for name in features),
        tuple(_typed(schema, name, "data.label") for name in labels),
    )
    for column in columns.features:
        require(
            column.kind != "text",
            "data.features",
            f"column '{column.name}' is text; accepted are numbers, booleans and fixed-size lists of them",
        )
    _check_labels(columns.labels, model)
    return columns


def require_columns(source: Source, wanted: Iterable[Column]) -> None:
    """Raise DataError unless another dataset has these columns, in kinds and widths that can stand for them."""
    path = source.files[0].path
    for column in wanted:
        if column.name not in source.schema.names:
            raise DataError(f"{path}: has no column '{column.name}', which the training data has")
        arrow = source.schema.field(column.name).type
        found = describe_type(arrow)
        if found is None or found.width != column.width or (found.kind == "text") != (column.kind == "text"):
            raise DataError(f"{path}: column '{column.name}' has type {arrow}, which does not match the training data's")


def _match(names: list[str], patterns: Iterable[str], key: str, keep_out: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern in names:
            found[pattern] = None
            continue
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            close = get_close_matches(pattern, names, 1)
            listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            hint = f"did you mean '{close[0]}'?" if close else f"the columns are {listed}"
            raise JobError(key, f"no column matches '{pattern}'; {hint}")
        found.update(dict.fromkeys(name for name in matches if name not in keep_out))
    return list(found)


def _typed(schema: pa.Schema, name: str, key: str) -> Column:
    arrow = schema.field(name).type
    shape = describe_type(arrow)
    if shape is None:
        raise JobError(
            key,
            f"column '{name}' has type {arrow}; accepted are numbers, booleans, fixed-size lists of them and text labels",
        )
    return Column(name, shape.kind, shape.width)


def _check_labels(labels: tuple[Column, ...], model: ModelSpec) -> None:
    first = labels[0]
    if model.task == "regression":
        for column in labels:
            require(
                column.kind != "text",
                "data.label",
                f"column '{column.name}' is text, which a regression can't learn; use numbers, or task = 'classification'",
            )
        return
    require(
        len(labels) == 1 and first.width is None,
        "data.label",
        f"{model.task} takes one plain column of classes, got {', '.join(column.name for column in labels)}"
        + ("" if first.width is None else f" with lists of {first.width}"),
    )
    require(
        first.kind != "number",
        "data.label",
        f"column '{first.name}' holds floating-point numbers, which are no class labels; "
        "use an integer, boolean or text column, or task = 'regression'",
    )
