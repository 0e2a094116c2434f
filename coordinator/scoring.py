"""A trained model at work on tables: errors where there are labels, predictions where there are none."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isnan
from pathlib import Path
from typing import IO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from coordinator.column_plans import written
from coordinator.findings import Unknown
from coordinator.folders import Address, open_parent, reason
from coordinator.model_files import TrainedModel
from coordinator.records import Errors
from worker.arrays import Floats
from worker.batch import Target
from worker.columns import Column, Numbers, csv_type, require_columns
from worker.encoding import Encoding
from worker.errors import DataError, UserError
from worker.network import ErrorSums, decide
from worker.rows import EVALUATION_ROWS, fill_targets
from worker.sources import Source, count_rows, open_source, read_batches
from worker.stores import DEFAULT_STORAGE, StorageSpec
from worker.values import CALENDAR, Label, Where, read_numbers

QUIET: Final = np.errstate(over="ignore", invalid="ignore")
"""Rows far from those of the training may overflow, which is seen in what comes out."""


@dataclass(frozen=True)
class ScoredRow:
    """One row for a person to look at, its inputs as in the data; several values of a kind as lists, dates and times as text."""

    inputs: list[object]
    desired: Label | float | list[float]
    output: Label | float | list[float]
    absolute_error: float
    squared_error: float


@dataclass(frozen=True)
class Evaluation:
    """Errors over a dataset, with its first rows of any weight if asked for; errors of a row are means over outputs.

    `findings` has a sentence for whatever is odd about the rows.
    """

    rows: int
    errors: Errors
    table: list[ScoredRow]
    findings: list[str]


@dataclass(frozen=True)
class Predictions:
    """How many rows were scored, and a sentence for whatever is odd about them."""

    rows: int
    findings: list[str]


@QUIET
def evaluate(model: TrainedModel, data: str, table: int = 0, storage: StorageSpec = DEFAULT_STORAGE) -> Evaluation:
    """Return the model's errors over a labelled dataset.

    Args:
        model: the model.
        data: address of a file, a folder or a glob.
        table: rows to return, at most.
        storage: how stores are reached.

    Raises:
        UserError: the data can't be read or does not fit the model.
    """
    columns = (*model.encoding.feature_columns, *model.encoding.label.columns)
    needed = list(dict.fromkeys(column.name for column in columns))
    source = _open(model, data, storage, columns)
    rows: list[ScoredRow] = []
    sums: ErrorSums | None = None
    unknown = Unknown(model.encoding)
    for chunk in _chunks(model, source, needed, unknown, labelled=True):
        part = model.network.errors(model.weights_P, chunk.x_BI, chunk.t_BO, chunk.w_B)
        sums = part if sums is None else sums + part
        if len(rows) < table:
            rows.extend(_scored_rows(model, chunk)[: table - len(rows)])
    assert sums is not None, "an opened dataset has rows"
    return Evaluation(sums.rows, Errors.of(sums), rows, unknown.findings)


@QUIET
def predict(model: TrainedModel, data: str, output: Address, storage: StorageSpec = DEFAULT_STORAGE) -> Predictions:
    """Write predictions for a dataset as Parquet, in the order of its rows, and return what there is to say of them.

    Beside what the model says stand the columns that are none of its features, so that identifiers carry over:
    `prediction` (class or value; `prediction_NAME` where there are several) and for classes `probability_CLASS`.

    Raises:
        UserError: the data can't be read or does not fit the model, or the output can't be written.
    """
    features = model.encoding.feature_columns
    source = _open(model, data, storage, features)
    folder, name = open_parent(output, storage)
    if any(_same(file.path, output) for file in source.files):
        raise UserError(f"--output: {output} is the data itself; give another file")
    used = {column.name for column in features}
    carried = [name for name in source.schema.names if name not in used]
    wanted = [column.name for column in features] + carried
    unknown, overflown = Unknown(model.encoding), 0
    try:
        with folder.replacing(name) as file, _Writer(file) as writer:
            for chunk in _chunks(model, source, wanted, unknown, labelled=False):
                a_BO = _outputs(model, chunk.x_BI)
                overflown += int((~np.isfinite(a_BO)).any(axis=1).sum())
                scored = _predictions(model, a_BO)
                doubled = set(carried) & set(scored)
                if doubled:
                    raise DataError(f"{source.files[0].path}: its column '{doubled.pop()}' would be doubled; rename it")
                kept = {name: chunk.table.column(name) for name in carried}
                writer.write(pa.table(kept | scored))
    except OSError as error:
        raise UserError(f"--output: {output} can't be written: {reason(error)}; give a file in a folder that exists") from error
    lost = [f"{overflown:,} of the predictions are no finite numbers: their rows lie too far from those of the training"]
    return Predictions(source.rows, unknown.findings + lost * (overflown > 0))


def _same(path: str, output: Address) -> bool:
    if isinstance(output, Path):
        return output.exists() and Path(path).exists() and os.path.samefile(path, output)
    return path == output


@dataclass(frozen=True)
class _Chunk:
    table: pa.Table
    where: Where
    x_BI: Floats
    t_BO: Floats
    w_B: Floats | None


class _Writer:
    """A Parquet file whose schema is that of the first table written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._sink = file
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Writer":
        return self

    def write(self, table: pa.Table) -> None:
        if self._file is None:
            self._file = pq.ParquetWriter(self._sink, table.schema)
        self._file.write_table(table)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _open(model: TrainedModel, data: str, storage: StorageSpec, wanted: tuple[Column, ...]) -> Source:
    """Open and count a dataset that has these columns of the model's."""
    source = open_source(data, "--data", storage, model.csv)
    types = {column.name: csv_type(column, category=column in model.encoding.categories) for column in wanted}
    source = source.typed({name: arrow for name, arrow in types.items() if arrow is not None})
    require_columns(source, wanted)
    # The other columns may turn out not to be what they look like at first, and what is empty at first anything.
    doubtful = {field.name: field.type for field in source.schema if field.name not in types or pa.types.is_null(field.type)}
    source = source.counted({file.path: count_rows(file, storage, doubtful) for file in source.uncounted})
    require_columns(source, wanted)
    if source.rows == 0:
        raise DataError(f"{data}: has no rows; at least one is needed")
    return source


