from typing import Any

import pyarrow as pa
import pytest

from worker.columns import Column, describe_type, require_columns
from worker.errors import DataError
from worker.sources import Source, SourceFile


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
        (pa.date32(), "date", None),
        (pa.date64(), "date", None),
        (pa.timestamp("ns", "Europe/Berlin"), "timestamp", None),
        (pa.time32("s"), "time", None),
        (pa.duration("ms"), "duration", None),
        (pa.list_(pa.float32(), 4), "number", 4),
        (pa.list_(pa.bool_(), 1), "boolean", 1),
    ],
)
def test_types_that_can_be_read(arrow: pa.DataType, kind: Any, width: int | None) -> None:
    assert describe_type(arrow) == Column("", kind, width, dictionary=pa.types.is_dictionary(arrow))


@pytest.mark.parametrize(
    "arrow",
    [
        pa.binary(),
        pa.list_(pa.float32()),
        pa.large_list(pa.float32()),
        pa.list_(pa.string(), 2),
        pa.list_(pa.date32(), 2),
        pa.list_(pa.dictionary(pa.int8(), pa.int8()), 2),
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


WANTED = (Column("x", "number"), Column("pixels", "integer", 3), Column("kind", "text"), Column("when", "timestamp"))
FITTING = {"x": pa.float64(), "pixels": pa.list_(pa.uint8(), 3), "kind": pa.string(), "when": pa.timestamp("s")}


@pytest.mark.parametrize(
    "types",
    [
        FITTING,
        {"extra": pa.date32(), **dict(reversed(FITTING.items()))},
        FITTING | {"x": pa.int8(), "kind": pa.dictionary(pa.int8(), pa.large_string())},
        FITTING | {"pixels": pa.list_(pa.float32(), 3)},
        FITTING | {"kind": pa.null(), "x": pa.null()},
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
        (FITTING | {"when": pa.date32()}, "column 'when' has type date32[day], which does not match the training data's"),
        (FITTING | {"kind": pa.int64()}, "column 'kind' has type int64, which does not match the training data's"),
    ],
)
def test_another_dataset_must_have_the_columns_and_widths(types: dict[str, pa.DataType], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        require_columns(dataset(**types), WANTED)

    assert str(caught.value).startswith(f"other.parquet: {problem}")
