from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq
import pytest

from worker.errors import DataError
from worker.sources import open_source, read_rows


def write(root: Path, folder: str, columns: dict[str, Any] | None = None) -> Path:
    path = root / folder / "rows.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns or {"x": [len(str(folder))]}), path)
    return path


def columns_of(path: Path, *names: str) -> dict[str, list[Any]]:
    source = open_source(str(path), "data.train")
    found: dict[str, list[Any]] = read_rows(source, 0, source.rows, list(names)).to_pydict()
    return found


@pytest.mark.parametrize(
    ("values", "columns", "arrow"),
    [
        (["2024", "2025"], [2024, 2025], pa.int64()),
        (["0", "-2"], [0, -2], pa.int64()),
        (["01067", "1067"], ["01067", "1067"], pa.string()),
        (["01", "12"], ["01", "12"], pa.string()),
        (["-0", "00", "+1"], ["-0", "00", "+1"], pa.string()),
        (["1" * 18, "-" + "1" * 18], [int("1" * 18), -int("1" * 18)], pa.int64()),
        (["1", "one"], ["1", "one"], pa.string()),
        (["1", "1" * 19], ["1", "1" * 19], pa.string()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], [1, None], pa.int64()),
        (["a", "__HIVE_DEFAULT_PARTITION__"], ["a", None], pa.string()),
        (["a%2Fb", "c d"], ["a/b", "c d"], pa.string()),
        (["a=b", ""], ["a=b", ""], pa.string()),
    ],
)
def test_folders_make_up_a_column_of_whole_numbers_or_else_of_text(
    values: list[str], columns: list[Any], arrow: pa.DataType, tmp_path: Path
) -> None:
    for value in values:
        write(tmp_path, f"k={value}")
    source = open_source(str(tmp_path), "data.train")

    assert source.schema.field("k").type == arrow
    assert columns_of(tmp_path, "k") == {"k": [column for _, column in sorted(zip(values, columns, strict=True))]}
    assert set(columns_of(tmp_path, "k", "x")) == {"k", "x"}


@pytest.mark.parametrize("values", [["1067", "-9"], ["1067", "__HIVE_DEFAULT_PARTITION__"]])
def test_whole_numbers_are_text_again_where_another_dataset_has_text(values: list[str], tmp_path: Path) -> None:
    for value in values:
        write(tmp_path, f"plz={value}")
    source = open_source(str(tmp_path), "data.train").typed({"plz": pa.string(), "x": pa.string()})

    assert source.schema.types == [pa.int64(), pa.string()]
    found = read_rows(source, 0, 2, ["plz"])["plz"].to_pylist()
    assert found == [None if value.startswith("_") else value for value in sorted(values)]


def test_folders_are_read_as_by_arrow_s_datasets(tmp_path: Path) -> None:
    for place, folder in enumerate(["year=2024/town=Aachen", "year=2024/town=Bonn", "year=2025/town=Celle/more"]):
        write(tmp_path, folder, {"x": [place, place + 10]})

    found = columns_of(tmp_path, "x", "year", "town")

    table = pa_dataset.dataset(tmp_path, partitioning="hive").to_table(columns=["x", "year", "town"]).sort_by("town")
    assert found == table.to_pydict()


def test_only_folders_below_the_named_one_count(tmp_path: Path) -> None:
    write(tmp_path, "split=train/year=2024")

    assert open_source(str(tmp_path / "split=train"), "data.train").schema.names == ["x", "year"]
    assert open_source(str(tmp_path / "split=train" / "*" / "*.parquet"), "data.train").schema.names == ["x", "year"]
    assert open_source(str(tmp_path / "split=*" / "year=2024" / "*"), "data.train").schema.names == ["x", "split", "year"]


@pytest.mark.parametrize("order", [("a", "k=1/b"), ("k=1/a", "b")])
def test_all_files_lie_in_folders_of_the_same_columns(order: tuple[str, str], tmp_path: Path) -> None:
    first, second = (write(tmp_path, folder) for folder in order)
    without, with_it = sorted([first, second], key=lambda path: "k=1" in str(path))

    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path), "data.train")
    assert str(caught.value) == f"{without}: lies in no folder 'k=…', but {with_it} does"


def test_a_column_has_one_value_and_one_place(tmp_path: Path) -> None:
    path = write(tmp_path / "twice", "k=1/k=2")
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path / "twice"), "data.train")
    assert str(caught.value) == f"{path}: lies in two folders 'k=…'; a column has one value"

    path = write(tmp_path / "both", "x=1")
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path / "both"), "data.train")
    assert str(caught.value) == f"{path}: has a column 'x' and lies in a folder 'x=…'; rename one of them"
