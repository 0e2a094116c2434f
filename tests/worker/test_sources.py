import gzip
import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from shutil import copy
from socket import gethostname
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.csv_dialect import DEFAULT_CSV
from worker.csv_file import BLOCK_BYTES
from worker.errors import DataError, JobError
from worker.formats import KEPT_FOOTERS, opened
from worker.sources import CsvCount, Source, Version, count_rows, open_source, read_batches, read_rows
from worker.stores import DEFAULT_STORAGE, StorageSpec, locate

GROUP_ROWS = 15
NAMES = ["%.parquet", "%.pq", "%.arrow", "lz4-%.arrow", "zstd-%.feather", "lz4-%.ipc", "%.csv", "%.csv.gz"]


def write(path: Path, columns: Any) -> Path:
    """Writes columns as the kind of file that the name says, in row groups or batches of GROUP_ROWS rows."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    compression = path.name.partition("-")[0] if "-" in path.name else None
    with pa.OSFile(str(path), "wb") as file:
        if path.suffix in (".parquet", ".pq", ".PARQUET"):
            pq.write_table(table, file, row_group_size=GROUP_ROWS, use_dictionary=False)
        elif path.suffix in (".arrow", ".feather", ".ipc"):
            with pa.ipc.new_file(file, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
                writer.write_table(table, max_chunksize=GROUP_ROWS)
        elif path.suffix == ".csv":
            pa_csv.write_csv(table, file)
        else:
            with pa.CompressedOutputStream(file, "gzip") as compressed:
                pa_csv.write_csv(table, compressed)
    return path


def write_text(path: Path, content: str, encoding: str = "utf-8") -> Path:
    """Writes text as it is, compressed where the name says so."""
    plain = content.encode(encoding)
    path.write_bytes(gzip.compress(plain) if path.suffix == ".gz" else plain)
    return path


def open_counted(path: Path | str) -> Source:
    source = open_source(str(path), "data.train")
    doubtful = {field.name: field.type for field in source.schema}
    return source.counted({file.path: count_rows(file, DEFAULT_STORAGE, doubtful) for file in source.uncounted})


def read_all(path: Path | str) -> pa.Table:
    source = open_counted(path)
    return read_rows(source, 0, source.rows, source.schema.names)


def refusal(path: Path | str, error: type[Exception] = DataError) -> str:
    """Returns the one sentence that refuses the data."""
    with pytest.raises(error) as caught:
        read_all(path)
    message = str(caught.value)
    assert message.isprintable()
    return message


WHOLE = pa.table(
    {
        "decimal": np.random.default_rng(1).normal(size=100),
        "whole": np.arange(100) * 7 - 300,
        "flag": np.arange(100) % 3 == 0,
        "text": [f'{row}, "quoted"\nand broken' for row in range(100)],
    }
)


@pytest.fixture(scope="module", params=NAMES)
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """WHOLE in three files, one of them of a single row."""
    folder = tmp_path_factory.mktemp("dataset")
    for letter, first, last in (("a", 0, 47), ("b", 47, 48), ("c", 48, 100)):
        write(folder / request.param.replace("%", letter), WHOLE.slice(first, last - first))
    return open_counted(folder)


@given(
    bounds=st.lists(st.integers(0, WHOLE.num_rows), min_size=2, max_size=2).map(sorted),
    columns=st.lists(st.sampled_from(WHOLE.column_names), min_size=1, unique=True),
)
def test_any_range_of_rows_is_that_slice_of_the_whole_table(dataset: Source, bounds: list[int], columns: list[str]) -> None:
    start, stop = bounds

    found = read_rows(dataset, start, stop, columns)

    assert found.equals(WHOLE.slice(start, stop - start).select(columns))


@pytest.mark.parametrize("name", NAMES)
def test_ranges_of_rows_are_the_same_in_a_store(name: str, store: Any, tmp_path: Path) -> None:
    for letter, first, last in (("a", 0, 47), ("b", 47, 48), ("c", 48, 100)):
        path = write(tmp_path / name.replace("%", letter), WHOLE.slice(first, last - first))
        address = store.put(f"rows/{path.name}", path)
    storage = StorageSpec(**store.storage)
    source = open_source(address.rpartition("/")[0], "data.train", storage)
    assert [file.path.rpartition("/")[0] for file in source.files] == [f"s3://{store.bucket}/rows"] * 3
    source = source.counted({file.path: count_rows(file, storage, {}) for file in source.uncounted})

    for start, stop in ((0, 100), (3, 5), (40, 60), (99, 100), (48, 48)):
        found = read_rows(source, start, stop, ["whole", "text"])
        assert found.equals(WHOLE.slice(start, stop - start).select(["whole", "text"]))


def test_a_store_is_asked_for_a_row_group_s_columns_together(store: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", {f"column {number}": np.arange(GROUP_ROWS) for number in range(30)})
    source = open_source(store.put("rows.parquet", path), "data.train", StorageSpec(**store.storage))
    store.requests.clear()

    read_rows(source, 0, GROUP_ROWS, source.schema.names)

    assert [request.split()[0] for request in store.requests].count("GET") <= 4


def test_of_many_files_only_those_that_hold_the_rows_are_looked_at(tmp_path: Path) -> None:
    for number, rows in enumerate((0, 3, 0, 2, 0)):
        write(tmp_path / f"{number}.parquet", {"n": pa.array([10 * number + row for row in range(rows)], pa.int64())})
    source = open_source(str(tmp_path), "data.train")
    for other in (0, 1, 2, 4):
        (tmp_path / f"{other}.parquet").unlink()

    assert read_rows(source, 3, 5, ["n"])["n"].to_pylist() == [30, 31]
    assert read_rows(source, 5, 5, ["n"]).num_rows == read_rows(source, 0, 0, ["n"]).num_rows == 0


def test_a_dataset_is_iterated_in_order(dataset: Source) -> None:
    tables = list(read_batches(dataset, 0, dataset.rows, ["text", "whole"]))

    assert pa.concat_tables(tables).equals(WHOLE.select(["text", "whole"]))


def test_rows_are_counted_by_file_and_named_from_1(dataset: Source) -> None:
    paths = [file.path for file in dataset.files]

    assert (dataset.rows, dataset.counts) == (100, [47, 1, 52])
    assert [dataset.where(row) for row in (0, 46, 47, 48, 99)] == [
        f"{paths[0]}: row 1",
        f"{paths[0]}: row 47",
        f"{paths[1]}: row 1",
        f"{paths[2]}: row 1",
        f"{paths[2]}: row 52",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_only_csv_is_left_to_be_counted_and_its_rows_are_not_read_before(name: str, tmp_path: Path) -> None:
    path = str(write(tmp_path / name.replace("%", "rows"), WHOLE))
    source = open_source(path, "data.train")

    assert source.schema.equals(WHOLE.schema)
    assert [file.path for file in source.uncounted] == ([path] if ".csv" in name else [])
    assert source.counted({path: CsvCount(100)}).rows == 100


@pytest.mark.parametrize("name", NAMES)
def test_files_without_rows_add_none(name: str, tmp_path: Path) -> None:
    numbers = WHOLE.select(["decimal"])
    write(tmp_path / name.replace("%", "b"), numbers)
    write(tmp_path / name.replace("%", "c"), numbers.schema.empty_table())

    assert read_all(tmp_path).equals(numbers)
    assert read_all(tmp_path / name.replace("%", "c")).num_rows == 0


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A folder of files in an order of their own, among things that are no data."""
    for row, name in enumerate(["a.parquet", "b/c.PARQUET", "b/d.pq", "e[1].parquet", "e1.parquet"]):
        write(tmp_path / name, {"row": [row]})
    (tmp_path / "README.txt").write_text("five files")
    for name in (".hidden.parquet", "_written.parquet", ".checkpoints/a.parquet", "_temporary/0/a.parquet"):
        write(tmp_path / name, {"row": [99]})
    return tmp_path


