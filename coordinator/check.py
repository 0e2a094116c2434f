"""What a job would do, without doing it."""

from collections.abc import Callable
from dataclasses import dataclass

from coordinator.column_plans import ColumnPlan, plan_columns
from coordinator.findings import findings
from coordinator.job import JobSpec
from coordinator.model_files import enough_memory, starting_weights
from coordinator.optimizers import make_optimizer
from coordinator.preparation import fit_encoding, inspect, make_plan, make_setup, shuffled
from worker.engine import Worker
from worker.gradients import chunk_entries
from worker.keeping import choose_keeping
from worker.memory import memory_limit
from worker.messages import ScanShards
from worker.model import Layout
from worker.scan import Scan
from worker.shard import Shards
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
        window_rows: that are shuffled together, over all shards; None where all of a shard are.
        data_bytes: the rows, decoded, over all workers.
        limit_bytes: that the rows of a worker may take, on this machine unless the job says how much.
        kept: shards that a worker keeps in memory, of `share`; it streams the others.
        raw: type in which these are kept as in the files; None where they are kept as the network reads them.
        share: shards of a worker, at most, as long as none is lost.
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
    window_rows: int | None
    data_bytes: int
    limit_bytes: int
    kept: int
    raw: str | None
    share: int
    worker_bytes: int
    coordinator_bytes: int


def check_job(job: JobSpec, progress: Callable[[str, int], None] = lambda *_: None) -> JobPlan:
    """Return the plan of a job, going once through the training rows and then the rows to validate on, a shard at a time.

    Args:
        job: the job.
        progress: is told which rows are read, and of how many shards they have been.

    Raises:
        UserError: what would stop the run before its first round, as far as that can be told.
    """
    inspection = inspect(job)
    worker = Worker()
    inspection = inspection.counted(worker.count(inspection.count_task(inspection.uncounted)))
    plan = make_plan(job, inspection)
    setup = make_setup(job, inspection, plan)
    encoding, known = fit_encoding(setup, lambda task: _scan_in_turn(task, plan.shards, progress))
    setup = shuffled(job, setup, encoding)
    layout = encoding.network(job.model).layout
    with enough_memory(layout, job.model):
        weights = starting_weights(job.model, layout, job.job.seed, job.storage)
        state = make_optimizer(job.optimizer).init(weights)
    shards = Shards(setup, encoding, limit=0)
    for shard in range(plan.shards):
        shards.try_validation([shard])
        progress("rows to validate on", shard + 1)
    validation_rows = plan.validation_rows if inspection.validation is None else inspection.validation.rows
    share, limit = -(-plan.shards // job.workers.first), memory_limit(setup.memory_limit, 1 / job.workers.most)
    keeping = choose_keeping(setup, encoding, range(share), limit)
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
        window_rows=None if setup.plan.window is None else setup.plan.window.rows * plan.shards,
        data_bytes=(plan.training_rows + validation_rows) * encoding.row_bytes(job.model.dtype),
        limit_bytes=limit,
        kept=keeping.training_shards,
        raw=keeping.raw,
        share=share,
        worker_bytes=_worker_bytes(layout, plan.batch_size, plan.shards, weights.itemsize),
        coordinator_bytes=(4 + 2 * len(state)) * weights.nbytes,
    )


def _scan_in_turn(
    task: Callable[[tuple[int, ...]], ScanShards], shards: int, progress: Callable[[str, int], None]
) -> dict[int, Scan]:
    """Scan shard by shard, each by a worker of its own, which keeps the rows."""
    scans: dict[int, Scan] = {}
    for shard in range(shards):
        scans |= Worker().scan(task((shard,)))
        progress("training rows", shard + 1)
    return scans


def _count_files(count: int, form: str) -> str:
    return f"1 {form} file" if count == 1 else f"{count:,} {form} files"


def _worker_bytes(layout: Layout, batch_size: int, shards: int, itemsize: int) -> int:
    """Return what one worker for all shards takes: weights, a gradient sum, a chunk of each slice's, and the rows' buffers."""
    chunk = min(layout.size, chunk_entries(layout))
    rows = batch_size * (layout.sizes[0] + 3 * sum(layout.sizes[1:]))
    return itemsize * (2 * layout.size + shards * chunk + rows)
