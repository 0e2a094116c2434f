"""Which columns of a table a job picks, and what it wants to become of each."""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import pyarrow as pa

from worker.columns import ACCEPTED_TYPES, NUMBERS, Column, Columns, Feature, Kind, describe_type, value_names
from worker.data import ColumnSpec, DataSpec, Part
from worker.errors import JobError, require
from worker.model import ModelSpec

Treatment = Literal["number", "category"]

PARTS_OF: Final[dict[Kind, tuple[Part, ...]]] = {
    "date": ("days", "year", "month", "day", "day_of_year", "weekday"),
    "timestamp": ("days", "year", "month", "day", "day_of_year", "weekday", "hour", "minute", "second"),
    "time": ("hour", "minute", "second"),
}
"""Parts that the kinds of columns with parts have."""


CATEGORY_FILLS: Final[dict[Kind, str]] = {
    "text": "text",
    "integer": "a whole number from -2⁵³ to 2⁵³",
    "boolean": "0 (false) or 1 (true)",
}
"""What can be filled in to categories of each kind."""


def choose_columns(schema: pa.Schema, data: DataSpec, model: ModelSpec) -> Columns:
    """Return the columns that the job picks from a table of this schema.

    Raises:
        JobError: a name is not in the table, or a column's type does not fit its use.
    """
    names = list(schema.names)
    labels = _match(names, data.labels, "data.label", keep_out=())
    shared = {name for pattern in set(data.labels) & set(data.features) for name in _picked(names, pattern)}
    kept_out = [name for name in labels if name not in shared]
    weight = _weight(schema, data.weight)
    features = _match(names, data.features, "data.features", keep_out=[*kept_out, *([weight.name] if weight else [])])
    require(bool(features), "data.features", "picks no column beside the label")
    for pattern in data.columns:
        matched = _match(names, [pattern], f"data.columns.{pattern}", keep_out=())
        require(not set(matched).isdisjoint(features), f"data.columns.{pattern}", "is none of the features; see data.features")
    columns = Columns(
        features=tuple(_feature(_typed(schema, name, "data.features"), data, names) for name in features),
        labels=tuple(_typed(schema, name, "data.label") for name in labels),
        scale_target=data.scale_target == "standard",
        weight=weight,
        balanced=data.class_weights == "balanced",
        unlabelled=data.unlabelled == "ignore",
    )
    _check_labels(columns.labels, model)
    return columns


def _weight(schema: pa.Schema, name: str | None) -> Column | None:
    if name is None:
        return None
    found = _match(list(schema.names), [name], "data.weight", keep_out=())
    require(len(found) == 1, "data.weight", f"'{name}' picks {len(found)} columns; name one")
    column = _typed(schema, found[0], "data.weight")
    fits = column.kind in NUMBERS and column.width is None
    require(fits, "data.weight", f"column '{column.name}' holds {_plural(column)}; accepted are numbers")
    return column


def _feature(column: Column, data: DataSpec, names: list[str]) -> Feature:
    """Return what is to become of a column: as its name says, else as globs say, in their order, else as `[data]` does."""
    exact = data.columns.get(column.name, ColumnSpec())
    globs = [spec for pattern, spec in data.columns.items() if pattern not in names and fnmatchcase(column.name, pattern)]
    default_kind: Treatment = "category" if column.kind == "text" or (column.dictionary and column.kind != "number") else "number"
    kinds = [exact.kind, *(spec.kind for spec in globs if _fits(column, "kind", spec.kind, default_kind))]
    kind = next((kind for kind in kinds if kind is not None), default_kind)
    for field in fields(ColumnSpec):
        _check_fits(column, field.name, getattr(exact, field.name), kind)

    def given(key: str) -> Any:
        found = [getattr(exact, key), *(value for spec in globs if _fits(column, key, value := getattr(spec, key), kind))]
        return next((value for value in found if value is not None), None)

    missing = given("missing") or data.missing
    fill = given("fill") if missing == "constant" else None
    key = f"data.columns.{column.name}"
    require(exact.fill is None or missing == "constant", f"{key}.fill", f'has no use with missing = "{missing}"; leave it out')
    require(not exact.cyclical or bool(given("parts")), f"{key}.cyclical", f"needs {key}.parts; name at least one")
    if kind == "category":
        return Feature(
            column=column,
            category=True,
            # A category has neither mean nor median: what is missing is one more of them.
            missing="error" if missing == "error" else "indicator" if fill is None else "constant",
            fill=fill,
            categories=given("categories") or data.categories,
        )
    return Feature(
        column=column,
        scale=given("scale") or data.scale,
        missing=missing,
        fill=data.fill if fill is None else fill,
        parts=given("parts") or (),
        cyclical=given("cyclical") or False,
    )


