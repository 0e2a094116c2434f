"""The formats that files of a dataset may have: their schema, their row counts, and reading ranges of rows."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from mmap import ACCESS_READ, MADV_DONTNEED, mmap
from socket import gethostname
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.dataset as pa_dataset
import pyarrow.parquet as pq

from worker.csv_dialect import CsvSpec
from worker.csv_file import STREAM_BYTES, csv_error, guess_schema, read_csv
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

BUFFERED_BYTES: Final = 4 << 20
"""Of a local Parquet file read at once, over all columns: a worker reads several shards at a time. With 16 MiB, a stream of 41
columns takes 37 MB of memory in place of 23, and no less processor time."""

GROUP_BYTES: Final = 128 << 20
"""Row groups of a store of more are read a buffer at a time, else the needed columns of one at once."""

LEAST_BUFFER: Final = 64 << 10

KEPT_FOOTERS: Final = 4
"""Parquet files whose metadata is kept: of a file with many row groups, it takes as long to parse as a group to decode."""

Metadata = tuple[pa.Schema, int | None, tuple[int, ...]]
"""Schema, rows, and rows of each group."""


def format_of(path: str) -> Format | None:
    """Return the format that a file's name stands for; None if there is none."""
    return next((form for suffix, form in SUFFIXES.items() if path.lower().endswith(suffix)), None)


@contextmanager
def opened(place: Place, form: Format, csv: CsvSpec) -> Iterator[pa.NativeFile]:
    """Open a file to read it. What goes wrong while it is open becomes a DataError that names the file."""
    try:
        handle = place.filesystem.open_input_file(place.path)
        if form == "CSV":
            # A thread may still be reading ahead: it would read on in whatever file gets the number of this one, were it closed.
            # It closes itself when nobody has it any more.
            yield handle
        else:
            with handle:
                yield handle
    except FileNotFoundError as error:
        raise DataError(
            f"{place.address}: is not to be found on {gethostname()}; the files of a run must stay as they are, where all its "
            "machines see them"
        ) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _named(place, form, csv, error) from error


def _named(place: Place, form: Format, csv: CsvSpec, error: Exception) -> DataError:
    if form == "CSV":
        return csv_error(place, csv, error)
    return DataError(f"{place.address}: can't be read as {form}: {first_line(error)}")


def read_metadata(handle: pa.NativeFile, form: Format, address: str, csv: CsvSpec) -> Metadata:
    """Return names and types of a file's columns, its rows, and those of its row groups.

    Of CSV, the types are guesses, and there is no count, but None. Only Parquet has groups.
    """
    schema, rows, groups = (guess_schema(handle, address, csv), None, ()) if form == "CSV" else _METADATA[form](handle)
    # Whether a column may hold nulls says nothing yet, and differs from file to file.
    return pa.schema([(field.name, field.type) for field in schema]), rows, groups


def read_range(
    handle: pa.NativeFile,
    form: Format,
    address: str,
    version: Hashable,
    csv: CsvSpec,
    first: int,
    last: int,
    wanted: pa.Schema,
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches that hold rows first..last-1 of a file, and maybe more, each with the place of its first row.

    Only these columns, and only the row groups or batches that hold the rows, are decoded; of CSV and compressed Arrow IPC, all
    the blocks up to them, and of the latter on this machine all columns.

    Args:
        handle: the open file.
        form: its format.
        address: of the file.
        version: tells the file from others that have been or will be at this address.
        csv: how a CSV is written.
        first: place of the first row.
        last: place after the last row.
        wanted: the columns to be read, and the types that a CSV's are to have.
    """
    if form == "CSV":
        return read_csv(handle, address, csv, last, wanted.names, wanted)
    if form == "Parquet":
        return _read_parquet(handle, address, _footer(handle, (address, version)), first, last, wanted.names)
    return _read_arrow(handle, address, first, last, wanted.names)


def _parquet_metadata(handle: pa.NativeFile) -> Metadata:
    with pq.ParquetFile(handle) as file:
        return file.schema_arrow, file.metadata.num_rows, _group_sizes(file.metadata)


def _group_sizes(metadata: pq.FileMetaData) -> tuple[int, ...]:
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


def _arrow_metadata(handle: pa.NativeFile) -> Metadata:
    fragment = pa_dataset.IpcFileFormat().make_fragment(handle)
    return fragment.physical_schema, fragment.count_rows(), ()


_Placed = Iterator[tuple[int, pa.RecordBatch]]

_FOOTERS: Final[dict[Hashable, pq.FileMetaData]] = {}
"""Metadata of the Parquet files read last."""


def _footer(handle: pa.NativeFile, key: Hashable) -> pq.FileMetaData:
    footer = _FOOTERS.get(key)
    if footer is None:
        footer = pq.read_metadata(handle)
        if len(_FOOTERS) >= KEPT_FOOTERS:
            _FOOTERS.clear()
        _FOOTERS[key] = footer
    return footer


def _read_parquet(
    handle: pa.NativeFile, address: str, metadata: pq.FileMetaData, first: int, last: int, columns: list[str]
) -> _Placed:
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


def _read_arrow(handle: pa.NativeFile, address: str, first: int, last: int, columns: list[str]) -> _Placed:
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


_METADATA: Final[Mapping[Format, Callable[[pa.NativeFile], Metadata]]] = {
    "Parquet": _parquet_metadata,
    "Arrow IPC": _arrow_metadata,
}
