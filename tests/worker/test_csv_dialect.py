"""CSV files with other delimiters and decimals than those of the format's name, and in other encodings."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from worker.csv_dialect import NOT_UTF8, CsvSpec
from worker.csv_file import BLOCK_BYTES
from worker.errors import DataError, JobError
from worker.sources import Source, count_rows, open_source, read_rows
from worker.stores import DEFAULT_STORAGE, StorageSpec

GERMAN = "größe;ort;tag\n1,5;Köln;2024-02-29\n-2;Bonn;2024-03-01\n1e3;Ulm;\n"
GERMAN_COLUMNS = {"größe": [1.5, -2.0, 1000.0], "ort": ["Köln", "Bonn", "Ulm"]}


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    plain = content.encode(encoding)
    path.write_bytes(gzip.compress(plain) if path.suffix == ".gz" else plain)
    return path


def counted(source: Source, storage: StorageSpec = DEFAULT_STORAGE) -> Source:
    doubtful = {field.name: field.type for field in source.schema}
    return source.counted({file.path: count_rows(file, storage, doubtful) for file in source.uncounted})


def read(path: Path, spec: CsvSpec) -> dict[str, list[Any]]:
    source = counted(open_source(str(path), "data.train", csv=spec))
    found: dict[str, list[Any]] = read_rows(source, 0, source.rows, source.schema.names).to_pydict()
    return found


def refusal(path: Path, spec: CsvSpec | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read(path, spec or CsvSpec())
    message = str(caught.value)
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_table_is_read_with_the_delimiter_and_decimals_that_the_job_says(suffix: str, tmp_path: Path) -> None:
    found = read(write(tmp_path / f"rows.{suffix}", GERMAN), CsvSpec(delimiter=";", decimal=","))

    assert {name: found[name] for name in GERMAN_COLUMNS} == GERMAN_COLUMNS
    assert [str(day) for day in found["tag"]] == ["2024-02-29", "2024-03-01", "None"]


def test_a_store_s_table_is_read_as_the_job_says(store: Any, tmp_path: Path) -> None:
    address, storage = store.put("rows.csv.gz", write(tmp_path / "rows.csv.gz", GERMAN)), StorageSpec(**store.storage)

    source = counted(open_source(address, "data.train", storage, CsvSpec(delimiter=";", decimal=",")), storage)

    assert read_rows(source, 0, 3, list(GERMAN_COLUMNS)).to_pydict() == GERMAN_COLUMNS


@pytest.mark.parametrize(("value", "holds"), [("2,5", True), ("2.5", False), ("2", True), ("x", False)])
def test_a_guess_of_decimal_numbers_goes_by_the_decimal_sign(value: str, holds: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "x;y\n" + "1,5;1\n" * (BLOCK_BYTES // 6 + 1) + f"{value};1\n")
    source = open_source(str(path), "data.train", csv=CsvSpec(delimiter=";", decimal=","))
    assert source.schema.types == [pa.float64(), pa.int64()]

    assert counted(source).schema.types == [pa.float64() if holds else pa.string(), pa.int64()]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
@pytest.mark.parametrize(
    ("mark", "encoding", "told"),
    [
        (b"", "utf-16", "UTF-16"),
        (b"\xfe\xff", "utf-16-be", "UTF-16"),
        (b"", "utf-16-be", "UTF-16BE"),
        (b"", "utf-16-le", "UTF-16LE"),
        (b"", "utf-32", "UTF-32"),
    ],
)
def test_wide_characters_are_told_by_how_the_file_begins(
    mark: bytes, encoding: str, told: str, suffix: str, tmp_path: Path
) -> None:
    content = mark + "x,y\n1,2\n".encode(encoding)
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == "csv.gz" else content)

    assert refusal(path) == f"is {told}, and UTF-8 is accepted; convert it, as with iconv -f {told} -t UTF-8"


@pytest.mark.parametrize("before", [1, BLOCK_BYTES // 5 + 1])
def test_what_is_not_in_the_encoding_is_named_by_row_and_column(before: int, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "x,town\n" + "1,Ulm\n" * before + "2,Köln\n", "latin-1")

    assert refusal(path) == f"row {before + 1}, column 'town': {NOT_UTF8}"


def test_a_header_that_is_not_in_the_encoding_is_named(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "rows.csv", "größe,y\n1,2\n", "latin-1")) == f"its header {NOT_UTF8}"


def test_a_column_that_nobody_reads_may_be_in_any_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", "x,town\n1,Köln\n", "latin-1")
    source = open_source(str(path), "data.train")

    assert read_rows(source.counted({str(path): count_rows(source.files[0], DEFAULT_STORAGE, {})}), 0, 1, ["x"]).num_rows == 1


@pytest.mark.parametrize(
    ("content", "delimiter", "told"),
    [
        ("x;y\n1,5;2\n", ",", 'has ";" in it and no ","; set data.delimiter = ";"'),
        ("x\ty\n1\t2\n", ",", r'has "\t" in it and no ","; set data.delimiter = "\t"'),
        ("\r\nx|y\r\n1|2\r\n", ",", 'has "|" in it and no ","; set data.delimiter = "|"'),
        ("x,y\n1,2\n", ";", 'has "," in it and no ";"; set data.delimiter = ","'),
        ("x;y\r1;2\r", "\t", r'has ";" in it and no "\t"; set data.delimiter = ";"'),
        ('"x;y"\n1\n', ",", ""),
        ("x\n1;2\n", ",", ""),
        ("x;z,y\n1,2\n", ",", ""),
    ],
)
def test_a_header_with_another_delimiter_is_told_with_the_key_to_set(
    content: str, delimiter: str, told: str, tmp_path: Path
) -> None:
    path, spec = write(tmp_path / "rows.csv", content), CsvSpec(delimiter=delimiter)

    if told:
        advice = "in the job file (a trained model takes files written as those of its job), or put quotes around its one name"
        assert refusal(path, spec) == f"its header {told} {advice}"
    else:
        assert open_source(str(path), "data.train", csv=spec).schema.names


@pytest.mark.parametrize(
    ("keys", "key", "problem"),
    [
        ({"delimiter": ""}, "delimiter", 'must be one ASCII character such as ";", "\\t" or "|", and no quote, got ""'),
        ({"delimiter": "::"}, "delimiter", "must be one ASCII character "),
        ({"delimiter": "·"}, "delimiter", "must be one ASCII character "),
        ({"delimiter": '"'}, "delimiter", "must be one ASCII character "),
        ({"delimiter": "\n"}, "delimiter", "must be one ASCII character "),
        ({"decimal": ","}, "decimal", 'is ",", as data.delimiter is; set that to another one, such as ";"'),
    ],
)
def test_keys_that_fit_no_file_are_refused(keys: dict[str, Any], key: str, problem: str) -> None:
    with pytest.raises(JobError) as caught:
        CsvSpec(**keys)
    assert str(caught.value).startswith(f"data.{key}: {problem}")