@pytest.mark.parametrize(
    ("path", "rows"),
    [
        ("", [0, 1, 2, 4, 3]),
        ("a.parquet", [0]),
        ("b", [1, 2]),
        ("b/*.p*", [2]),
        ("b/*", [1, 2]),
        ("[ab]*.parquet", [0]),
        ("**/[b-d].*", [1, 2]),
        ("e[1].parquet", [3]),
        ("e[12].parquet", [4]),
        ("e?.parquet", [4]),
        ("e*.parquet", [4, 3]),
    ],
)
def test_a_path_is_a_file_a_folder_or_a_glob_with_files_in_the_order_of_their_names(
    parts: Path, path: str, rows: list[int]
) -> None:
    assert read_all(parts / path)["row"].to_pylist() == rows


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("z.parquet", r"no such file or folder: \S+z\.parquet; accepted are Parquet, Arrow IPC/Feather and CSV files"),
        ("z*.csv", r"no such file or folder: \S+z\*\.csv; accepted are"),
        ("hollow", r"no files in \S+hollow; accepted are"),
        ("README.txt", r"\S+README\.txt is of no known kind; accepted are files ending in \.parquet, .*\.csv\.gz$"),
        ("mixed", r"\S+mixed holds files of several kinds; name one kind with a glob such as \*\.parquet"),
        ("mixed/*", r"\S+ holds files of several kinds"),
    ],
)
def test_a_path_without_data_of_one_known_kind_is_refused_by_its_key(parts: Path, path: str, problem: str) -> None:
    (parts / "hollow").mkdir()
    write(parts / "mixed" / "a.csv", {"x": [1]})
    write(parts / "mixed" / "b.parquet", {"x": [1]})

    assert re.match(f"data.train: {problem}", refusal(parts / path, JobError))


