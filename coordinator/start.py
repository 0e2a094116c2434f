"""All that is settled before the first round: by the job, by its data, by the workers and by a run that is taken up."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast

from coordinator.checkpoint import Origin
from coordinator.crew import Shards
from coordinator.dispatch import Dispatcher, PoolError
from coordinator.findings import findings
from coordinator.job import decisive
from coordinator.model_files import enough_memory, starting_weights
from coordinator.order import Order
from coordinator.pool import Pool
from coordinator.preparation import Inspection, fit_encoding, make_plan, make_setup, shuffled
from coordinator.resume import check_origin, compare_fingerprints, content_of, files_of, find_checkpoint
from coordinator.run_directory import checkpoints
from coordinator.snapshot import Progress, Snapshot
from coordinator.training import Training
from coordinator.update import Updater
from worker.blas import fingerprint
from worker.encoding import Encoding
from worker.messages import CountRows, PrepareShards, RowCounts, Setup, TryValidation
from worker.model import Layout
from worker.scan import Scan


@dataclass(frozen=True)
class Prepared:
    """All that is settled before the first round.

    The arrays that it starts from are the training's alone: kept here, they would stay in memory as long as the run does.
    """

    setup: Setup
    encoding: Encoding
    dispatcher: Dispatcher
    layout: Layout
    training: Training
    progress: Progress
    origin: Origin
    warnings: list[str]


def prepare(order: Order, inspection: Inspection, pool: Pool) -> Prepared:
    """Have the workers read and encode their shards, and settle what there is to be trained.

    Raises:
        UserError: the job, its data or the run directory are at fault.
        PoolError: the workers can't go on, or the run that a lost coordinator is to go on with has no checkpoint.
    """
    job, ours = order.job, fingerprint()
    dispatcher = Dispatcher(
        pool,
        job.workers,
        job.data.shards,
        lambda number, theirs: compare_fingerprints(ours, theirs, f"worker {number} has", job),
    )
    dispatcher.assemble(restarted=order.restarted)
    inspection = inspection.counted(_count(dispatcher, inspection, job.data.shards))
    setup = make_setup(job, inspection, make_plan(job, inspection))

    def scan(task: Callable[[Shards], Any]) -> dict[int, Scan]:
        answers = dispatcher.ask("scan", task, rows=False)
        return {shard: scan for answer in answers for shard, scan in cast(dict[int, Scan], answer).items()}

    encoding, known = fit_encoding(setup, scan)
    setup = shuffled(job, setup, encoding)
    layout = encoding.network(job.model).layout
    updater = Updater(job.optimizer, job.model, layout, threads=len(os.sched_getaffinity(0)))
    window = setup.plan.window
    pieces = "" if window is None else sha256(repr(window.cuts).encode()).hexdigest()
    files = {"data.train": files_of(setup.train)}
    files |= {"data.validation": files_of(setup.validation)} if setup.validation is not None else {}
    origin = Origin(
        job=decisive(job),
        rows=setup.plan.rows,
        parameters=layout.size,
        fingerprint=ours,
        pieces=pieces,
        content=content_of(setup.columns, known),
        files=files,
    )
    start, warnings = _begin_or_go_on(order, layout, updater, origin)
    dispatcher.learn_to_load(lambda shards: PrepareShards(setup, shards, encoding), streamed=window is not None)
    if start.progress.rounds == 0:
        # So that a row that can't be used is told now, and not after an epoch.
        dispatcher.ask("try", TryValidation)
    warnings += findings(setup.columns, job.model, known)
    training = Training(job, setup, dispatcher, updater, start)
    return Prepared(setup, encoding, dispatcher, layout, training, start.progress, origin, warnings)


def _count(dispatcher: Dispatcher, inspection: Inspection, shards: int) -> RowCounts:
    """Have the workers count what has no count in its metadata, the files dealt out like shards."""
    files = inspection.uncounted
    if not files:
        return {}

    def task(share: Shards) -> CountRows:
        return inspection.count_task(file for place, file in enumerate(files) if place % shards in share)

    answers = dispatcher.ask("count", task, rows=False)
    return {path: count for answer in answers for path, count in cast(RowCounts, answer).items()}


def _begin_or_go_on(order: Order, layout: Layout, updater: Updater, origin: Origin) -> tuple[Snapshot, list[str]]:
    """Return the state to train from, and what the user should know of the checkpoint that it is in, if it is in one."""
    job = order.job
    with enough_memory(layout, job.model):
        weights_P = starting_weights(job.model, layout, job.job.seed, job.storage)
        beginning = Snapshot(Progress(), updater.start(weights_P), weights_P)
    if not order.resume:
        return beginning, []
    folder = checkpoints(order.folder)
    checkpoint, warnings = find_checkpoint(folder)
    if checkpoint is not None:
        return checkpoint.snapshot, warnings + check_origin(checkpoint, origin, job)
    if order.checkpointed:
        raise PoolError(
            f"the coordinator was started anew, and {folder.address} has no checkpoint any more; "
            "restore one and go on with --resume, or begin a new run in another directory"
        )
    return beginning, warnings
