"""From a job to a plan: the datasets' metadata, the columns, the shards, and the encoding fitted by the workers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Final

import numpy as np
import pyarrow as pa

from coordinator.job import JobSpec
from worker.choice import choose_columns
from worker.columns import Columns, csv_type, require_columns, value_names
from worker.data import DataSpec
from worker.encoding import Encoding
from worker.errors import DataError, JobError, require
from worker.keeping import raw_type, streamed_bytes, training_need
from worker.memory import written_size
from worker.messages import CountRows, RowCounts, ScanShards, Setup
from worker.model import ModelSpec
from worker.scan import Scan, scan_sum
from worker.sharding import ShardPlan, Window
from worker.sources import Source, SourceFile, open_source

FULL_BYTES: Final = 1 << 30
"""Inputs of the training rows up to which `data.shuffle = "auto"` shuffles whole shards."""

WINDOW_BYTES: Final = 64 << 20
"""Inputs of the rows of a window, over all shards, unless the job says how many rows."""


@dataclass(frozen=True)
class Inspection:
    """What metadata tells of a job's data. CSV files are yet to be counted, and the types of their columns guesses until then."""

    job: JobSpec
    train: Source
    validation: Source | None
    columns: Columns

    def count_task(self, files: Iterable[SourceFile]) -> CountRows:
        """Return the task that counts files."""
        chosen, train = tuple(files), {file.path for file in self.train.files}
        of_train, of_validation = self._doubtful(self.train), self._doubtful(self.validation)
        return CountRows(chosen, self.job.storage, tuple(of_train if file.path in train else of_validation for file in chosen))

    @property
    def uncounted(self) -> list[SourceFile]:
        """The files that have no count in their metadata."""
        return [*self.train.uncounted, *(self.validation.uncounted if self.validation else ())]

    def _doubtful(self, source: Source | None) -> dict[str, pa.DataType]:
        """Return columns of a dataset that may turn out to be something else further on, by what they look like.

        They are categories or classes that look like whole numbers, and what has no value at the beginning of the files.
        """
        if source is None:
            return {}
        looks = {field.name: field.type for field in self.train.schema}
        used = [feature.column for feature in self.columns.features if feature.category]
        used += self.columns.labels if self.job.model.task != "regression" else ()
        empty = [field.name for field in source.schema if pa.types.is_null(field.type)]
        return {column.name: looks[column.name] for column in used if column.kind != "text"} | dict.fromkeys(empty, pa.null())

    def counted(self, counts: RowCounts) -> "Inspection":
        """Return the inspection with the counts filled in, and the columns as the counting found them to be."""
        train = self.train.counted(counts)
        columns = (
            self.columns if train.schema == self.train.schema else choose_columns(train.schema, self.job.data, self.job.model)
        )
        types = _types(columns, self.job.model)
        validation = self.validation.counted(counts).typed(types) if self.validation is not None else None
        if validation is not None:
            require_columns(validation, columns.all)
        return replace(self, train=train.typed(types), validation=validation, columns=columns)


def _types(columns: Columns, model: ModelSpec) -> dict[str, pa.DataType]:
    """Return what columns of CSV files are to be read as, by name."""
    uses = [(feature.column, feature.category) for feature in columns.features]
    uses += [(column, model.task != "regression") for column in columns.labels]
    uses += [(columns.weight, False)] if columns.weight is not None else []
    types = {column.name: csv_type(column, category=category) for column, category in uses}
    return {name: arrow for name, arrow in types.items() if arrow is not None}


def inspect(job: JobSpec) -> Inspection:
    """Read the metadata of the job's data, never its rows, and choose the columns.

    Raises:
        JobError: a path or column that the job names is not there, or contradicts the model.
        DataError: a file can't be read.
    """
    data = job.data
    train = open_source(data.train, "data.train", job.storage, data.csv)
    columns = choose_columns(_presumed(train, data), data, job.model)
    if job.model.task == "regression":
        job.model.check_outputs(len(value_names(columns.labels)))
    validation = None
    if isinstance(data.validation, str):
        validation = open_source(data.validation, "data.validation", job.storage, data.csv)
        # What a column without values at the beginning holds, and so what it must hold here, is seen when the rows are counted.
        empty = {field.name for field in train.schema if pa.types.is_null(field.type)}
        known = [column for column in columns.all if column.name not in empty]
        require_columns(validation.typed(_types(columns, job.model)), known)
    return Inspection(job, train, validation, columns)


