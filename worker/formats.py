"""The formats that files of a dataset may have: their schema, their row counts, and reading ranges of rows."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from mmap import ACCESS_READ, MADV_DONTNEED, mmap
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq

from worker.errors import DataError, first_line
from worker.stores import Place, is_remote, local_path

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
"""Rows read at once, at most."""

BATCH_VALUES: Final = 1 << 20
"""Values of Parquet decoded at once, about: what is decoded stays small, however many columns there are."""

BATCH_UNIT: Final = 1024
"""Rows of which these are whole multiples."""

BUFFERED_BYTES: Final = 16 << 20
"""Of a local Parquet file read at once, over all columns: a worker reads several shards at a time."""

GROUP_BYTES: Final = 128 << 20
"""Row groups of a store of more are read a buffer at a time, else the needed columns of one at once."""

LEAST_BUFFER: Final = 64 << 10

TAIL_BYTES: Final = 4096
"""Of a CSV's end that are looked at; more empty lines than that are not looked behind."""

STREAM_BYTES: Final = 8 << 20
"""Asked of a store at once where a file is read from its beginning."""


Metadata = tuple[pa.Schema, int | None, tuple[int, ...]]
"""Schema, rows, and rows of each group."""


def format_of(path: str) -> Format | None:
    """Return the format that a file's name stands for; None if there is none."""
    return next((form for suffix, form in SUFFIXES.items() if path.lower().endswith(suffix)), None)


@contextmanager
def opened(place: Place, form: Format) -> Iterator[pa.NativeFile]:
    """Open a file to read it. What goes wrong while it is open becomes a DataError that names the file."""
    try:
        with place.filesystem.open_input_file(place.path) as handle:
            yield handle
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _named(place, form, error) from error


def read_metadata(handle: pa.NativeFile, form: Format, address: str) -> Metadata:
    """Return names and types of a file's columns, its rows, and those of its row groups.

    Of CSV, the types are guesses, and there is no count, but None. Only Parquet has groups.
    """
    schema, rows, groups = _METADATA[form](handle, address)
    # Whether a column may hold nulls says nothing yet, and differs from file to file.
    return pa.schema([(field.name, field.type) for field in schema]), rows, groups


