"""What a job would do, without doing it."""

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.column_plans import ColumnPlan, plan_columns
from coordinator.findings import findings
from coordinator.job import JobSpec
from coordinator.model_files import starting_weights
from coordinator.optimizers import make_optimizer
from coordinator.preparation import fit_encoding, inspect, make_plan, make_setup
from worker.encoding import Encoding
from worker.engine import Worker
from worker.gradients import chunk_entries
from worker.messages import ScanShards
from worker.model import Layout
from worker.scan import Scan
from worker.values import Label


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """The plan of a job.

    Attributes:
        columns: each feature and label, and what becomes of it.
        findings: what is odd about the training rows.
        files: how many the training data has, and of which format.
        rows: to train on, an epoch.
        validation_rows: to validate on.
        classes: labels that the training rows have; None for regressions.
        sizes: inputs, hidden units and outputs of the network.
        parameters: weights and biases.
        shards: parts of the data.
        rounds_per_epoch: updates an epoch.
        most_rounds: updates of the run; None where nothing limits them.
        data_bytes: the rows, decoded, over all workers.
        worker_bytes: of one worker for all shards, beside its rows: weights, gradients and buffers.
        coordinator_bytes: weights and the optimizer's state, with the weights kept and a checkpoint that is being written.
    """

    columns: list[ColumnPlan]
    findings: list[str]
    files: str
    rows: int
    validation_rows: int
    classes: tuple[Label, ...] | None
    sizes: tuple[int, ...]
    parameters: int
    shards: int
    rounds_per_epoch: int
    most_rounds: int | None
    data_bytes: int
    worker_bytes: int
    coordinator_bytes: int


def check_job(job: JobSpec, progress: Callable[[int], None] = lambda _: None) -> JobPlan:
    """Return the plan of a job, going once through the training rows, a shard at a time.

    Args:
        job: the job.
        progress: is told how many shards have been read.

    Raises:
        UserError: what would stop the run before its first round, as far as that can be told.
    """
    inspection = inspect(job)
    worker = Worker()
    inspection = inspection.counted(worker.count(inspection.count_task(inspection.uncounted)))
    plan = make_plan(job, inspection)
    setup = make_setup(job, inspection, plan)
    encoding, known = fit_encoding(setup, lambda task: _scan_in_turn(task, plan.shards, progress))
    layout = encoding.network(job.model).layout
    weights = starting_weights(job.model, layout, job.job.seed)
    state = make_optimizer(job.optimizer).init(weights)
    validation_rows = plan.validation_rows if inspection.validation is None else inspection.validation.rows
    return JobPlan(
        columns=plan_columns(inspection.columns, encoding, known),
        findings=findings(inspection.columns, job.model, known),
        files=_count_files(len(inspection.train.files), inspection.train.files[0].format),
        rows=plan.training_rows,
        validation_rows=validation_rows,
        classes=encoding.label.classes,
        sizes=layout.sizes,
        parameters=layout.size,
        shards=plan.shards,
        rounds_per_epoch=plan.rounds_per_epoch,
        most_rounds=job.training.most_rounds(plan.rounds_per_epoch),
        data_bytes=(plan.training_rows + validation_rows) * _row_bytes(layout, encoding, weights.itemsize),
        worker_bytes=_worker_bytes(layout, plan.batch_size, plan.shards, weights.itemsize),
        coordinator_bytes=(4 + 2 * len(state)) * weights.nbytes,
    )


def _scan_in_turn(task: Callable[[tuple[int, ...]], ScanShards], shards: int, progress: Callable[[int], None]) -> dict[int, Scan]:
    """Scan shard by shard, each by a worker of its own, which keeps the rows."""
    scans: dict[int, Scan] = {}
    for shard in range(shards):
        scans |= Worker().scan(task((shard,)))
        progress(shard + 1)
    return scans


def _count_files(count: int, form: str) -> str:
    return f"1 {form} file" if count == 1 else f"{count:,} {form} files"


def _row_bytes(layout: Layout, encoding: Encoding, itemsize: int) -> int:
    return layout.sizes[0] * itemsize + (8 if encoding.label.classes is not None else layout.sizes[-1] * itemsize)


def _worker_bytes(layout: Layout, batch_size: int, shards: int, itemsize: int) -> int:
    """Return what one worker for all shards takes: weights, a gradient sum, a chunk of each slice's, and the rows' buffers."""
    chunk = min(layout.size, chunk_entries(layout))
    rows = batch_size * (layout.sizes[0] + 3 * sum(layout.sizes[1:]))
    return itemsize * (2 * layout.size + shards * chunk + rows)
