from typing import Any

import pyarrow as pa
import pytest

from worker.choice import choose_columns
from worker.columns import Column, Columns, Feature, Numbers, value_names
from worker.data import DEFAULT_CATEGORIES, ColumnSpec, DataSpec
from worker.errors import JobError
from worker.model import ModelSpec

REGRESSION, BINARY, CLASSIFICATION = (ModelSpec(task=task) for task in ("regression", "binary", "classification"))
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "x1": pa.float64(),
        "x2": pa.int32(),
        "x10": pa.bool_(),
        "pixels": pa.list_(pa.uint8(), 3),
        "price": pa.decimal128(8, 2),
        "kind": pa.string(),
        "size": pa.int64(),
        "when": pa.date32(),
        "blob": pa.binary(),
    }
)


def chosen(model: ModelSpec = REGRESSION, **options: Any) -> Columns:
    return choose_columns(SCHEMA, DataSpec(train="rows.parquet", **options), model)


def names(columns: Columns) -> tuple[list[str], list[str]]:
    """Returns the names of features and labels."""
    return [feature.column.name for feature in columns.features], [column.name for column in columns.labels]


@pytest.mark.parametrize(
    ("features", "label", "expected_features", "expected_labels"),
    [
        (("x*",), "size", ["x1", "x2", "x10"], ["size"]),
        (("x10", "x1"), "size", ["x10", "x1"], ["size"]),
        (("price", "x?"), "size", ["price", "x1", "x2"], ["size"]),
        (("x1", "x*"), "size", ["x1", "x2", "x10"], ["size"]),
        (("x*",), "x2", ["x1", "x10"], ["x2"]),
        (("x*", "p*"), ("x1", "p[qr]*"), ["x2", "x10", "pixels"], ["x1", "price"]),
        (("x*",), ("x*",), ["x1", "x2", "x10"], ["x1", "x2", "x10"]),
        (("x*",), ("x*", "size"), ["x1", "x2", "x10"], ["x1", "x2", "x10", "size"]),
        (("x[12]",), ("size", "x1"), ["x2"], ["size", "x1"]),
    ],
)
def test_features_and_labels_are_picked_by_names_and_globs(
    features: tuple[str, ...], label: str | tuple[str, ...], expected_features: list[str], expected_labels: list[str]
) -> None:
    columns = chosen(features=features, label=label)

    assert names(columns) == (expected_features, expected_labels)
    assert columns.needed == list(dict.fromkeys(expected_features + expected_labels))


def test_by_default_every_column_but_the_label_is_a_feature() -> None:
    schema = pa.schema({"a": pa.float32(), "b": pa.int8(), "c": pa.bool_()})

    columns = choose_columns(schema, DataSpec(train="rows.parquet", label="b"), REGRESSION)

    assert names(columns) == (["a", "c"], ["b"])


def test_a_name_that_looks_like_a_glob_is_the_column_of_that_name() -> None:
    schema = pa.schema({"x[0]": pa.float32(), "x0": pa.float32(), "*": pa.float32(), "y": pa.float32()})

    columns = choose_columns(schema, DataSpec(train="rows.parquet", label="y", features=("x[0]", "*")), REGRESSION)

    assert names(columns)[0] == ["x[0]", "*"]


def test_a_label_that_looks_like_a_glob_keeps_no_other_column_among_the_features() -> None:
    schema = pa.schema({"x*": pa.float32(), "x1": pa.float32(), "x2": pa.float32()})
    data = DataSpec(train="rows.parquet", label=("x*", "x1"), features=("x*", "*"))

    assert names(choose_columns(schema, data, REGRESSION)) == (["x*", "x2"], ["x*", "x1"])