@pytest.mark.parametrize("name", ["%.PARQUET", "%.CSV.GZ", "%.Csv"])
def test_suffixes_count_in_any_case(name: str, tmp_path: Path) -> None:
    written = write(tmp_path / f"rows{name[1:].lower()}", {"x": [1, 2]})

    assert read_all(written.rename(tmp_path / name.replace("%", "Rows")))["x"].to_pylist() == [1, 2]


# Which parts of a file are decoded


def overwrite(path: Path, places: slice, value: int = 0xFF) -> None:
    content = bytearray(path.read_bytes())
    content[places] = bytes([value]) * len(content[places])
    path.write_bytes(content)


@pytest.mark.parametrize("group", range(4))
def test_only_the_needed_row_groups_and_columns_of_parquet_are_decoded(group: int, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", {"x": np.arange(60.0), "y": np.arange(60.0)})
    column = pq.read_metadata(path).row_group(group).column(0)
    overwrite(path, slice(column.data_page_offset, column.data_page_offset + column.total_compressed_size))
    source = open_counted(path)
    first, last = group * GROUP_ROWS, (group + 1) * GROUP_ROWS

    assert read_rows(source, 0, first, ["x", "y"])["x"].to_pylist() == list(range(first))
    assert read_rows(source, last, 60, ["x", "y"])["x"].to_pylist() == list(range(last, 60))
    assert read_rows(source, 0, 60, ["y"])["y"].to_pylist() == list(range(60))
    for start, stop in ((first, first + 1), (last - 1, last)):
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}: can't be read as Parquet: "):
            read_rows(source, start, stop, ["x"])


@pytest.mark.parametrize(
    ("compression", "magic"), [("lz4", b"\x04\x22\x4d\x18"), ("zstd", b"\x28\xb5\x2f\xfd")], ids=["lz4", "zstd"]
)
@pytest.mark.parametrize("batch", range(4))
def test_batches_of_arrow_after_the_needed_ones_are_not_decoded(
    batch: int, compression: str, magic: bytes, tmp_path: Path
) -> None:
    path = write(tmp_path / f"{compression}-rows.arrow", {"x": np.repeat(np.arange(4.0), GROUP_ROWS)})
    place = [found.start() for found in re.finditer(re.escape(magic), path.read_bytes())][batch]
    overwrite(path, slice(place, place + 4))
    source = open_counted(path)
    first, last = batch * GROUP_ROWS, (batch + 1) * GROUP_ROWS

    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: can't be read as Arrow IPC: "):
        read_rows(source, first, last, ["x"])
    assert read_rows(source, 0, first, ["x"])["x"].to_pylist() == sorted([*range(batch)] * GROUP_ROWS)


# Damaged files


def emptied(content: bytes) -> bytes:
    return b""


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


def scrambled(content: bytes) -> bytes:
    return np.random.default_rng(1).bytes(len(content))


