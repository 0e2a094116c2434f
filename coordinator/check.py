"""What a job would do, without doing it."""

from dataclasses import dataclass, replace

from coordinator.job import JobSpec
from coordinator.model_files import starting_weights
from coordinator.optimizers import make_optimizer
from coordinator.preparation import fit_encoding, inspect, make_plan, make_setup
from worker.data import Columns
from worker.encoding import Encoding, Label
from worker.engine import Worker
from worker.gradients import chunk_entries
from worker.messages import CountRows
from worker.model import Layout
from worker.network import Network


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """The plan of a job.

    Attributes:
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


def check_job(job: JobSpec) -> JobPlan:
    """Return the plan of a job, reading the data's metadata and the column of class labels, and nothing else.

    Raises:
        UserError: what would stop the run before its first round, as far as that can be told.
    """
    inspection = inspect(job)
    worker = Worker()
    inspection = inspection.counted(worker.count(CountRows(tuple(inspection.uncounted))))
    plan = make_plan(job, inspection)
    # Without features and scaling, a scan reads the label alone.
    labels_only = replace(inspection, columns=Columns((), inspection.columns.labels))
    setup = replace(make_setup(job, labels_only, plan), scale="none")
    encoding: Encoding = fit_encoding(setup, lambda task: worker.scan(task(tuple(range(plan.shards)))))
    layout = Network(job.model, len(inspection.columns.feature_names), encoding.outputs).layout
    weights = starting_weights(job.model, layout, job.job.seed)
    state = make_optimizer(job.optimizer).init(weights)
    validation_rows = plan.validation_rows if inspection.validation is None else inspection.validation.rows
    return JobPlan(
        files=_count_files(len(inspection.train.files), inspection.train.files[0].format),
        rows=plan.training_rows,
        validation_rows=validation_rows,
        classes=encoding.classes,
        sizes=layout.sizes,
        parameters=layout.size,
        shards=plan.shards,
        rounds_per_epoch=plan.rounds_per_epoch,
        most_rounds=job.training.most_rounds(plan.rounds_per_epoch),
        data_bytes=(plan.training_rows + validation_rows) * _row_bytes(layout, encoding, weights.itemsize),
        worker_bytes=_worker_bytes(layout, plan.batch_size, plan.shards, weights.itemsize),
        coordinator_bytes=(4 + 2 * len(state)) * weights.nbytes,
    )


def _count_files(count: int, form: str) -> str:
    return f"1 {form} file" if count == 1 else f"{count:,} {form} files"


def _row_bytes(layout: Layout, encoding: Encoding, itemsize: int) -> int:
    return layout.sizes[0] * itemsize + (8 if encoding.classes is not None else layout.sizes[-1] * itemsize)


def _worker_bytes(layout: Layout, batch_size: int, shards: int, itemsize: int) -> int:
    """Return what one worker for all shards takes: weights, a gradient sum, a chunk of each slice's, and the rows' buffers."""
    chunk = min(layout.size, chunk_entries(layout))
    rows = batch_size * (layout.sizes[0] + 3 * sum(layout.sizes[1:]))
    return itemsize * (2 * layout.size + shards * chunk + rows)
