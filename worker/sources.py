"""A dataset: its files in a fixed order, their common schema, and reading ranges of its rows."""

import os
import socket
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, repeat
from typing import Final

import pyarrow as pa

from worker.csv_dialect import DEFAULT_CSV, CsvSpec
from worker.csv_file import common_type, count_csv
from worker.discovery import Found, find_files
from worker.errors import DataError, JobError
from worker.formats import SUFFIXES, Format, format_of, opened, read_metadata, read_range
from worker.partitions import Partition, partition_fields, partitions_of
from worker.stores import DEFAULT_STORAGE, Place, StorageSpec, is_remote, locate

OPENED_AT_ONCE: Final = 16
"""Files of a store whose metadata is read at the same time: each takes some round trips."""


@dataclass(frozen=True)
class Version:
    """What tells a file from one that took its place.

    Attributes:
        size: in bytes.
        mark: when it was changed, or what else its store has for this.
        host: whose clock that is; none for stores. Copies of a file on other machines have marks of their own.
    """

    size: int
    mark: str
    host: str = ""

    def same(self, other: "Version") -> bool:
        """Return whether this is the version of the same file, as far as can be told."""
        return self.size == other.size and (self.mark == other.mark or self.host != other.host)


@dataclass(frozen=True)
class SourceFile:
    """One file of a dataset.

    Attributes:
        path: its address.
        format: its format.
        rows: that it has; None until somebody has counted them (CSV has no count to read).
        version: when it was found.
        partitions: columns that its folders' names make up.
        groups: rows of each of its parts that can be read by itself, as far as it has such parts.
        csv: how it is written if it is a CSV.
    """

    path: str
    format: Format
    rows: int | None
    version: Version | None = None
    partitions: tuple[Partition, ...] = ()
    groups: tuple[int, ...] = ()
    csv: CsvSpec = DEFAULT_CSV


@dataclass(frozen=True)
class CsvCount:
    """The rows of a CSV, and the types of columns that are not what they were taken for at its beginning, by name."""

    rows: int
    types: Mapping[str, pa.DataType] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The files of a dataset in a fixed order, which is the order of its rows, and their common schema.

    `storage` says how to reach them.
    """

    files: tuple[SourceFile, ...]
    schema: pa.Schema
    storage: StorageSpec = DEFAULT_STORAGE

    @property
    def rows(self) -> int:
        """Rows of all files. They must have been counted."""
        return self.offsets[-1]

    @property
    def counts(self) -> list[int]:
        """Rows of each file. They must have been counted."""
        counts = [file.rows for file in self.files if file.rows is not None]
        assert len(counts) == len(self.files), "count the rows first"
        return counts

    @cached_property
    def offsets(self) -> list[int]:
        """The position of each file's first row, and the one after the last file's last. Rows must have been counted."""
        return list(accumulate(self.counts, initial=0))

    @property
    def cuts(self) -> tuple[int, ...]:
        """Ascending positions, 0 left out, at which a file or a part of it begins that can be read by itself."""
        groups = [group for file, rows in zip(self.files, self.counts, strict=True) for group in file.groups or (rows,)]
        return tuple(sorted({place for place in accumulate(groups) if place < self.rows}))

    @property
    def guessed(self) -> bool:
        """Whether the columns' types are guesses from the beginning of the files."""
        return self.files[0].format == "CSV"

    @property
    def uncounted(self) -> list[SourceFile]:
        """The files whose rows are still to be counted."""
        return [file for file in self.files if file.rows is None]

    def counted(self, counts: Mapping[str, CsvCount]) -> "Source":
        """Return the source with the counts of its uncounted files filled in, by path, and wrong guesses mended."""
        types: dict[str, pa.DataType] = {}
        for file in self.uncounted:
            for name, arrow in counts[file.path].types.items():
                types[name] = common_type(types.get(name, arrow), arrow) or pa.string()
        files = tuple(replace(file, rows=counts[file.path].rows) if file.rows is None else file for file in self.files)
        return replace(self, files=files).typed(types)

    def typed(self, types: Mapping[str, pa.DataType]) -> "Source":
        """Return the source with other types for these columns, by name, as far as its own are guesses and it has them.

        A column of true and false stays so where numbers are asked for, since it can stand for them. Of what is in the names of
        folders, numbers can become the text that they are written as.
        """
        folders = {name for name, _ in self.files[0].partitions}

        def settled(field: pa.Field) -> pa.Field:
            wanted = types.get(field.name, field.type)
            if field.name in folders:
                return field.with_type(wanted) if pa.types.is_string(wanted) else field
            fits = pa.types.is_boolean(field.type) and wanted == pa.float64()
            return field.with_type(wanted) if self.guessed and not fits else field

        return replace(self, schema=pa.schema([settled(field) for field in self.schema]))

    def where(self, row: int) -> str:
        """Return 'path: row 5' for a position in the dataset; rows of a file count from 1."""
        place = self.file_of(row)
        return f"{self.files[place].path}: row {row - self.offsets[place] + 1}"

    def file_of(self, row: int) -> int:
        """Return the place of the file that has the row at a position in the dataset."""
        assert 0 <= row < self.rows, "the row lies in the dataset"
        return bisect_right(self.offsets, row) - 1


