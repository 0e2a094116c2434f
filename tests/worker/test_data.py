from typing import Any

import pyarrow as pa
import pytest

from worker.data import Column, Columns, DataSpec, choose_columns, describe_type, require_columns
from worker.errors import DataError, JobError
from worker.model import ModelSpec
from worker.sources import Source, SourceFile

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
    }
)


def chosen(model: ModelSpec = REGRESSION, **options: Any) -> Columns:
    return choose_columns(SCHEMA, DataSpec(train="rows.parquet", **options), model)


def names(columns: tuple[Column, ...]) -> list[str]:
    return [column.name for column in columns]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"validation": 0}, "data.validation"),
        ({"validation": 1}, "data.validation"),
        ({"validation": 1.5}, "data.validation"),
        ({"validation": float("nan")}, "data.validation"),
        ({"shards": 0}, "data.shards"),
        ({"features": ()}, "data.features"),
        ({"label": ""}, "data.label"),
        ({"label": ()}, "data.label"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(options: dict[str, Any], key: str) -> None:
    with pytest.raises(JobError) as caught:
        DataSpec(**{"train": "rows.parquet", "label": "size"} | options)

    assert caught.value.key == key


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

    assert (names(columns.features), names(columns.labels)) == (expected_features, expected_labels)
    assert columns.needed == list(dict.fromkeys(expected_features + expected_labels))


def test_by_default_every_column_but_the_label_is_a_feature() -> None:
    schema = pa.schema({"a": pa.float32(), "b": pa.int8(), "c": pa.bool_()})

    columns = choose_columns(schema, DataSpec(train="rows.parquet", label="b"), REGRESSION)

    assert (names(columns.features), names(columns.labels)) == (["a", "c"], ["b"])


def test_a_name_that_looks_like_a_glob_is_the_column_of_that_name() -> None:
    schema = pa.schema({"x[0]": pa.float32(), "x0": pa.float32(), "*": pa.float32(), "y": pa.float32()})

    columns = choose_columns(schema, DataSpec(train="rows.parquet", label="y", features=("x[0]", "*")), REGRESSION)

    assert names(columns.features) == ["x[0]", "*"]


def test_fixed_size_lists_are_flattened_into_named_inputs() -> None:
    columns = chosen(features=("x2", "pixels"), label="pixels")

    assert columns.features == (Column("x2", "integer"), Column("pixels", "integer", 3))
    assert columns.feature_names == ["x2", "pixels[0]", "pixels[1]", "pixels[2]"]
    assert columns.label_names == ["pixels[0]", "pixels[1]", "pixels[2]"]
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
        (REGRESSION, {"label": "size", "features": ("kind",)}, "data.features: column 'kind' is text; accepted are numbers, "),
        (REGRESSION, {"label": "size", "features": ("when",)}, "data.features: column 'when' has type date32[day]; accepted "),
        (REGRESSION, {"label": "when", "features": ("x1",)}, "data.label: column 'when' has type date32[day]; accepted "),
        (REGRESSION, {"label": "kind", "features": ("x1",)}, "data.label: column 'kind' is text, which a regression can't learn"),
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


@pytest.mark.parametrize("label", ["size", "kind", "x10"])
@pytest.mark.parametrize("model", [CLASSIFICATION, BINARY])
def test_class_labels_are_whole_numbers_text_or_booleans(model: ModelSpec, label: str) -> None:
    assert names(chosen(model, label=label, features=("x1",)).labels) == [label]


@pytest.mark.parametrize(
    ("arrow", "kind", "width"),
    [
        (pa.float16(), "number", None),
        (pa.float64(), "number", None),
        (pa.decimal128(5, 2), "number", None),
        (pa.decimal256(50, 2), "number", None),
        (pa.null(), "integer", None),
        (pa.uint64(), "integer", None),
        (pa.bool_(), "boolean", None),
        (pa.string(), "text", None),
        (pa.large_string(), "text", None),
        (pa.string_view(), "text", None),
        (pa.dictionary(pa.int8(), pa.string()), "text", None),
        (pa.dictionary(pa.int32(), pa.int64()), "integer", None),
        (pa.list_(pa.float32(), 4), "number", 4),
        (pa.list_(pa.bool_(), 1), "boolean", 1),
    ],
)
def test_types_that_can_be_read(arrow: pa.DataType, kind: Any, width: int | None) -> None:
    assert describe_type(arrow) == Column("", kind, width)


@pytest.mark.parametrize(
    "arrow",
    [
        pa.binary(),
        pa.date32(),
        pa.timestamp("s"),
        pa.duration("s"),
        pa.list_(pa.float32()),
        pa.large_list(pa.float32()),
        pa.list_(pa.string(), 2),
        pa.list_(pa.list_(pa.float32(), 2), 2),
        pa.list_(pa.float32(), 0),
        pa.struct({"x": pa.float32()}),
        pa.dictionary(pa.int8(), pa.date32()),
    ],
    ids=str,
)
def test_types_that_cannot_be_read(arrow: pa.DataType) -> None:
    assert describe_type(arrow) is None


def dataset(**types: pa.DataType) -> Source:
    return Source((SourceFile("other.parquet", "Parquet", 1),), pa.schema(types))


WANTED = (Column("x", "number"), Column("pixels", "integer", 3), Column("kind", "text"))
FITTING = {"x": pa.float64(), "pixels": pa.list_(pa.uint8(), 3), "kind": pa.string()}


@pytest.mark.parametrize(
    "types",
    [
        FITTING,
        {"extra": pa.date32(), **dict(reversed(FITTING.items()))},
        FITTING | {"x": pa.int8(), "kind": pa.dictionary(pa.int8(), pa.large_string())},
        FITTING | {"pixels": pa.list_(pa.float32(), 3)},
    ],
)
def test_another_dataset_may_have_columns_more_and_other_number_types(types: dict[str, pa.DataType]) -> None:
    require_columns(dataset(**types), WANTED)


@pytest.mark.parametrize(
    ("types", "problem"),
    [
        ({"x": pa.float64(), "kind": pa.string()}, "has no column 'pixels', which the training data has"),
        (
            FITTING | {"pixels": pa.list_(pa.uint8(), 4)},
            "column 'pixels' has type fixed_size_list<item: uint8>[4], which does not",
        ),
        (FITTING | {"pixels": pa.uint8()}, "column 'pixels' has type uint8, which does not match the training data's"),
        (FITTING | {"x": pa.string()}, "column 'x' has type string, which does not match the training data's"),
        (FITTING | {"x": pa.date32()}, "column 'x' has type date32[day], which does not match the training data's"),
        (FITTING | {"kind": pa.int64()}, "column 'kind' has type int64, which does not match the training data's"),
    ],
)
def test_another_dataset_must_have_the_columns_and_widths(types: dict[str, pa.DataType], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        require_columns(dataset(**types), WANTED)

    assert str(caught.value).startswith(f"other.parquet: {problem}")
