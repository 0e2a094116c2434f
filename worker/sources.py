"""Files of a dataset: finding them, their schema and row counts, and reading ranges of rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from glob import glob, has_magic
from itertools import accumulate
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq
from pyarrow.fs import LocalFileSystem

from worker.errors import DataError, JobError

Format = Literal["Parquet", "Arrow IPC", "CSV"]

SUFFIXES: Final[Mapping[str, Format]] = {
    ".parquet": "Parquet",
    ".pq": "Parquet",
    ".arrow": "Arrow IPC",
    ".feather": "Arrow IPC",
    ".ipc": "Arrow IPC",
    ".csv": "CSV",
    ".csv.gz": "CSV",
}

BATCH_ROWS: Final = 65536
"""Rows of Parquet decoded at once."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a dataset. `rows` is None until somebody has counted them (CSV has no count to read)."""

    path: str
    format: Format
    rows: int | None


@dataclass(frozen=True)
class Source:
    """The files of a dataset in a fixed order, which is the order of its rows, and their common schema."""

    files: tuple[SourceFile, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """Rows of all files. They must have been counted."""
        return sum(self.counts)

    @property
    def counts(self) -> list[int]:
        """Rows of each file. They must have been counted."""
        counts = [file.rows for file in self.files if file.rows is not None]
        assert len(counts) == len(self.files), "count the rows first"
        return counts

    @property
    def uncounted(self) -> list[str]:
        """Paths of the files whose rows are still to be counted."""
        return [file.path for file in self.files if file.rows is None]

    def counted(self, rows: Mapping[str, int]) -> "Source":
        """Return the source with the counts of its uncounted files filled in."""
        return replace(self, files=tuple(replace(file, rows=rows.get(file.path, file.rows)) for file in self.files))

    def with_numbers(self, names: Iterable[str]) -> "Source":
        """Return the source with the guessed types of these CSV columns widened to float64.

        The first block of a CSV may show whole numbers or nothing where decimals follow.
        """
        schema = self.schema
        for name in names if self.files[0].format == "CSV" else ():
            place = schema.get_field_index(name)
            if pa.types.is_integer(schema.types[place]) or pa.types.is_null(schema.types[place]):
                schema = schema.set(place, pa.field(name, pa.float64()))
        return replace(self, schema=schema)

    def where(self, row: int) -> str:
        """Return 'path: row 5' for a position in the dataset; rows of a file count from 1."""
        for file, count in zip(self.files, self.counts, strict=True):
            if row < count:
                return f"{file.path}: row {row + 1}"
            row -= count
        raise AssertionError("the row lies beyond the dataset")


def open_source(path: str, key: str) -> Source:
    """Find the files of `path` (a file, folder or glob) and read their metadata, never their rows.

    Raises:
        JobError: at `key`, where nothing is found or the files are of no known kind.
        DataError: a file can't be read, or its columns differ from the first one's.
    """
    found = [(path, _format(path)) for path in _find(path, key)]
    formats = {form for _, form in found if form is not None}
    for unknown in (path for path, form in found if form is None):
        raise JobError(key, f"{unknown} is of no known kind; accepted are files ending in {', '.join(SUFFIXES)}")
    if len(formats) > 1:
        raise JobError(key, f"{path} holds files of several kinds; name one kind with a glob such as *.parquet")
    form = formats.pop()
    files: list[SourceFile] = []
    schema: pa.Schema | None = None
    for file_path, _ in found:
        with _reading(file_path, form):
            file_schema, rows = _METADATA[form](file_path)
            # Names and types alone: whether a column may hold nulls says nothing yet, and differs from file to file.
            file_schema = pa.schema([(field.name, field.type) for field in file_schema])
        files.append(SourceFile(file_path, form, rows))
        schema = _same_schema(schema, file_schema, files[0].path, file_path, guessed=form == "CSV")
    assert schema is not None
    return Source(tuple(files), schema)


def count_rows(path: str) -> int:
    """Return the rows of a CSV file, by reading it once. Raises DataError where it is malformed."""
    with _reading(path, "CSV"):
        with _open_csv(path, {}) as reader:
            unparsed = {name: pa.binary() for name in reader.schema.names}
        with _open_csv(path, unparsed) as reader:
            return sum(batch.num_rows for batch in reader)


def read_rows(source: Source, start: int, stop: int, columns: list[str]) -> pa.Table:
    """Return the rows at positions start..stop-1 of the dataset, with `columns` in that order.

    Only these columns, and only the row groups or batches that hold the rows, are decoded; of CSV and compressed Arrow IPC, all
    the blocks up to them.
    """
    batches = list(_batches(source, start, stop, columns))
    if sum(batch.num_rows for batch in batches) != stop - start:
        raise DataError(f"{source.files[0].path}: rows are missing; the files must not change during a run")
    return pa.Table.from_batches(batches) if batches else source.schema.empty_table().select(columns)


def iterate(source: Source, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the whole dataset in order, in tables as large as its batches are."""
    for batch in _batches(source, 0, source.rows, columns):
        yield pa.Table.from_batches([batch])


def _batches(source: Source, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    for file, offset in zip(source.files, accumulate(source.counts, initial=0), strict=False):
        first, last = max(start - offset, 0), min(stop - offset, file.rows or 0)
        if first >= last:
            continue
        with _reading(file.path, file.format):
            for place, batch in _READ[file.format](file.path, first, last, columns, source.schema):
                begin, end = max(first - place, 0), min(last - place, batch.num_rows)
                if begin < end:
                    chosen = pa.RecordBatch.from_arrays([batch.column(name) for name in columns], names=columns)
                    yield chosen.slice(begin, end - begin)


def _find(path: str, key: str) -> list[str]:
    if "://" in path:
        raise JobError(key, f"{path} is a URI; accepted are a local file, folder or glob")
    if has_magic(path) and not Path(path).exists():
        paths = sorted(found for found in glob(path, recursive=True) if Path(found).is_file())
    elif Path(path).is_dir():
        paths = sorted(
            str(found)
            for found in Path(path).rglob("*")
            if found.is_file() and _format(str(found)) and not _hidden(found.relative_to(path))
        )
    else:
        paths = [path] if Path(path).is_file() else []
    if not paths:
        what = "no files in" if Path(path).is_dir() else "no such file or folder:"
        raise JobError(key, f"{what} {path}; accepted are Parquet, Arrow IPC/Feather and CSV files, a folder or a glob of them")
    return paths


def _hidden(path: Path) -> bool:
    """Return whether the file, or a folder on the way to it, is one that tools keep for themselves."""
    return any(part.startswith((".", "_")) for part in path.parts)


def _format(path: str) -> Format | None:
    return next((form for suffix, form in SUFFIXES.items() if path.lower().endswith(suffix)), None)


@contextmanager
def _reading(path: str, form: Format) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path}: can't be read as {form}: {reason}") from error


def _same_schema(first: pa.Schema | None, other: pa.Schema, first_path: str, path: str, *, guessed: bool) -> pa.Schema:
    doubled = [name for name in other.names if other.names.count(name) > 1]
    if doubled:
        raise DataError(f"{path}: has two columns named '{doubled[0]}'; names must differ")
    if first is None:
        return other
    fields: list[pa.Field] = []
    for field in first:
        if field.name not in other.names:
            raise DataError(f"{path}: has no column '{field.name}', which {first_path} has")
        found = other.field(field.name)
        if guessed:  # a CSV's types are guesses from its first block, so whole numbers may meet decimal ones
            with suppress(pa.ArrowException):
                field = found = pa.unify_schemas([pa.schema([field]), pa.schema([found])], promote_options="permissive").field(0)
        if found.type != field.type:
            raise DataError(f"{path}: column '{field.name}' has type {found.type}, but {field.type} in {first_path}")
        fields.append(field)
    return pa.schema(fields)


def _parquet_metadata(path: str) -> tuple[pa.Schema, int | None]:
    with pq.ParquetFile(path) as file:
        return file.schema_arrow, file.metadata.num_rows


def _arrow_metadata(path: str) -> tuple[pa.Schema, int | None]:
    fragment = pa_dataset.IpcFileFormat().make_fragment(path, filesystem=LocalFileSystem())
    return fragment.physical_schema, fragment.count_rows()


def _csv_metadata(path: str) -> tuple[pa.Schema, int | None]:
    with _open_csv(path, {}) as reader:
        return reader.schema, None


_Placed = Iterator[tuple[int, pa.RecordBatch]]

# Each reader yields the batches that hold rows first..last-1 of a file, and maybe more, with the place of their first row.


def _read_parquet(path: str, first: int, last: int, columns: list[str], _: pa.Schema) -> _Placed:
    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        starts = list(accumulate(sizes, initial=0))
        groups = [group for group, size in enumerate(sizes) if starts[group] < last and starts[group] + size > first]
        place = starts[groups[0]] if groups else 0
        # Decoded in one thread: the workers are the parallelism.
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
            yield place, batch
            place += batch.num_rows


def _read_arrow(path: str, _first: int, last: int, columns: list[str], _: pa.Schema) -> _Placed:
    with pa.memory_map(path) as mapped:
        with pa.ipc.open_file(mapped) as whole:
            needed = [whole.schema.get_field_index(name) for name in columns]
        place = 0
        file = pa.ipc.open_file(mapped, options=pa.ipc.IpcReadOptions(included_fields=needed))
        for number in range(file.num_record_batches):
            if place >= last:
                break
            batch = file.get_batch(number)
            yield place, batch
            place += batch.num_rows


def _read_csv(path: str, _: int, last: int, columns: list[str], schema: pa.Schema) -> _Placed:
    types = {name: schema.field(name).type for name in columns}
    with _open_csv(path, types, columns) as reader:
        place = 0
        for batch in reader:
            if place >= last:
                break
            yield place, batch
            place += batch.num_rows


def _open_csv(path: str, types: Mapping[str, pa.DataType], columns: list[str] | None = None) -> pa_csv.CSVStreamingReader:
    """Open a CSV whose columns have these types, the others being guessed; only `columns` are converted."""
    return pa_csv.open_csv(
        pa.input_stream(path, compression="gzip" if path.lower().endswith(".gz") else None),
        convert_options=pa_csv.ConvertOptions(column_types=dict(types), include_columns=columns or [], strings_can_be_null=True),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
    )


_METADATA: Final[Mapping[Format, Callable[[str], tuple[pa.Schema, int | None]]]] = {
    "Parquet": _parquet_metadata,
    "Arrow IPC": _arrow_metadata,
    "CSV": _csv_metadata,
}
_READ: Final[Mapping[Format, Callable[[str, int, int, list[str], pa.Schema], _Placed]]] = {
    "Parquet": _read_parquet,
    "Arrow IPC": _read_arrow,
    "CSV": _read_csv,
}