def open_source(address: str, key: str, storage: StorageSpec = DEFAULT_STORAGE, csv: CsvSpec = DEFAULT_CSV) -> Source:
    """Find the files of `address` (a file, folder or glob; a path or a URI) and read their metadata, never their rows.

    Raises:
        JobError: at `key`, where nothing is found or the files are of no known kind.
        DataError: a file can't be read, or its columns differ from the first one's.
    """
    found = find_files(address, key, storage)
    formats = {format_of(file.place.address): file for file in found}
    if None in formats:
        unknown = formats[None].place.address
        raise JobError(key, f"{unknown} is of no known kind; accepted are files ending in {', '.join(SUFFIXES)}")
    if len(formats) > 1:
        raise JobError(key, f"{address} holds files of several kinds; name one kind with a glob such as *.parquet")
    partitions = partitions_of(found)
    files: list[SourceFile] = []
    schema: pa.Schema | None = None
    for (file, own), folders in zip(_metadata(found, address, csv), partitions, strict=True):
        files.append(replace(file, partitions=folders))
        schema = _same_schema(schema, own, files[0].path, files[-1], guessed=file.format == "CSV")
    assert schema is not None
    return Source(tuple(files), pa.schema([*schema, *partition_fields(partitions)]), storage)


def count_rows(file: SourceFile, storage: StorageSpec, doubtful: Mapping[str, pa.DataType]) -> CsvCount:
    """Count the rows of a CSV file, by reading it once, and look whether the guessed types of columns hold.

    Raises:
        DataError: it is malformed, or has changed.
    """
    place = locate(file.path, storage)
    with opened(place, file.format, file.csv) as handle:
        _require_unchanged(file, place, handle)
        names = read_metadata(handle, file.format, file.path, file.csv)[0].names
    with opened(place, file.format, file.csv) as handle:
        there = {name: arrow for name, arrow in doubtful.items() if name in names}
        return CsvCount(*count_csv(handle, place, file.csv, names, there))


def read_rows(source: Source, start: int, stop: int, columns: list[str]) -> pa.Table:
    """Return the rows at positions start..stop-1 of the dataset, with `columns` in that order. Raises as `read_batches` does."""
    tables = list(read_batches(source, start, stop, columns))
    return pa.concat_tables(tables) if tables else source.schema.empty_table().select(columns)


