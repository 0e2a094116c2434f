"""From a job to a plan: the datasets' metadata, the columns, the shards, and the encoding fitted by the workers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import pyarrow as pa

from coordinator.job import JobSpec
from worker.choice import choose_columns
from worker.columns import Columns, csv_type, require_columns, value_names
from worker.encoding import Encoding
from worker.errors import DataError, JobError
from worker.messages import CountRows, RowCounts, ScanShards, Setup
from worker.model import ModelSpec
from worker.scan import Scan, scan_sum
from worker.sharding import ShardPlan
from worker.sources import Source, SourceFile, open_source


@dataclass(frozen=True)
class Inspection:
    """What metadata tells of a job's data. CSV files are yet to be counted, and the types of their columns guesses until then."""

    job: JobSpec
    train: Source
    validation: Source | None
    columns: Columns

    def count_task(self, files: Iterable[SourceFile]) -> CountRows:
        """Return the task that counts files."""
        return CountRows(tuple(files), self.job.storage, self._doubtful)

    @property
    def uncounted(self) -> list[SourceFile]:
        """The files that have no count in their metadata."""
        return [*self.train.uncounted, *(self.validation.uncounted if self.validation else ())]

    @property
    def _doubtful(self) -> dict[str, pa.DataType]:
        """Columns of categories or classes that look like whole numbers, but may turn out to be text further on."""
        columns = [feature.column for feature in self.columns.features if feature.category]
        columns += self.columns.labels if self.job.model.task != "regression" else ()
        found = {column.name: self.train.schema.field(column.name).type for column in columns if column.kind != "text"}
        return {name: pa.int64() if pa.types.is_null(arrow) else arrow for name, arrow in found.items()}

    def counted(self, counts: RowCounts) -> "Inspection":
        """Return the inspection with the counts filled in, and the columns as the counting found them to be."""
        train = self.train.counted(counts)
        columns = (
            self.columns if train.schema == self.train.schema else choose_columns(train.schema, self.job.data, self.job.model)
        )
        types = _types(columns, self.job.model)
        validation = self.validation.counted(counts).typed(types) if self.validation is not None else None
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
    train = open_source(data.train, "data.train", job.storage)
    columns = choose_columns(train.schema, data, job.model)
    if job.model.task == "regression":
        job.model.check_outputs(len(value_names(columns.labels)))
    validation = None
    if isinstance(data.validation, str):
        validation = open_source(data.validation, "data.validation", job.storage)
        require_columns(validation.typed(_types(columns, job.model)), columns.all)
    return Inspection(job, train, validation, columns)


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