def _fits(column: Column, key: str, value: object, kind: Treatment) -> bool:
    """Return whether a column of numbers or categories can have a key of `[data.columns]`."""
    # Of a category that is missing, a mean is taken for leave to be so, as that of [data] is.
    return value is not None and (key == "missing" or _misfit(column, key, value, kind) is None)


def _check_fits(column: Column, key: str, value: object, kind: Treatment) -> None:
    problem = None if value is None else _misfit(column, key, value, kind)
    if problem is not None:
        raise JobError(f"data.columns.{column.name}.{key}", problem)


def _misfit(column: Column, key: str, value: object, kind: Treatment) -> str | None:
    """Return why a column of numbers or categories can't have a key of `[data.columns]`; None where it can."""
    parts = PARTS_OF.get(column.kind, ())
    match key, value:
        case "kind", "number" if column.kind == "text":
            return f"column '{column.name}' is text; accepted is category"
        case "kind", "category" if column.width is not None or column.kind not in ("integer", "boolean", "text"):
            return f"column '{column.name}' holds {_plural(column)}, which are no categories; accepted is number"
        case "scale" | "parts" | "cyclical", _ if kind == "category":
            return f"is for numbers, and column '{column.name}' holds categories; leave it out"
        case "missing", "mean" | "median" if kind == "category":
            return f"column '{column.name}' holds categories, which have no {value}; accepted: error, constant, indicator"
        case "categories", _ if kind != "category":
            return f"column '{column.name}' holds numbers; leave it out, or set kind = \"category\""
        case "fill", str() if kind != "category" or column.kind != "text":
            return f"must be a number for column '{column.name}', got the text '{value}'"
        case "fill", float() if kind == "category" and not _is_category(value, column.kind):
            return f"must be {CATEGORY_FILLS[column.kind]} for column '{column.name}', got {value:g}"
        case "parts" | "cyclical", _ if not parts:
            return f"is for dates and times, and column '{column.name}' holds {_plural(column)}; leave it out"
        case "parts", tuple() if not set(value) <= set(parts):
            wrong = next(part for part in value if part not in parts)
            return f"column '{column.name}' holds {_plural(column)}, which have no {wrong}; accepted: {', '.join(parts)}"
    return None


def _is_category(value: float, kind: Kind) -> bool:
    return (kind == "integer" and value.is_integer() and abs(value) <= 2**53) or (kind == "boolean" and value in (0, 1))


def _plural(column: Column) -> str:
    if column.width is not None:
        return "lists"
    return {"text": "text", "integer": "whole numbers", "number": "floating-point numbers"}.get(column.kind, f"{column.kind}s")


def _match(names: list[str], patterns: Iterable[str], key: str, keep_out: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        matches = _picked(names, pattern)
        if not matches:
            close = get_close_matches(pattern, names, 1)
            listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            hint = f"did you mean '{close[0]}'?" if close else f"the columns are {listed}"
            raise JobError(key, f"no column matches '{pattern}'; {hint}")
        found.update(dict.fromkeys(name for name in matches if name == pattern or name not in keep_out))
    return list(found)


def _picked(names: list[str], pattern: str) -> list[str]:
    """Return the columns that a name or glob picks; what is the name of a column is that one alone, whatever it looks like."""
    return [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]


def _typed(schema: pa.Schema, name: str, key: str) -> Column:
    arrow = schema.field(name).type
    shape = describe_type(arrow)
    if shape is None:
        raise JobError(key, f"column '{name}' has type {arrow}; accepted are {ACCEPTED_TYPES}")
    return Column(name, shape.kind, shape.width, shape.dictionary)


def _check_labels(labels: tuple[Column, ...], model: ModelSpec) -> None:
    first = labels[0]
    if model.task == "regression":
        names = value_names(labels)
        doubled = next((name for name in names if names.count(name) > 1), None)
        require(doubled is None, "data.label", f"picks two values named '{doubled}'; rename the column of that name")
        for column in labels:
            require(
                column.kind in NUMBERS,
                "data.label",
                f"column '{column.name}' holds {_plural(column)}, which a regression can't learn; use numbers, or "
                "task = 'classification'",
            )
        return
    require(
        len(labels) == 1 and first.width is None,
        "data.label",
        f"{model.task} takes one plain column of classes, got {', '.join(column.name for column in labels)}"
        + ("" if first.width is None else f" with lists of {first.width}"),
    )
    require(
        first.kind in ("integer", "boolean", "text"),
        "data.label",
        f"column '{first.name}' holds {_plural(first)}, which are no class labels; use an integer, boolean or text column, or "
        "task = 'regression'",
    )