def read_batches(source: Source, start: int, stop: int, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows at positions start..stop-1 of the dataset in order, in tables of `BATCH_ROWS` rows at most.

    Only these columns, and only the row groups or batches that hold the rows, are decoded; of CSV and compressed Arrow IPC, all
    the blocks up to them.

    Raises:
        DataError: a file can't be read, or is not the one that was opened first.
    """
    if start >= stop:
        return
    # Of many files, only those that have the rows are looked at: a stream of rows begins anew for each of them.
    for place in range(source.file_of(start), source.file_of(stop - 1) + 1):
        offset, end = source.offsets[place : place + 2]
        first, last = max(start, offset) - offset, min(stop, end) - offset
        if first < last:
            yield from _read_file(source, source.files[place], first, last, columns)


def _read_file(source: Source, file: SourceFile, first: int, last: int, columns: list[str]) -> Iterator[pa.Table]:
    place, constants, rows = locate(file.path, source.storage), dict(file.partitions), 0
    own = [name for name in columns if name not in constants]
    # Without a column of the file's own, one is read to count its rows by.
    read = own or [name for name in source.schema.names if name not in constants][:1]
    wanted = pa.schema([source.schema.field(name) for name in read])
    with opened(place, file.format, file.csv) as handle:
        version = _require_unchanged(file, place, handle)
        for begin, batch in read_range(handle, file.format, file.path, version, file.csv, first, last, wanted):
            skipped = max(first - begin, 0)
            chosen = batch.slice(skipped, max(min(last - begin, batch.num_rows) - skipped, 0))
            rows += chosen.num_rows
            if chosen.num_rows:
                yield pa.Table.from_arrays(_arrays(source, file, columns, wanted, chosen), names=columns)
    # Once more, for what was read must be what was there before.
    with opened(place, file.format, file.csv) as handle:
        _require_unchanged(file, place, handle)
    if rows != last - first:
        raise _changed(file)


def _arrays(source: Source, file: SourceFile, columns: list[str], wanted: pa.Schema, batch: pa.RecordBatch) -> list[pa.Array]:
    arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
    if [arrays[name].type for name in wanted.names if name in arrays] != wanted.types:
        raise _changed(file)
    for name, arrow in zip(wanted.names, wanted.types, strict=True):
        if pa.types.is_string_view(arrow):  # text that Arrow can't choose rows of
            arrays[name] = arrays[name].cast(pa.string())
    for name, value in file.partitions:
        if name in columns:
            arrays[name] = pa.repeat(pa.scalar(value).cast(source.schema.field(name).type), batch.num_rows)
    return [arrays[name] for name in columns]


def _version(place: Place, handle: pa.NativeFile) -> Version:
    if not is_remote(place.address):
        return Version(handle.size(), str(os.stat(place.path).st_mtime_ns), socket.gethostname())
    # Stores have tags, which differ wherever the content does.
    tags = [value for name, value in (handle.metadata() or {}).items() if name.lower() == "etag"]
    mark = tags[0].decode() if tags else str(place.filesystem.get_file_info(place.path).mtime_ns)
    return Version(handle.size(), mark)


def _require_unchanged(file: SourceFile, place: Place, handle: pa.NativeFile) -> Version:
    version = _version(place, handle)
    if file.version is not None and not file.version.same(version):
        raise _changed(file)
    return version


def _changed(file: SourceFile) -> DataError:
    return DataError(f"{file.path}: has changed since the run began; the files of a run must stay as they are")


def _metadata(found: list[Found], address: str, csv: CsvSpec) -> Iterator[tuple[SourceFile, pa.Schema]]:
    if not is_remote(address):
        return (_metadata_of(file, csv) for file in found)
    with ThreadPoolExecutor(OPENED_AT_ONCE) as threads:
        return iter(list(threads.map(_metadata_of, found, repeat(csv))))


def _metadata_of(found: Found, csv: CsvSpec) -> tuple[SourceFile, pa.Schema]:
    place = found.place
    form = format_of(place.address)
    assert form is not None
    with opened(place, form, csv) as handle:
        version = _version(place, handle)
        schema, rows, groups = read_metadata(handle, form, place.address, csv)
    return SourceFile(place.address, form, rows, version, groups=groups, csv=csv), schema


def _same_schema(first: pa.Schema | None, other: pa.Schema, first_path: str, file: SourceFile, *, guessed: bool) -> pa.Schema:
    path = file.path
    doubled = [name for name in other.names if other.names.count(name) > 1]
    if doubled:
        raise DataError(f"{path}: has two columns named '{doubled[0]}'; names must differ")
    for name, _ in file.partitions:
        if name in other.names:
            raise DataError(f"{path}: has a column '{name}' and lies in a folder '{name}=…'; rename one of them")
    if first is None:
        return other
    fields: list[pa.Field] = []
    for name, known in zip(first.names, first.types, strict=True):
        if name not in other.names:
            raise DataError(f"{path}: has no column '{name}', which {first_path} has")
        found = other.field(name).type
        arrow = _one_guess(known, found) if guessed else known if found == known else None
        if arrow is None:
            raise DataError(f"{path}: column '{name}' has type {found}, but {known} in {first_path}")
        fields.append(pa.field(name, arrow))
    return pa.schema(fields)


def _one_guess(first: pa.DataType, found: pa.DataType) -> pa.DataType | None:
    """Return what two files' guesses for a column come to; None where that is nothing."""
    if pa.types.is_string(first) or (pa.types.is_string(found) and not pa.types.is_null(first)):
        return first  # where text meets numbers, whoever counts or reads the rows finds out what they are
    return common_type(first, found)
