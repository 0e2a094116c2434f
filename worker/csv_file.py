"""CSV files: types guessed from their beginning, a pass that counts their rows, and reading from the first row on."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

import pyarrow as pa
import pyarrow.csv as pa_csv

from worker.csv_dialect import NOT_UTF8, CsvSpec, require_spec
from worker.errors import DataError, first_line
from worker.stores import Place, is_remote

STREAM_BYTES: Final = 8 << 20
"""Asked of a store at once."""

BLOCK_BYTES: Final = 1 << 20
"""Parsed at once; types are guessed from the first so many."""

END_BYTES: Final = 4096
"""Of a text's beginning and end that are looked at; more empty lines than that are not looked behind."""


def guess_schema(handle: pa.NativeFile, address: str, spec: CsvSpec) -> pa.Schema:
    """Return the columns of a CSV, their types guessed from its beginning.

    Raises:
        DataError: it looks as if it were written in another way than `spec` has it.
    """
    head = _head(_text(handle, address))
    require_spec(head[:END_BYTES], address, spec)
    with _open(pa.BufferReader(head), spec, {}) as reader:
        # What is not in the encoding is found, and told with its row, by who reads the column as text.
        return pa.schema([field.with_type(pa.string()) if pa.types.is_binary(field.type) else field for field in reader.schema])