def read_range(
    handle: pa.NativeFile, form: Format, address: str, first: int, last: int, columns: list[str], schema: pa.Schema
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches that hold rows first..last-1 of a file, and maybe more, each with the place of its first row.

    Only these columns, and only the row groups or batches that hold the rows, are decoded; of CSV and compressed Arrow IPC, all
    the blocks up to them, and of the latter on this machine all columns.

    Args:
        handle: the open file; a CSV is closed then.
        form: its format.
        address: of the file.
        first: place of the first row.
        last: place after the last row.
        columns: to be read.
        schema: the types that a CSV's columns are to have.
    """
    return _READ[form](handle, address, first, last, columns, schema)


def count_csv(
    handle: pa.NativeFile, address: str, names: list[str], doubtful: Mapping[str, pa.DataType]
) -> tuple[int, list[str]]:
    """Return the rows of a CSV, and the doubtful columns that hold something that is not of the type guessed for them.

    Args:
        handle: the open file; it is closed then.
        address: of the file.
        names: of its columns.
        doubtful: the guesses, by name.

    Raises:
        DataError: the file ends within quotes, which may have taken rows for a part of a value.
    """
    rows, wrong, last = 0, set[str](), b""
    tail = b"" if address.lower().endswith(".gz") else _tail(handle)
    with _open_csv(handle, address, dict.fromkeys(names, pa.binary())) as reader:
        for batch in reader:
            rows += batch.num_rows
            wrong |= {name for name in doubtful.keys() - wrong if not _holds(batch.column(name), doubtful[name])}
            last = batch.column(names[-1])[-1].as_py() or b"" if batch.num_rows else last
    # A value of several lines stood in quotes, so the file ends with one, if that is its last value.
    end = tail.rstrip(b"\r\n")
    if end and b"\n" in last and not end.endswith(b'"'):
        raise DataError(f"{address}: row {rows}, column '{names[-1]}': has a quote that is not closed; close it, or take it out")
    return rows, sorted(wrong)


def _tail(handle: pa.NativeFile) -> bytes:
    handle.seek(max(0, handle.size() - TAIL_BYTES))
    content: bytes = handle.read(TAIL_BYTES)
    handle.seek(0)
    return content


def _holds(values: pa.Array, guess: pa.DataType) -> bool:
    try:
        pa.compute.utf8_trim_whitespace(values.cast(pa.string())).cast(guess)
    except pa.ArrowInvalid:
        return False
    return True


def _parquet_metadata(handle: pa.NativeFile, _: str) -> Metadata:
    with pq.ParquetFile(handle) as file:
        return file.schema_arrow, file.metadata.num_rows, _group_sizes(file.metadata)


def _group_sizes(metadata: pq.FileMetaData) -> tuple[int, ...]:
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


def _arrow_metadata(handle: pa.NativeFile, _: str) -> Metadata:
    fragment = pa_dataset.IpcFileFormat().make_fragment(handle)
    return fragment.physical_schema, fragment.count_rows(), ()


def _csv_metadata(handle: pa.NativeFile, address: str) -> Metadata:
    with _open_csv(handle, address, {}) as reader:
        return reader.schema, None, ()


_Placed = Iterator[tuple[int, pa.RecordBatch]]


def _read_parquet(handle: pa.NativeFile, address: str, first: int, last: int, columns: list[str], _: pa.Schema) -> _Placed:
    metadata = pq.read_metadata(handle)
    sizes = _group_sizes(metadata)
    starts = list(accumulate(sizes, initial=0))
    groups = [group for group, size in enumerate(sizes) if starts[group] < last and starts[group] + size > first]
    largest = max((metadata.row_group(group).total_byte_size for group in groups), default=0)
    # A store is asked for a group's columns in few large requests. Local files are not mapped: what is decoded has to be copied
    # anyway, and pages of the file would count as this process's memory.
    options: dict[str, Any] = {"pre_buffer": False, "buffer_size": _buffer_bytes(BUFFERED_BYTES, 1 << 20, len(columns))}
    if is_remote(address):
        options = {"pre_buffer": True}
        if largest > GROUP_BYTES:
            options = {"pre_buffer": False, "buffer_size": _buffer_bytes(GROUP_BYTES, STREAM_BYTES, metadata.num_columns)}
    with pq.ParquetFile(handle, metadata=metadata, page_checksum_verification=True, **options) as file:
        batch_rows = _batch_rows(file.schema_arrow, columns)
        for group in groups:  # one after the other, since what is buffered before is all that is asked for
            place = starts[group]
            # Decoded in one thread: the workers are the parallelism.
            for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns, use_threads=False):
                yield place, batch
                place += batch.num_rows


def _buffer_bytes(all_columns: int, most: int, columns: int) -> int:
    """Return the size of a column's buffer."""
    return max(LEAST_BUFFER, min(most, all_columns // max(1, columns)))


def _batch_rows(schema: pa.Schema, columns: list[str]) -> int:
    types = [field.type for field in schema if field.name in columns]
    values = sum(arrow.list_size if pa.types.is_fixed_size_list(arrow) else 1 for arrow in types)
    return min(BATCH_ROWS, max(1, BATCH_VALUES // max(1, values) // BATCH_UNIT) * BATCH_UNIT)


def _read_arrow(handle: pa.NativeFile, address: str, first: int, last: int, columns: list[str], _: pa.Schema) -> _Placed:
    if is_remote(address):
        names = pa.ipc.open_file(handle).schema.names
        needed = [names.index(name) for name in columns if name in names]
        yield from _arrow_pieces(handle, first, last, columns, pa.ipc.IpcReadOptions(included_fields=needed))
        return
    # Of memory that is mapped, no more is read than the rows that are looked at; a choice of columns would copy a whole batch.
    with open(local_path(address), "rb") as file:
        memory = mmap(file.fileno(), 0, access=ACCESS_READ)
    for piece in _arrow_pieces(pa.BufferReader(memory), first, last, columns, pa.ipc.IpcReadOptions()):
        memory.madvise(MADV_DONTNEED)  # else, all that was looked at counts as this process's memory
        yield piece


def _arrow_pieces(handle: pa.NativeFile, first: int, last: int, columns: list[str], options: pa.ipc.IpcReadOptions) -> _Placed:
    file, place = pa.ipc.open_file(handle, options=options), 0
    rows = _batch_rows(file.schema, columns)
    for number in range(file.num_record_batches):
        if place >= last:
            break
        batch = file.get_batch(number)
        begin, end = max(first - place, 0), min(last - place, batch.num_rows)
        for start in range(begin, end, rows):
            piece = batch.slice(start, min(rows, end - start))
            names = [name for name in columns if piece.schema.get_field_index(name) >= 0]
            # Copied, for the file may change under memory that is mapped, and a slice would keep all of its batch.
            copies = [pa.concat_arrays([piece.column(name)]) for name in names]
            yield place + start, pa.RecordBatch.from_arrays(copies, names=names)
        place += batch.num_rows


def _read_csv(handle: pa.NativeFile, address: str, _: int, last: int, columns: list[str], schema: pa.Schema) -> _Placed:
    with _open_csv(handle, address, {name: schema.field(name).type for name in columns}, columns) as reader:
        place = 0
        for batch in reader:
            if place >= last:
                break
            yield place, batch
            place += batch.num_rows


def _open_csv(
    handle: pa.NativeFile, address: str, types: Mapping[str, pa.DataType], columns: list[str] | None = None
) -> pa_csv.CSVStreamingReader:
    """Open a CSV whose columns have these types, the others being guessed; only `columns` are converted."""
    stream = pa.BufferedInputStream(handle, STREAM_BYTES) if is_remote(address) else handle
    return pa_csv.open_csv(
        pa.CompressedInputStream(stream, "gzip") if address.lower().endswith(".gz") else stream,
        read_options=pa_csv.ReadOptions(use_threads=False),  # with threads, an error does not tell its row
        convert_options=pa_csv.ConvertOptions(column_types=dict(types), include_columns=columns or [], strings_can_be_null=True),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
    )


_METADATA: Final[Mapping[Format, Callable[[pa.NativeFile, str], Metadata]]] = {
    "Parquet": _parquet_metadata,
    "Arrow IPC": _arrow_metadata,
    "CSV": _csv_metadata,
}
_READ: Final[Mapping[Format, Callable[[pa.NativeFile, str, int, int, list[str], pa.Schema], _Placed]]] = {
    "Parquet": _read_parquet,
    "Arrow IPC": _read_arrow,
    "CSV": _read_csv,
}

_RAGGED: Final = re.compile(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)")
_UNFIT: Final = re.compile(r"In CSV column #(\d+): Row #(\d+): CSV conversion error to (\S+): invalid value (.*)")
_TYPES: Final = {"double": "number", "int64": "whole number", "bool": "boolean"}


def _named(place: Place, form: Format, error: Exception) -> DataError:
    """Return an error of the library's as one that names the file, and where that is known row and column."""
    message = first_line(error)
    if form == "CSV" and (found := _RAGGED.match(message)):
        row, expected, there = (int(number) for number in found.groups())  # the header is a row there, and none here
        return DataError(f"{place.address}: row {row - 1} has {there} fields, but the header {expected}; mend the row")
    if form == "CSV" and (found := _UNFIT.match(message)):
        with _open_csv(place.filesystem.open_input_file(place.path), place.address, {}) as reader:
            name = reader.schema.names[int(found[1])]
        wanted = _TYPES.get(found[3], found[3])
        return DataError(
            f"{place.address}: row {int(found[2]) - 1}, column '{name}': {found[4]} is no {wanted}, as the values before it are; "
            "mend the row, or make the column one of categories"
        )
    return DataError(f"{place.address}: can't be read as {form}: {message}")