def _presumed(source: Source, data: DataSpec) -> pa.Schema:
    """Return a dataset's columns, those that a CSV has no value of at first as moments where the job asks for parts of them."""
    patterns = [pattern for pattern, spec in data.columns.items() if spec.parts]

    def presumed(field: pa.Field) -> pa.Field:
        asked = any(field.name == pattern or fnmatchcase(field.name, pattern) for pattern in patterns)
        return field.with_type(pa.timestamp("s")) if asked and source.guessed and pa.types.is_null(field.type) else field

    return pa.schema([presumed(field) for field in source.schema])


def make_plan(job: JobSpec, inspection: Inspection) -> ShardPlan:
    """Lay the counted rows out over shards and rounds.

    Raises:
        DataError: there are no rows.
        JobError: there are too few rows for the shards or for the validation share.
    """
    data = job.data
    rows = inspection.train.rows
    if rows == 0:
        raise DataError(f"{data.train}: has no rows; at least one is needed to train on")
    if inspection.validation is not None and inspection.validation.rows == 0:
        raise DataError(f"{data.validation}: has no rows; leave data.validation out for no validation")
    held_out = round(rows * data.validation) if isinstance(data.validation, float) else 0
    if isinstance(data.validation, float) and not 0 < held_out < rows:
        raise JobError("data.validation", f"{data.validation} of {rows} rows is {held_out}; both parts need at least one row")
    if rows - held_out < data.shards:
        raise JobError(
            "data.shards",
            f"{rows - held_out} training rows can't fill {data.shards} shards; use at most {rows - held_out}",
        )
    return ShardPlan(
        rows=rows,
        validation_rows=held_out,
        shards=data.shards,
        batch_size=job.training.batch_size,
        seed=job.job.seed,
    )


def make_setup(job: JobSpec, inspection: Inspection, plan: ShardPlan) -> Setup:
    """Return what every worker must know of the run."""
    return Setup(
        model=job.model,
        columns=inspection.columns,
        plan=plan,
        train=inspection.train,
        validation=inspection.validation,
        memory_limit=job.data.memory_bytes,
    )


def shuffled(job: JobSpec, setup: Setup, encoding: Encoding) -> Setup:
    """Return the setup with the order of rows settled: by the job and its data alone, never by memory or workers.

    Raises:
        JobError: `data.memory_limit` is too small for it.
    """
    data, plan = job.data, setup.plan
    row_bytes = len(encoding.input_names) * np.dtype(job.model.dtype).itemsize
    if data.shuffle == "window" or (data.shuffle == "auto" and plan.training_rows * row_bytes > FULL_BYTES):
        rows = data.window_rows or max(1, WINDOW_BYTES // row_bytes)
        setup = replace(setup, plan=replace(plan, window=Window(-(-rows // plan.shards), setup.train.cuts)))
    _check_memory(job, setup, encoding)
    return setup


def _check_memory(job: JobSpec, setup: Setup, encoding: Encoding) -> None:
    limit, plan = setup.memory_limit, setup.plan
    if limit is None:
        return
    raw = raw_type(setup, encoding)
    needs = [training_need(setup, encoding, shard, raw) for shard in range(plan.shards)]
    if plan.window is not None:
        # All of them, since a worker may have to take over from all others.
        windows = sum(need.least for need in needs)
        most = limit // streamed_bytes(1, encoding.row_bytes(job.model.dtype)) // plan.shards * plan.shards
        require(
            windows <= limit,
            "data.memory_limit",
            f"{job.data.memory_limit} is less than the {written_size(windows)} that windows of all shards take; raise it"
            + (f", or set data.window_rows to {most:,} or less" if most else ", or use fewer shards"),
        )
    else:
        share = -(-plan.shards // job.workers.first)
        rows = sum(need.kept for need in needs[:share])
        require(
            rows <= limit,
            "data.memory_limit",
            f"{job.data.memory_limit} is less than the {written_size(rows)} that the shards of each of "
            f'{job.workers.first} workers take; raise it, set data.shuffle = "window", or use more workers',
        )


def fit_encoding(
    setup: Setup, scan: Callable[[Callable[[tuple[int, ...]], ScanShards]], dict[int, Scan]]
) -> tuple[Encoding, Scan]:
    """Return the encoding fitted to the training rows, and what is known of them.

    The shards' scans are added in the order of the shards, so the result does not depend on who scanned them.

    Args:
        setup: the run.
        scan: has workers carry out the task for their shards, and returns all scans by shard.
    """
    scans = scan(lambda shards: ScanShards(setup, shards))
    total = scan_sum((scans[shard] for shard in sorted(scans)), setup.columns)
    return Encoding.fit(setup.columns, setup.model, total), total