def read_csv(
    handle: pa.NativeFile, address: str, spec: CsvSpec, last: int, columns: list[str], schema: pa.Schema
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches from the first row on until row `last`, each with the place of its first row; as `formats.read_range`."""
    with _open(_text(handle, address), spec, {name: schema.field(name).type for name in columns}, columns) as reader:
        place = 0
        for batch in reader:
            if place >= last:
                break
            yield place, batch
            place += batch.num_rows


def count_csv(
    handle: pa.NativeFile, place: Place, spec: CsvSpec, names: list[str], doubtful: Mapping[str, pa.DataType]
) -> tuple[int, dict[str, pa.DataType]]:
    """Return the rows of a CSV, and the types of doubtful columns that hold something else than guessed, by name.

    They are text, or where no value was known to guess by, what the values are.

    Args:
        handle: the open file.
        place: of the file.
        spec: how it is written.
        names: of its columns.
        doubtful: the guesses, by name.

    Raises:
        DataError: the file ends within quotes, which may have taken rows for a part of a value.
    """
    rows, types, last = 0, dict(doubtful), b""
    with _open(_text(handle, place.address), spec, dict.fromkeys(names, pa.binary())) as reader:
        for batch in reader:
            rows += batch.num_rows
            types = {name: _looked_at(batch.column(name), types[name], doubtful[name], spec) for name in doubtful}
            last = batch.column(names[-1])[-1].as_py() or b"" if batch.num_rows else last
    # A value of several lines stood in quotes, so the file ends with one, if that is its last value.
    if (b"\n" in last or b"\r" in last) and (end := _end(place).rstrip(b"\r\n")) and not end.endswith(b'"'):
        where = f"{place.address}: row {rows}, column '{names[-1]}'"
        raise DataError(f"{where}: has a quote that is not closed; close it, or take it out")
    return rows, {name: arrow for name, arrow in types.items() if arrow != doubtful[name]}


def common_type(first: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of both, such as decimals and whole numbers; None where there is none."""
    with suppress(pa.ArrowException):
        schemas = [pa.schema([("", first)]), pa.schema([("", other)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    return None


def _looked_at(values: pa.Array, known: pa.DataType, guess: pa.DataType, spec: CsvSpec) -> pa.DataType:
    """Return the type of a column by some more of its values; `known` by those before, and without any by the guess."""
    if pa.types.is_string(known) or values.null_count == len(values):
        return known
    if not pa.types.is_null(guess):
        return known if _type_of(values, spec, guess) is not None else pa.string()
    return common_type(known, _type_of(values, spec) or pa.string()) or pa.string()


def _type_of(values: pa.Array, spec: CsvSpec, wanted: pa.DataType | None = None) -> pa.DataType | None:
    """Return the type that fields are read as, the wanted one if it is given; None where they can't be."""
    sink = pa.BufferOutputStream()
    with suppress(pa.ArrowInvalid):
        # Written and read again: only so is what counts as a number or a date here what counts when the rows are read.
        pa_csv.write_csv(pa.table({"": values}), sink, pa_csv.WriteOptions(include_header=False))
        fields = pa_csv.read_csv(
            pa.BufferReader(sink.getvalue()),
            pa_csv.ReadOptions(column_names=[""], use_threads=False),
            pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            _conversion(spec, {} if wanted is None else {"": wanted}),
        )
        return fields.schema.field(0).type
    return None


def _text(handle: pa.NativeFile, address: str) -> pa.NativeFile:
    """Return a stream of the text in an open file."""
    stream = pa.BufferedInputStream(handle, STREAM_BYTES) if is_remote(address) else handle
    return pa.CompressedInputStream(stream, "gzip") if address.lower().endswith(".gz") else stream


def _head(text: pa.NativeFile) -> bytes:
    """Return the first block, and if there is more, a byte of it: so the reader knows that the block's last row is cut off."""
    head = b""
    while len(head) <= BLOCK_BYTES and (more := text.read(BLOCK_BYTES + 1 - len(head))):
        head += more
    return head


def _end(place: Place) -> bytes:
    """Return the last bytes of a file's text, all of which is read for it. It is seldom asked for."""
    end, text = b"", _text(place.filesystem.open_input_file(place.path), place.address)
    while more := text.read(STREAM_BYTES):
        end = (end + more)[-END_BYTES:]
    return end


def _open(
    text: pa.NativeFile, spec: CsvSpec, types: Mapping[str, pa.DataType], columns: list[str] | None = None
) -> pa_csv.CSVStreamingReader:
    """Open a CSV whose columns have these types, the others being guessed; only `columns` are converted."""
    return pa_csv.open_csv(
        text,
        pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),  # with threads, an error does not tell its row
        pa_csv.ParseOptions(delimiter=spec.delimiter, newlines_in_values=True),
        _conversion(spec, types, columns),
    )


def _conversion(spec: CsvSpec, types: Mapping[str, pa.DataType], columns: list[str] | None = None) -> pa_csv.ConvertOptions:
    return pa_csv.ConvertOptions(
        column_types=dict(types), include_columns=columns or [], strings_can_be_null=True, decimal_point=spec.decimal
    )


_RAGGED: Final = re.compile(r"CSV parse error: Row #(\d+): Expected (\d+) columns, got (\d+)")
_UNFIT: Final = re.compile(r"In CSV column #(\d+): Row #(\d+): CSV conversion error to ([a-z]+)[^:]*: invalid value (.*)")
_UNREADABLE: Final = re.compile(r"In CSV column #(\d+): Row #(\d+): CSV conversion error to string: invalid UTF8 data")
_STRADDLING: Final = "straddling object straddles two block boundaries"
_KINDS: Final = {"double": "number", "int": "whole number", "bool": "boolean", "time": "time of day"}


def csv_error(place: Place, spec: CsvSpec, error: Exception) -> DataError:
    """Return an error of the library's as one that names the file, and where that is known row and column."""
    message = first_line(error)
    # The header is a row there, and none here.
    if found := _RAGGED.match(message):
        row, expected, there = (int(number) for number in found.groups())
        return DataError(f"{place.address}: row {row - 1} has {there} fields, but the header {expected}; mend the row")
    if found := _UNFIT.match(message):
        kind = _KINDS.get(found[3], found[3])
        advice = "mend the row, or make the column one of categories" if found[3] in ("double", "int", "bool") else "mend the row"
        return DataError(f"{_where(place, spec, found)}: {found[4]} is no {kind}, as the column's other values are; {advice}")
    if found := _UNREADABLE.match(message):
        return DataError(f"{_where(place, spec, found)}: {NOT_UTF8}")
    if _STRADDLING in message:
        return DataError(
            f"{place.address}: has a quote that is not closed, or a row of more than {BLOCK_BYTES:,} bytes; close the quote, "
            "or shorten the row"
        )
    if isinstance(error, UnicodeError):
        return DataError(f"{place.address}: its header {NOT_UTF8}")
    return DataError(f"{place.address}: can't be read as CSV: {message}")


def _where(place: Place, spec: CsvSpec, found: re.Match[str]) -> str:
    name = guess_schema(place.filesystem.open_input_file(place.path), place.address, spec).names[int(found[1])]
    return f"{place.address}: row {int(found[2]) - 1}, column '{name}'"