@pytest.mark.parametrize("damage", [emptied, halved, scrambled])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "%.csv"])
def test_a_damaged_file_is_named(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    numbers = {"x": np.random.default_rng(1).normal(size=100), "y": np.arange(100)}
    for letter in "ab":
        path = write(tmp_path / name.replace("%", letter), numbers)
    path.write_bytes(damage(path.read_bytes()))
    form = "CSV" if ".csv" in name else "Parquet" if path.suffix in (".parquet", ".pq") else "Arrow IPC"

    assert refusal(tmp_path).startswith(f"{path}: can't be read as {form}: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "can't be read as CSV: "),
        (b"x,\xff\xfe\n1,2\n", "its header is not UTF-8; convert the file, "),
        (b"x,y\n1,2\n3\n", "row 2 has 1 fields, but the header 2; mend the row"),
        (b"x,y\n1,2\n3,4,5\n", "row 2 has 3 fields, but the header 2; mend the row"),
    ],
    ids=["empty", "undecodable name", "short row", "long row"],
)
def test_a_malformed_csv_is_named(content: bytes, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)

    assert refusal(path).startswith(f"{path}: {problem}")


@pytest.mark.parametrize("row", ["1\n", "1,2,3\n"])
def test_a_ragged_row_far_down_a_csv_is_found_when_the_rows_are_counted(row: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("x,y\n" + "1,2\n" * (BLOCK_BYTES // 3) + row)
    assert open_source(str(path), "data.train").schema.names == ["x", "y"]

    problem = rf"row {BLOCK_BYTES // 3 + 1} has {row.count(',') + 1} fields, but the header 2; mend the row$"
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: {problem}"):
        open_counted(path)


# Files that change


CHANGES: dict[str, Any] = {
    "fewer rows": {"x": np.arange(70), "y": np.arange(70)},
    "more rows": {"x": np.arange(130), "y": np.arange(130)},
    "another type": {"x": np.arange(100) / 2, "y": np.arange(100)},
    "another column": {"z": np.arange(100), "y": np.arange(100)},
    "other values": {"x": np.arange(100)[::-1].copy(), "y": np.arange(100)},
}


def changed(path: Path) -> str:
    return f"{path}: has changed since the run began; the files of a run must stay as they are"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_changes_during_a_run_is_refused(name: str, change: str, tmp_path: Path) -> None:
    path = write(tmp_path / name.replace("%", "rows"), {"x": np.arange(100), "y": np.arange(100)})
    uncounted = open_source(str(path), "data.train")
    source = open_counted(path)
    before = path.stat().st_mtime_ns
    write(path, CHANGES[change])
    os.utime(path, ns=(before + 1, before + 1))

    for read in (lambda: read_rows(source, 10, 20, ["x"]), lambda: count_rows(uncounted.files[0], DEFAULT_STORAGE, {})):
        with pytest.raises(DataError) as caught:
            read()
        assert str(caught.value) == changed(path)


def test_the_metadata_of_a_parquet_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_counted(write(tmp_path / "rows.parquet", {"x": np.arange(100)}))
    parse, parsed = pq.read_metadata, []

    def counted(handle: pa.NativeFile) -> pq.FileMetaData:
        parsed.append(handle)
        return parse(handle)

    monkeypatch.setattr(pq, "read_metadata", counted)

    for first in range(0, 100, 10):
        assert read_rows(source, first, first + 10, ["x"])["x"].to_pylist() == list(range(first, first + 10))
    assert len(parsed) == 1


def test_a_file_that_took_anothers_place_is_read_by_its_own_metadata(tmp_path: Path) -> None:
    for rows in (100, 40, 130, 100):
        path = write(tmp_path / "rows.parquet", {"x": np.arange(rows)})
        assert read_all(path)["x"].to_pylist() == list(range(rows))


def test_more_files_than_metadata_is_kept_of_can_be_read_in_turns(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{rows}.parquet", {"x": np.arange(rows)}) for rows in range(20, 20 + 2 * KEPT_FOOTERS)]
    sources = [open_counted(path) for path in paths]
    for source in [*sources, *sources]:
        assert read_rows(source, 0, source.rows, ["x"])["x"].to_pylist() == list(range(source.rows))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_changes_while_it_is_read_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name.replace("%", "rows"), {"x": np.arange(100)})
    tables = read_batches(open_counted(path), 0, 100, ["x"])
    next(tables)
    path.rename(tmp_path / "before")
    write(path, {"x": np.arange(100)})

    with pytest.raises(DataError) as caught:
        list(tables)
    assert str(caught.value) == changed(path)


@pytest.mark.parametrize("change", ["fewer rows", "another type", "another column"])
@pytest.mark.parametrize("name", ["%.parquet", "%.arrow"])
def test_a_copy_on_another_machine_has_its_own_time_but_must_be_the_same_otherwise(
    name: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / name.replace("%", "rows"), {"x": np.arange(100), "y": np.arange(100)})
    source = open_counted(path)
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    os.utime(path, (1, 1))

    assert read_rows(source, 10, 20, ["x"])["x"].to_pylist() == list(range(10, 20))
    write(path, CHANGES[change])
    same_size = [replace(file, version=Version(path.stat().st_size, "then", "here")) for file in source.files]
    for found in (source, replace(source, files=tuple(same_size))):
        with pytest.raises(DataError) as caught:
            read_rows(found, 60, 80, ["x"])
        assert str(caught.value) == changed(path)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (Version(7, "then", "here"), True),
        (Version(7, "later", "here"), False),
        (Version(7, "later", "there"), True),
        (Version(8, "then", "here"), False),
        (Version(8, "later", "there"), False),
    ],
)
def test_versions_are_compared_by_size_and_on_one_machine_by_time(other: Version, same: bool) -> None:
    assert Version(7, "then", "here").same(other) is same


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_gone_is_named(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name.replace("%", "rows"), {"x": np.arange(100)})
    source = open_counted(path)
    path.unlink()

    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: is not to be found on {gethostname()}; the files of a run"):
        read_rows(source, 0, 100, ["x"])


# Columns of several files


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_files_may_order_their_columns_differently_and_have_more_of_them(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"a.{suffix}", {"x": [1.5, 2.5], "y": [1, 2]})
    write(tmp_path / f"b.{suffix}", {"extra": ["e"], "y": [3], "x": [3.5]})

    assert read_all(tmp_path).to_pydict() == {"x": [1.5, 2.5, 3.5], "y": [1, 2, 3]}


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_a_column_missing_in_a_later_file_is_named_with_both_files(suffix: str, tmp_path: Path) -> None:
    first = write(tmp_path / f"a.{suffix}", {"x": [1], "y": [2]})
    second = write(tmp_path / f"b.{suffix}", {"x": [1]})

    assert refusal(tmp_path) == f"{second}: has no column 'y', which {first} has"


@pytest.mark.parametrize(
    ("suffix", "values", "types"),
    [
        ("parquet", [1.5], "type double, but int64"),
        ("arrow", pa.array([1], pa.int32()), "type int32, but int64"),
        ("csv", [datetime(2024, 2, 29)], "type timestamp[ns], but int64"),
    ],
)
def test_a_column_of_another_type_in_a_later_file_is_named_with_both_files(
    suffix: str, values: Any, types: str, tmp_path: Path
) -> None:
    first = write(tmp_path / f"a.{suffix}", {"x": [1]})
    second = write(tmp_path / f"b.{suffix}", {"x": values})

    assert refusal(tmp_path) == f"{second}: column 'x' has {types} in {first}"


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv"])
def test_two_columns_of_one_name_are_refused(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{suffix}", pa.table([[1], [2], [3]], names=["x", "y", "x"]))

    assert re.match(rf"{re.escape(str(path))}: .*\bx\b", refusal(path))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_files_whose_schemas_differ_in_metadata_or_nullability_alone_are_one_dataset(suffix: str, tmp_path: Path) -> None:
    plain = pa.table({"x": [1, 2]})
    write(tmp_path / f"a.{suffix}", plain)
    write(tmp_path / f"b.{suffix}", plain.cast(pa.schema([pa.field("x", pa.int64(), nullable=False)])))
    write(tmp_path / f"c.{suffix}", plain.replace_schema_metadata({"written": "elsewhere"}))

    assert read_all(tmp_path)["x"].to_pylist() == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_dictionaries_may_differ_from_file_to_file(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"a.{suffix}", {"kind": pa.array(["ant", "bee"]).dictionary_encode()})
    write(tmp_path / f"b.{suffix}", {"kind": pa.array(["cat", "bee"]).dictionary_encode()})

    assert read_all(tmp_path)["kind"].to_pylist() == ["ant", "bee", "cat", "bee"]


def test_names_with_dots_brackets_and_spaces_are_plain_names(tmp_path: Path) -> None:
    columns = {"a": [1], "a.b": [2], "x[0]": [3], " spaced ": [4], "": [5]}
    source = open_counted(write(tmp_path / "rows.parquet", columns))

    for name, values in columns.items():
        assert read_rows(source, 0, 1, [name]).to_pydict() == {name: values}


# CSV, whose types are guesses


def test_whole_numbers_in_the_first_block_of_a_csv_may_be_followed_by_decimals(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows = BLOCK_BYTES // 4
    path.write_text("x,y,z\n" + "1,2,\n" * rows + "0.5,3,7\n")
    source = open_source(str(path), "data.train")
    assert source.schema.types == [pa.int64(), pa.int64(), pa.null()]

    counted = source.counted({str(path): count_rows(source.files[0], DEFAULT_STORAGE, {})})
    counted = counted.typed({"x": pa.float64(), "z": pa.float64(), "another": pa.float64()})

    assert counted.rows == rows + 1
    assert read_rows(counted, rows - 1, rows + 1, ["x", "y", "z"]).to_pydict() == {
        "x": [1.0, 0.5],
        "y": [2, 3],
        "z": [None, 7.0],
    }


def test_whole_numbers_in_one_csv_meet_decimals_and_gaps_in_others(tmp_path: Path) -> None:
    for name, content in (("a", "x,y\n1,2\n"), ("b", "x,y\n0.5,3\n"), ("c", "y,x\n4,\n")):
        (tmp_path / f"{name}.csv").write_text(content)

    assert read_all(tmp_path).to_pydict() == {"x": [1.0, 0.5, None], "y": [2, 3, 4]}


def test_only_the_types_of_csv_are_guesses(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "rows.parquet", {"x": [1]})), "data.train")

    assert source.typed({"x": pa.float64()}) == source


@pytest.mark.parametrize(
    ("beginning", "end", "guess", "holds"),
    [
        ("12", "7", pa.int64(), True),
        (" 12", " 7 ", pa.int64(), True),
        ("12", "", pa.int64(), True),
        ("12", "A1", pa.int64(), False),
        ("12", "1.5", pa.int64(), False),
        ("true", "FALSE", pa.bool_(), True),
        ("true", "maybe", pa.bool_(), False),
        ("1.5", "2e3", pa.float64(), True),
        ("2024-02-29", "2024-02-30", pa.date32(), False),
        ("", "A1", pa.int64(), False),
        ("", "7", pa.int64(), True),
    ],
)
def test_a_guess_is_held_against_all_rows_when_they_are_counted(
    beginning: str, end: str, guess: pa.DataType, holds: bool, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    rows = BLOCK_BYTES // len(f"{beginning},1\n") + 1
    path.write_text("x,y\n" + f"{beginning},1\n" * rows + f"{end},1\n")
    file = open_source(str(path), "data.train").files[0]

    assert count_rows(file, DEFAULT_STORAGE, {"x": guess}) == CsvCount(rows + 1, {} if holds else {"x": pa.string()})
    assert count_rows(file, DEFAULT_STORAGE, {}) == CsvCount(rows + 1)


@pytest.mark.parametrize("contents", [("A1", "12"), ("12", "A1"), ("12", "", "A1"), ("", "12", "A1")])
def test_what_is_text_in_one_csv_is_text_in_all(contents: tuple[str, ...], tmp_path: Path) -> None:
    for place, content in enumerate(contents):
        (tmp_path / f"{place}.csv").write_text(f"x,y\n{content},1\n")

    assert read_all(tmp_path)["x"].to_pylist() == [content or None for content in contents]


@pytest.mark.parametrize(
    ("arrow", "kind", "advice"),
    [
        (pa.float64(), "number", "mend the row, or make the column one of categories"),
        (pa.int64(), "whole number", "mend the row, or make the column one of categories"),
        (pa.bool_(), "boolean", "mend the row, or make the column one of categories"),
        (pa.date32(), "date", "mend the row"),
        (pa.time32("s"), "time of day", "mend the row"),
        (pa.timestamp("ns", "UTC"), "timestamp", "mend the row"),
    ],
)
def test_what_is_not_what_a_csv_s_column_must_hold_is_named_by_row_and_column(
    arrow: pa.DataType, kind: str, advice: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text("x,y\n,1\n")
    (tmp_path / "b.csv").write_text('y,x\n"1\n1",\n2,A1\n')
    source = open_counted(tmp_path).typed({"x": arrow})

    with pytest.raises(DataError) as caught:
        read_rows(source, 0, 3, ["x"])
    told = f"row 2, column 'x': 'A1' is no {kind}, as the column's other values are; {advice}"
    assert str(caught.value) == f"{tmp_path / 'b.csv'}: {told}"


@pytest.mark.parametrize(
    ("values", "arrow"),
    [
        (["", "NA"], pa.null()),
        (["7"], pa.int64()),
        (["7", "0.5"], pa.float64()),
        (["0.5", "", "7"], pa.float64()),
        (["2024-02-29"], pa.date32()),
        (["2024-02-29 11:30", "2024-02-29T12:00"], pa.timestamp("s")),
        (["10:30"], pa.time32("s")),
        (["true", "false"], pa.bool_()),
        (["7", "A1"], pa.string()),
        (["2024-02-29", "7"], pa.string()),
        (["7", "2024-02-29"], pa.string()),
    ],
)
@pytest.mark.parametrize("files", [1, 3])
def test_a_column_without_values_at_the_beginning_takes_the_type_of_what_follows(
    files: int, values: list[str], arrow: pa.DataType, tmp_path: Path
) -> None:
    gap = f",{'y' * 1000}\n" * (BLOCK_BYTES // 1000)
    for number in range(files):
        # In one file, each value is in a block of its own; of several, each has some of the values.
        of_file = values if files == 1 else values[number : number + 1]
        (tmp_path / f"{number}.csv").write_text("x,y\n" + gap + "".join(f"{value},y\n{gap}" for value in of_file))
    source = open_source(str(tmp_path), "data.train")
    assert source.schema.types == [pa.null(), pa.string()]

    source = open_counted(tmp_path)

    assert source.schema.types == [arrow, pa.string()]
    found = read_rows(source, 0, source.rows, ["x"])["x"].drop_null()
    assert len(found) == sum(value not in ("", "NA") for value in values)


def test_quoted_line_breaks_may_lie_across_the_blocks_of_a_csv(tmp_path: Path) -> None:
    rows = BLOCK_BYTES // 40
    texts = [f"{row}\n" * 10 for row in range(rows)]
    path = write(tmp_path / "rows.csv", {"x": range(rows), "text": texts})
    assert path.stat().st_size > BLOCK_BYTES
    source = open_counted(path)

    assert source.rows == rows
    assert read_rows(source, 0, rows, ["text"])["text"].to_pylist() == texts


@pytest.mark.parametrize("more", [-1, 0, 1, 2])
def test_a_csv_may_end_where_a_block_does(more: int, tmp_path: Path) -> None:
    rows = BLOCK_BYTES // len("1,2\n") - 10
    begun = "x,y\n" + "1,2\n" * rows + "3,"
    end = "z" * (BLOCK_BYTES + more - len(begun))
    (tmp_path / "rows.csv").write_text(begun + end)

    found = read_all(tmp_path)

    assert found.num_rows == rows + 1
    assert found["y"][-1].as_py() == end


def open_files(folder: Path) -> list[str]:
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [found for link in links if os.path.lexists(link) and (found := os.readlink(link)).startswith(str(folder))]


def test_a_csv_that_is_read_ahead_by_a_thread_stays_open_as_long_as_somebody_has_it(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", {"x": [1]})
    with opened(locate(str(path), DEFAULT_STORAGE), "CSV", DEFAULT_CSV) as handle:
        pass
    assert open_files(tmp_path) == [str(path)]
    assert handle.read() == path.read_bytes()

    del handle
    assert open_files(tmp_path) == []


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbfx,y\r\n1,2\r\n")

    assert read_all(tmp_path / "rows.csv").to_pydict() == {"x": [1], "y": [2]}


def test_empty_fields_are_null_and_the_same_rows_come_gzipped(tmp_path: Path) -> None:
    columns = {"x": [1.5, None, 2.0], "text": ["a", "b", None]}
    plain = write(tmp_path / "rows.csv", columns)

    assert read_all(plain).to_pydict() == columns
    assert read_all(write(tmp_path / "rows.csv.gz", columns)).equals(read_all(copy(plain, tmp_path / "copy.csv")))


def test_what_is_decoded_of_many_row_groups_does_not_pile_up(tmp_path: Path) -> None:
    rows, group = 400_000, 10_000
    columns = {f"x{place}": np.random.default_rng(place).random(rows) for place in range(4)}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=group, use_dictionary=False)
    source = open_source(str(tmp_path / "rows.parquet"), "data.train")
    before, most, read = pa.total_allocated_bytes(), 0, 0

    for table in read_batches(source, 5, rows, list(columns)):
        most, read = max(most, pa.total_allocated_bytes() - before), read + table.num_rows

    assert read == rows - 5
    assert most < 6 * group * 4 * 8  # a few groups of 4 columns of 8 bytes, of 40


def test_arrow_that_is_mapped_into_memory_does_not_count_as_the_process_s(tmp_path: Path) -> None:
    table = pa.table({f"x{place}": np.zeros(1_000_000) for place in range(8)})
    for name, most_rows in (("large.arrow", None), ("small.arrow", GROUP_ROWS * 1000)):
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=most_rows)
        source = open_source(str(tmp_path / name), "data.train")

        resident = [_mapped_bytes(name) for _ in read_batches(source, 0, source.rows, table.schema.names)]

        assert len(resident) > 7
        assert max(resident) < table.nbytes / 4


def _mapped_bytes(name: str) -> int:
    """Returns how much of the mapped files of this name is resident in this process."""
    maps = Path("/proc/self/smaps").read_text()
    return 1024 * sum(int(rss) for rss in re.findall(rf"/{re.escape(name)}\n(?:.*\n)*?Rss: +(\d+) kB", maps))


def test_text_in_views_is_read_as_text(tmp_path: Path) -> None:
    columns = {"text": pa.array(["red", None, "a colour of more than twelve letters"]), "y": [1, 2, 3]}
    path = write(tmp_path / "rows.arrow", {"text": columns["text"].cast(pa.string_view()), "y": columns["y"]})

    assert read_all(path).equals(pa.table(columns))


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\n"])
@pytest.mark.parametrize("between", ["\n", "\r"])
def test_a_quote_that_is_not_closed_takes_no_rows_in_silence(between: str, end: str, suffix: str, tmp_path: Path) -> None:
    content = between.join(["y,c", "2,a", '3,"b', "4,c", "5,d"])
    path = write_text(tmp_path / f"rows.{suffix}", content + end)
    source = open_source(str(path), "data.train")
    with pytest.raises(DataError, match=r"rows\.csv(\.gz)?: row 2, column 'c': has a quote that is not closed"):
        count_rows(source.files[0], DEFAULT_STORAGE, {})

    write_text(path, content + '"' + end)
    source = open_source(str(path), "data.train")
    assert count_rows(source.files[0], DEFAULT_STORAGE, {}) == CsvCount(2)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_quote_that_is_not_closed_and_takes_much_is_told(suffix: str, tmp_path: Path) -> None:
    path = write_text(tmp_path / f"rows.{suffix}", 'y,c\n2,a\n3,"b\n' + "4,c\n" * 600_000)
    source = open_source(str(path), "data.train")
    with pytest.raises(DataError, match=r"has a quote that is not closed, or a row of more than 1,048,576 bytes"):
        count_rows(source.files[0], DEFAULT_STORAGE, {})


def test_parquet_that_does_not_fit_its_checksums_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    values = np.arange(1000.0)
    pq.write_table(pa.table({"a": values}), path, write_page_checksum=True, use_dictionary=False, compression="none")
    content = path.read_bytes()
    place = content.index(values.tobytes()) + 4000
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    source = open_source(str(path), "data.train")
    with pytest.raises(DataError, match=r"rows\.parquet: can't be read as Parquet: .*CRC"):
        read_rows(source, 0, source.rows, ["a"])
