"""From a job to a plan: the datasets' metadata, the columns, the shards, and the encoding fitted by the workers."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from coordinator.job import JobSpec
from worker.choice import choose_columns
from worker.columns import NUMBERS, Columns, require_columns, value_names
from worker.encoding import Encoding
from worker.errors import DataError, JobError
from worker.messages import ScanShards, Setup
from worker.scan import Scan, scan_sum
from worker.sharding import ShardPlan
from worker.sources import Source, open_source


@dataclass(frozen=True)
class Inspection:
    """What metadata tells of a job's data. CSV files are yet to be counted."""

    train: Source
    validation: Source | None
    columns: Columns

    @property
    def uncounted(self) -> list[str]:
        """Paths of the files that have no count in their metadata."""
        return [*self.train.uncounted, *(self.validation.uncounted if self.validation else ())]

    def counted(self, rows: dict[str, int]) -> "Inspection":
        """Return the inspection with the counts filled in."""
        validation = self.validation.counted(rows) if self.validation else None
        return replace(self, train=self.train.counted(rows), validation=validation)


def inspect(job: JobSpec) -> Inspection:
    """Read the metadata of the job's data, never its rows, and choose the columns.

    Raises:
        JobError: a path or column that the job names is not there, or contradicts the model.
        DataError: a file can't be read.
    """
    data = job.data
    train = open_source(data.train, "data.train")
    columns = choose_columns(train.schema, data, job.model)
    if job.model.task == "regression":
        job.model.check_outputs(len(value_names(columns.labels)))
    numbers = [feature.column.name for feature in columns.features if not feature.category and feature.column.kind in NUMBERS]
    numbers += [column.name for column in columns.labels if job.model.task == "regression"]
    numbers += [columns.weight.name] if columns.weight is not None else []
    validation = None
    if isinstance(data.validation, str):
        validation = open_source(data.validation, "data.validation")
        require_columns(validation, columns.all)
        validation = validation.with_numbers(numbers)
    return Inspection(train.with_numbers(numbers), validation, columns)


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
