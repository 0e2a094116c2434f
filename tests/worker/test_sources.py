import re
from collections.abc import Callable
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import DataError, JobError
from worker.sources import Source, count_rows, iterate, open_source, read_rows

GROUP_ROWS = 15
NAMES = ["%.parquet", "%.pq", "%.arrow", "lz4-%.arrow", "zstd-%.feather", "lz4-%.ipc", "%.csv", "%.csv.gz"]
BLOCK_BYTES = 1 << 20
"""A CSV's types are guessed from so many bytes at its beginning."""


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


def open_counted(path: Path | str) -> Source:
    source = open_source(str(path), "data.train")
    return source.counted({uncounted: count_rows(uncounted) for uncounted in source.uncounted})


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


def test_a_dataset_is_iterated_in_order(dataset: Source) -> None:
    tables = list(iterate(dataset, ["text", "whole"]))

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
    assert source.uncounted == ([path] if ".csv" in name else [])
    assert source.counted({path: 100}).rows == 100


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


def test_a_uri_is_refused() -> None:
    assert refusal("s3://bucket/rows.parquet", JobError).startswith("data.train: s3://bucket/rows.parquet is a URI; accepted are")


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
    "content",
    [b"", b"x,y\n1,2\n3\n", b"x,y\n1,2\n3,4,5\n", b"x,\xff\xfe\n1,2\n"],
    ids=["empty", "short row", "long row", "undecodable name"],
)
def test_a_malformed_csv_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)

    assert refusal(path).startswith(f"{path}: can't be read as CSV: ")


@pytest.mark.parametrize("row", ["1\n", "1,2,3\n"])
def test_a_ragged_row_far_down_a_csv_is_found_when_the_rows_are_counted(row: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("x,y\n" + "1,2\n" * (BLOCK_BYTES // 3) + row)
    assert open_source(str(path), "data.train").schema.names == ["x", "y"]

    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: can't be read as CSV: .*[Ee]xpected 2 columns"):
        count_rows(str(path))


@pytest.mark.parametrize("name", NAMES)
def test_files_that_lose_rows_during_a_run_are_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name.replace("%", "rows"), {"x": np.arange(100)})
    source = open_counted(path)
    write(path, {"x": np.arange(70)})

    assert read_rows(source, 10, 20, ["x"])["x"].to_pylist() == list(range(10, 20))
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: rows are missing; the files must not change during a run$"):
        read_rows(source, 60, 80, ["x"])


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
        ("csv", ["one"], "type string, but int64"),
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
    source = open_source(str(path), "data.train").with_numbers(["x", "z"])
    assert source.schema.types == [pa.float64(), pa.int64(), pa.float64()]

    counted = source.counted({str(path): count_rows(str(path))})

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


def test_only_the_types_of_csv_are_widened(tmp_path: Path) -> None:
    source = open_source(str(write(tmp_path / "rows.parquet", {"x": [1]})), "data.train")

    assert source.with_numbers(["x"]) == source


def test_quoted_line_breaks_may_lie_across_the_blocks_of_a_csv(tmp_path: Path) -> None:
    rows = BLOCK_BYTES // 40
    texts = [f"{row}\n" * 10 for row in range(rows)]
    path = write(tmp_path / "rows.csv", {"x": range(rows), "text": texts})
    assert path.stat().st_size > BLOCK_BYTES
    source = open_counted(path)

    assert source.rows == rows
    assert read_rows(source, 0, rows, ["text"])["text"].to_pylist() == texts


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbfx,y\r\n1,2\r\n")

    assert read_all(tmp_path / "rows.csv").to_pydict() == {"x": [1], "y": [2]}


def test_empty_fields_are_null_and_the_same_rows_come_gzipped(tmp_path: Path) -> None:
    columns = {"x": [1.5, None, 2.0], "text": ["a", "b", None]}
    plain = write(tmp_path / "rows.csv", columns)

    assert read_all(plain).to_pydict() == columns
    assert read_all(write(tmp_path / "rows.csv.gz", columns)).equals(read_all(copy(plain, tmp_path / "copy.csv")))