def _chunks(model: TrainedModel, source: Source, columns: list[str], unknown: Unknown, *, labelled: bool) -> Iterator[_Chunk]:
    """Yield the dataset encoded, a fixed number of rows at a time, whatever its batches."""
    encoding, dtype = model.encoding, model.network.spec.dtype
    place = 0
    for batch in read_batches(source, 0, source.rows, columns):
        unknown.look_at(batch, partial(_where, source, place))
        for first in range(0, batch.num_rows, EVALUATION_ROWS):
            table = batch.slice(first, EVALUATION_ROWS)
            where = partial(_where, source, place)
            t_BO, w_B = _targets(encoding, table, where, dtype) if labelled else (np.empty((table.num_rows, 0), dtype), None)
            yield _Chunk(table, where, encoding.features(table, where, dtype), t_BO, w_B)
            place += table.num_rows


def _targets(encoding: Encoding, table: pa.Table, where: Where, dtype: str) -> tuple[Floats, Floats | None]:
    """Return the targets of rows (B, O) as outputs, and their weights (B,) if they have any."""
    t_BO = np.empty((table.num_rows, encoding.outputs), dtype)
    w_B = np.empty(table.num_rows, dtype) if encoding.label.weighted else None
    fill_targets(encoding.targets(table, where, dtype), Target(t_BO.T, w_B))
    return t_BO, w_B


def _where(source: Source, place: int, row: int) -> str:
    return source.where(place + row)


def _scored_rows(model: TrainedModel, chunk: _Chunk) -> list[ScoredRow]:
    # The targets once more in full: in the model's precision, a large number's last digits are gone.
    t_BO, _ = _targets(model.encoding, chunk.table, chunk.where, "float64")
    a_BO, t_BO = _outputs(model, chunk.x_BI), model.encoding.label.own_units(t_BO)
    error_BO = np.abs(a_BO - t_BO)
    desired, output = _readable(model, t_BO), _readable(model, a_BO)
    absolute, squared = error_BO.mean(axis=1), np.square(error_BO).mean(axis=1)
    # As they stand in the data, not as the network sees them.
    values = [_plain(chunk, column) for column in model.encoding.feature_columns]
    raw = [_flattened(row) for row in zip(*values, strict=True)]
    columns = zip(raw, desired, output, absolute.tolist(), squared.tolist(), strict=True)
    counts = [True] * len(raw) if chunk.w_B is None else (chunk.w_B > 0).tolist()
    return [ScoredRow(*row) for row, counted in zip(columns, counts, strict=True) if counted]


def _plain(chunk: _Chunk, column: Column) -> list[object]:
    """Return a column's values as Python has them, dates and times as text: Python has none beyond the year 9999."""
    if column.kind not in CALENDAR:
        values: list[object] = chunk.table.column(column.name).to_pylist()
        return values
    numbers_N = read_numbers(chunk.table, Numbers(column), chunk.where, gaps=True)[:, 0]
    return [None if isnan(number) else written(column.kind, number) for number in numbers_N.tolist()]


def _flattened(values: Iterable[object]) -> list[object]:
    return [entry for value in values for entry in (value if isinstance(value, list) else [value])]


def _outputs(model: TrainedModel, x_BI: Floats) -> Floats:
    """Return what the model says, in the targets' own units."""
    return model.encoding.label.own_units(model.network.predict(model.weights_P, x_BI))


def _readable(model: TrainedModel, values_BO: Floats) -> list[Label | float | list[float]]:
    classes = model.encoding.label.classes
    if classes is not None:
        return [classes[number] for number in decide(values_BO)]
    return [row[0] if len(row) == 1 else row for row in values_BO.tolist()]


def _predictions(model: TrainedModel, a_BO: Floats) -> dict[str, pa.Array]:
    classes = model.encoding.label.classes
    if classes is None:
        names = model.encoding.label.names
        if len(names) == 1:
            return {"prediction": pa.array(a_BO[:, 0].copy())}
        return {f"prediction_{name}": pa.array(a_BO[:, place].copy()) for place, name in enumerate(names)}
    chosen = pa.array(classes).take(pa.array(decide(a_BO)))
    probabilities = np.hstack([1.0 - a_BO, a_BO]) if a_BO.shape[1] == 1 else a_BO
    return {"prediction": chosen} | {
        f"probability_{label}": pa.array(probabilities[:, place].copy()) for place, label in enumerate(classes)
    }