def test_fixed_size_lists_are_flattened_into_named_inputs() -> None:
    columns = chosen(features=("x2", "pixels"), label="pixels")

    assert [feature.numbers for feature in columns.features] == [
        Numbers(Column("x2", "integer")),
        Numbers(Column("pixels", "integer", 3)),
    ]
    assert columns.features[1].numbers.names == ["pixels[0]", "pixels[1]", "pixels[2]"]
    assert value_names(columns.labels) == ["pixels[0]", "pixels[1]", "pixels[2]"]
    assert columns.needed == ["x2", "pixels"]


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (REGRESSION, {"label": "sise"}, "data.label: no column matches 'sise'; did you mean 'size'?"),
        (BINARY, {"label": "size", "features": ("pixel",)}, "data.features: no column matches 'pixel'; did you mean 'pixels'"),
        (
            REGRESSION,
            {"label": "size", "features": ("q*",)},
            "data.features: no column matches 'q*'; the columns are id, x1, x2, x10, pixels, price, kind, size, …",
        ),
        (REGRESSION, {"label": "x*", "features": ("x1*", "x2*")}, "data.features: picks no column beside the label"),
        (REGRESSION, {"label": "size", "features": ("blob",)}, "data.features: column 'blob' has type binary; accepted are "),
        (REGRESSION, {"label": "blob", "features": ("x1",)}, "data.label: column 'blob' has type binary; accepted are "),
        (REGRESSION, {"label": "when", "features": ("x1",)}, "data.label: column 'when' holds dates, which a regression can't"),
        (REGRESSION, {"label": "kind", "features": ("x1",)}, "data.label: column 'kind' holds text, which a regression can"),
        (BINARY, {"label": "when", "features": ("x1",)}, "data.label: column 'when' holds dates, which are no class labels; "),
        (CLASSIFICATION, {"label": "x1", "features": ("x2",)}, "data.label: column 'x1' holds floating-point numbers"),
        (BINARY, {"label": "price", "features": ("x2",)}, "data.label: column 'price' holds floating-point numbers"),
        (CLASSIFICATION, {"label": ("x2", "size"), "features": ("x1",)}, "data.label: classification takes one plain column of"),
        (BINARY, {"label": "pixels", "features": ("x1",)}, "data.label: binary takes one plain column of classes, got pixels"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_refused_by_key_and_name(model: ModelSpec, options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        chosen(model, **options)

    assert str(caught.value).startswith(message)


def test_two_targets_of_one_name_are_refused() -> None:
    schema = pa.schema({"a": pa.list_(pa.float32(), 2), "a[1]": pa.float32(), "x": pa.float32()})

    with pytest.raises(JobError, match=r"^data\.label: picks two values named 'a\[1\]'; rename the column of that name"):
        choose_columns(schema, DataSpec(train="rows.parquet", label="a*"), REGRESSION)


@pytest.mark.parametrize("label", ["size", "kind", "x10"])
@pytest.mark.parametrize("model", [CLASSIFICATION, BINARY])
def test_class_labels_are_whole_numbers_text_or_booleans(model: ModelSpec, label: str) -> None:
    assert names(chosen(model, label=label, features=("x1",)))[1] == [label]


# What is to become of columns


def feature(name: str, *, columns: dict[str, ColumnSpec] | None = None, schema: pa.Schema = SCHEMA, **options: Any) -> Feature:
    features = tuple(other for other in schema.names if other not in ("x1", "blob"))
    data = DataSpec(train="rows.parquet", label="x1", features=features, columns=columns or {}, **options)
    return next(found for found in choose_columns(schema, data, REGRESSION).features if found.column.name == name)


@pytest.mark.parametrize(
    ("arrow", "category"),
    [
        (pa.string(), True),
        (pa.dictionary(pa.int8(), pa.string()), True),
        (pa.dictionary(pa.int8(), pa.int64()), True),
        (pa.dictionary(pa.int8(), pa.float32()), False),
        (pa.int8(), False),
        (pa.bool_(), False),
        (pa.timestamp("s"), False),
    ],
    ids=str,
)
def test_text_and_dictionaries_are_categories_unless_something_else_is_asked_for(arrow: pa.DataType, category: bool) -> None:
    schema = pa.schema({"x": arrow, "x1": pa.float64()})

    assert feature("x", schema=schema).category == category
    assert feature("x", schema=schema).missing == "error"


def test_a_column_is_treated_as_its_name_says_else_as_globs_say_else_as_all_are() -> None:
    columns = {
        "x*": ColumnSpec(scale="minmax", missing="median"),
        "x2": ColumnSpec(scale="none"),
        "*": ColumnSpec(scale="standard", missing="mean", categories=7),
    }

    assert feature("x2", columns=columns) == Feature(column=Column("x2", "integer"), scale="none", missing="median", fill=0.0)
    assert feature("price", columns=columns).scale == "standard"
    assert feature("kind", columns=columns).categories == 7
    assert feature("x10", scale="standard", missing="constant", fill=2.0) == Feature(
        column=Column("x10", "boolean"), scale="standard", missing="constant", fill=2.0
    )


@pytest.mark.parametrize("name", ["a*", "a[1]", "a?"])
def test_a_table_for_a_column_whose_name_looks_like_a_glob_is_for_that_column_alone(name: str) -> None:
    schema = pa.schema({name: pa.float64(), "a1": pa.float64(), "x1": pa.float64()})
    columns = {name: ColumnSpec(scale="minmax"), "a*1": ColumnSpec(scale="standard")}

    assert feature(name, columns=columns, schema=schema).scale == "minmax"
    assert feature("a1", columns=columns, schema=schema).scale == "standard"


def test_what_a_glob_says_counts_for_the_columns_that_it_fits() -> None:
    columns = {"*": ColumnSpec(scale="minmax", missing="mean", parts=("month",), kind="category")}

    assert feature("kind", columns=columns) == Feature(
        column=Column("kind", "text"), category=True, missing="indicator", categories=DEFAULT_CATEGORIES
    )
    assert feature("size", columns=columns).category
    assert feature("price", columns=columns) == Feature(
        column=Column("price", "number"), scale="minmax", missing="mean", fill=0.0
    )
    assert feature("when", columns=columns).parts == ("month",)


def test_what_a_glob_fills_in_counts_where_gaps_are_filled_with_a_constant() -> None:
    columns = {"*": ColumnSpec(fill="unknown"), "size": ColumnSpec(kind="category", missing="constant", fill=3.0)}

    filled, indicated = (feature("kind", columns=columns, missing=missing) for missing in ("constant", "indicator"))

    assert (filled.missing, filled.fill) == ("constant", "unknown")
    assert (indicated.missing, indicated.fill) == ("indicator", None)


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("kind", {"kind": "number"}, "data.columns.kind.kind: column 'kind' is text; accepted is category"),
        ("price", {"kind": "category"}, "data.columns.price.kind: column 'price' holds floating-point numbers, which are no cat"),
        ("pixels", {"kind": "category"}, "data.columns.pixels.kind: column 'pixels' holds lists, which are no categories"),
        (
            "kind",
            {"scale": "minmax"},
            "data.columns.kind.scale: is for numbers, and column 'kind' holds categories",
        ),
        ("kind", {"missing": "median"}, "data.columns.kind.missing: column 'kind' holds categories, which have no median; accep"),
        ("size", {"categories": 9}, "data.columns.size.categories: column 'size' holds numbers; leave it out, or set kind = "),
        (
            "size",
            {"fill": "a", "missing": "constant"},
            "data.columns.size.fill: must be a number for column 'size', got",
        ),
        ("kind", {"fill": 1.0, "missing": "constant"}, "data.columns.kind.fill: must be text for column 'kind', got 1"),
        ("size", {"fill": 0.5, "missing": "constant", "kind": "category"}, "data.columns.size.fill: must be a whole number from"),
        (
            "size",
            {"fill": 1e300, "missing": "constant", "kind": "category"},
            "data.columns.size.fill: must be a whole number from",
        ),
        (
            "x10",
            {"fill": 2.0, "missing": "constant", "kind": "category"},
            "data.columns.x10.fill: must be 0 (false) or 1 (true) ",
        ),
        ("size", {"fill": 1.0}, 'data.columns.size.fill: has no use with missing = "error"; leave it out'),
        ("size", {"parts": ("hour",)}, "data.columns.size.parts: is for dates and times, and column 'size' holds whole numbers"),
        (
            "when",
            {"parts": ("month", "hour")},
            "data.columns.when.parts: column 'when' holds dates, which have no hour; acc",
        ),
        ("when", {"cyclical": True}, "data.columns.when.cyclical: needs data.columns.when.parts; name at least one"),
    ],
)
def test_what_a_named_column_cannot_be_is_refused_by_its_key(name: str, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        feature(name, columns={name: ColumnSpec(**spec)})

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("sice", "data.columns.sice: no column matches 'sice'; did you mean 'size'?"),
        ("x1", "data.columns.x1: is none of the features; see data.features"),
    ],
)
def test_a_table_for_a_column_that_is_no_feature_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        feature("size", columns={pattern: ColumnSpec(scale="minmax")})

    assert str(caught.value) == message
