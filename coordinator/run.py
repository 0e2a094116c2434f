"""One run from job to finished run directory, over any pool."""

import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from hashlib import sha256
from time import time
from typing import Any, Final, cast

import numpy as np

from coordinator.checkpoint import CheckpointWriter, Origin
from coordinator.crew import Shards
from coordinator.dispatch import Dispatcher, PoolError
from coordinator.findings import findings
from coordinator.folders import Address, Folder, name_of, open_folder
from coordinator.job import JobSpec, decisive, dump_job
from coordinator.model_files import enough_memory, save_model, starting_weights, weights_digest
from coordinator.pool import Pool
from coordinator.preparation import Inspection, fit_encoding, inspect, make_plan, make_setup, shuffled
from coordinator.records import (
    CrewStatus,
    EpochDone,
    EpochRecord,
    Event,
    Finished,
    Noticed,
    Percentiles,
    RoundDone,
    Seconds,
    Started,
    Summary,
)
from coordinator.resume import check_origin, compare_fingerprints, find_checkpoint
from coordinator.run_directory import (
    ASKED_SECONDS,
    UNATTENDED_SECONDS,
    RunDirectory,
    check,
    checkpoints,
    ending,
    hold,
    holds_run,
)
from coordinator.snapshot import Progress, Snapshot
from coordinator.training import Outcome, Training
from coordinator.update import Updater
from coordinator.watch import Watch
from worker.blas import fingerprint
from worker.encoding import Encoding
from worker.errors import UserError
from worker.messages import CountRows, PrepareShards, RowCounts, Setup
from worker.model import Layout
from worker.scan import Scan
from worker.sharding import ShardPlan

ROUNDS_TIMED: Final = 100_000
"""Rounds whose durations are kept for the percentiles."""


@dataclass(frozen=True)
class Order:
    """What a run needs beside its pool.

    Attributes:
        job: the job.
        directory: the run directory, as `parse_address` returns it; its name is the run's.
        began: when the user asked for the run, in seconds since the epoch.
        resume: go on with the run that the directory holds, from its newest checkpoint.
        resume_if_begun: do so if the directory holds a run, else begin one.
        restarted: the coordinator before this one was lost, and maybe some of the workers' places with it.
        checkpointed: it had told of a checkpoint, so that the run is not to begin anew.
    """

    job: JobSpec
    directory: Address
    began: float
    resume: bool = False
    resume_if_begun: bool = False
    restarted: bool = False
    checkpointed: bool = False

    @property
    def folder(self) -> Folder:
        """The run directory, opened."""
        return open_folder(self.directory, self.job.storage)


def run(order: Order, pool: Pool, interrupted: Callable[[], bool]) -> Iterator[Event]:
    """Train the job on the pool's workers, yielding what happens; the last event is Finished.

    Raises:
        UserError: the job, its data or the run directory are at fault.
        PoolError: the workers can't go on; what was done is in the run directory.
    """
    with ExitStack() as held:
        order = decided(order)
        check_directory(order)
        patience = UNATTENDED_SECONDS if order.resume_if_begun or order.restarted else ASKED_SECONDS
        if order.resume:
            # Before all else: a process that had the run before may still write, and take its announcement back.
            yield from hold(order.folder, held, patience, interrupted)
        inspection = inspect(order.job)
        watch = held.enter_context(closing(Watch(order.job.metrics, order.directory)))
        prepared = prepare(order, inspection, pool)
        # Made only now, so that a run that can't begin leaves nothing behind.
        directory = _directory(order, prepared)
        if not order.resume:
            yield from hold(order.folder, held, patience, interrupted)
        try:
            failure = yield from _train(order, prepared, directory, watch, interrupted)
        except Exception as error:
            ends_lingering = _from_now_on(interrupted)
            watch.fail()
            if order.job.metrics is not None and order.job.metrics.linger_seconds > 0:
                # What is raised is told only after that.
                yield watch.report(Noticed(message=f"the run broke off: {error}; its metrics stay for a while, Ctrl-C ends that"))
            watch.linger(ends_lingering)
            raise
    if failure is not None:
        raise failure


def decided(order: Order) -> Order:
    """Return the order with `resume` set where that was left to what the directory holds."""
    return replace(order, resume=True) if order.resume_if_begun and holds_run(order.folder) else order


def check_directory(order: Order) -> None:
    """Raise a UserError if the run directory is not fit for the order, a PoolError if a lost coordinator's is not seen here."""
    if order.checkpointed and not holds_run(order.folder):
        raise PoolError(
            f"the coordinator was started anew on {socket.gethostname()}, where {order.directory} does not hold the run; "
            "give a --run-dir that all nodes see, or go on with --resume where it is seen"
        )
    if not order.resume:
        check(order.folder)
    elif not holds_run(order.folder):
        raise UserError(f"--resume: {order.directory} holds no run; leave --resume out to begin one")


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
    """Have the workers read and encode their shards, and settle what there is to be trained. Raises as `run` does."""
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
    origin = Origin(job=decisive(job), rows=setup.plan.rows, parameters=layout.size, fingerprint=ours, pieces=pieces)
    with enough_memory(layout, job.model):
        weights_P = starting_weights(job.model, layout, job.job.seed, job.storage)
        start, warnings = Snapshot(Progress(), updater.start(weights_P), weights_P), list[str]()
    if order.resume:
        folder = checkpoints(order.folder)
        checkpoint, warnings = find_checkpoint(folder)
        if checkpoint is None and order.checkpointed:
            raise PoolError(
                f"the coordinator was started anew, and {folder.address} has no checkpoint any more; "
                "restore one and go on with --resume, or begin a new run in another directory"
            )
        if checkpoint is not None:
            warnings += check_origin(checkpoint, origin, job)
            start = checkpoint.snapshot
    dispatcher.learn_to_load(lambda shards: PrepareShards(setup, shards, encoding), streamed=window is not None)
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


def _directory(order: Order, prepared: Prepared) -> RunDirectory:
    if order.resume:
        return RunDirectory.resume(order.folder, dump_job(order.job), prepared.progress.history_lines)
    return RunDirectory.create(order.folder, dump_job(order.job))


def _train(
    order: Order, prepared: Prepared, directory: RunDirectory, watch: Watch, interrupted: Callable[[], bool]
) -> Generator[Event, None, PoolError | None]:
    """Train, fill the run directory and linger; return what the workers could not go on for, if anything."""
    job, training, dispatcher = order.job, prepared.training, prepared.dispatcher
    writer = CheckpointWriter(directory.checkpoints, job.checkpoint, prepared.origin, directory.write_history)
    clock = _Clock(order.began, prepared.setup.plan, prepared.progress)
    failure: PoolError | None = None
    history = directory.records()
    yield watch.report(_started(order, prepared, training.crew, history, watch))
    yield from map(watch.report, _notices(prepared.warnings + _lacking(prepared.progress.history_lines - len(history))))
    try:
        for event in training.events(interrupted):
            clock.observe(event)
            if isinstance(event, EpochDone):
                written = directory.append(event.record)
                due = event.record.epoch % job.checkpoint.every_epochs == 0
                if due or not written:
                    writer.offer(_copied(training.snapshot) if due else None)
            yield watch.report(event)
            yield from map(watch.report, (*_notices(dispatcher.notices()), *writer.events()))
    except PoolError as error:
        failure = error
        training.fail(str(error))
    finally:
        # Also when whoever consumes the events has had enough: what was committed is kept.
        writer.close(training.snapshot)
    ends_lingering = _from_now_on(interrupted)
    yield from map(watch.report, (*_notices(dispatcher.notices()), *writer.events()))
    outcome = training.outcome
    with ending(order.folder):
        save_model(directory.model, job.model, prepared.encoding, prepared.layout, outcome.weights_P)
        summary = clock.summary(name_of(order.directory), outcome, prepared, training.crew)
        finished = watch.report(Finished(summary=summary, crew=training.crew))
        directory.finish(watch.page(), summary)
    yield from map(watch.report, watch.push())
    yield finished
    watch.linger(ends_lingering)
    return failure


def _copied(snapshot: Snapshot | None) -> Snapshot:
    assert snapshot is not None, "only a round that is refused loses it"
    return snapshot.copied()


def _from_now_on(interrupted: Callable[[], bool]) -> Callable[[], bool]:
    """Return what tells of an interrupt that has yet to come: one that ended the training is to be told to those who look."""
    already = interrupted()
    return lambda: not already and interrupted()


def _lacking(lines: int) -> list[str]:
    return [f"history.jsonl lacks the lines of {lines} of the epochs before the checkpoint"] if lines > 0 else []


def _notices(messages: list[str]) -> list[Noticed]:
    return [Noticed(message=message) for message in messages]


def _started(order: Order, prepared: Prepared, crew: CrewStatus, history: tuple[EpochRecord, ...], watch: Watch) -> Started:
    setup, plan, last = prepared.setup, prepared.setup.plan, prepared.progress.last_round
    return Started(
        run=name_of(order.directory),
        directory=str(order.directory),
        job=dump_job(order.job),
        timestamp=time(),
        rows=plan.training_rows,
        validation_rows=plan.validation_rows if setup.validation is None else setup.validation.rows,
        inputs=prepared.layout.sizes[0],
        outputs=prepared.encoding.outputs,
        parameters=prepared.layout.size,
        shards=plan.shards,
        crew=crew,
        crew_before=last.crew if last is not None else CrewStatus(),
        most_workers=order.job.workers.most,
        rounds_per_epoch=plan.rounds_per_epoch,
        rounds_done=prepared.progress.rounds,
        most_rounds=order.job.training.most_rounds(plan.rounds_per_epoch),
        history=history,
        host=socket.gethostname(),
        metrics_url=watch.metrics_url,
        dashboard_url=watch.dashboard_url,
    )


class _Clock:
    """Times a run."""

    def __init__(self, began: float, plan: ShardPlan, before: Progress) -> None:
        self._began, self._plan = began, plan
        self._ready = time()
        self._before = before.rounds
        self._rounds: deque[float] = deque(maxlen=ROUNDS_TIMED)
        self._timed_rows, self._timed_seconds = 0, 0.0
        self._first_epoch = (0, 0.0)

    def observe(self, event: Event) -> None:
        if isinstance(event, RoundDone):
            self._rounds.append(event.seconds)
            self._timed_rows += event.rows
            self._timed_seconds += event.seconds
            if event.round == self._before + self._plan.rounds_per_epoch:
                self._first_epoch = (self._timed_rows, self._timed_seconds)

    def summary(self, run_name: str, outcome: Outcome, prepared: Prepared, crew: CrewStatus) -> Summary:
        now = time()
        durations = np.asarray(self._rounds) if self._rounds else np.zeros(1)
        # The first epoch is left out where there are several: it fills caches and buffers.
        several = self._timed_rows > 1.5 * self._plan.training_rows
        rows, seconds = self._first_epoch if several else (0, 0.0)
        timed = self._timed_seconds - seconds
        return Summary(
            run=run_name,
            status=outcome.status,
            stop_reason=outcome.reason,
            epochs=outcome.epochs,
            rounds=outcome.rounds,
            rows_trained=outcome.rows_trained,
            rows_expected=self._plan.rows_before(outcome.rounds),
            parameters=prepared.layout.size,
            workers=crew.workers,
            worker_failures=crew.lost,
            slices_recomputed=crew.recomputed,
            kept_epoch=outcome.kept.epoch if outcome.kept else None,
            weights_digest=weights_digest(outcome.weights_P),
            seconds=Seconds(startup=self._ready - self._began, training=now - self._ready, total=now - self._began),
            rows_per_second=(self._timed_rows - rows) / timed if timed else 0.0,
            round_seconds=Percentiles(p50=float(np.percentile(durations, 50)), p99=float(np.percentile(durations, 99))),
            train=outcome.kept.train if outcome.kept else None,
            validation=outcome.kept.validation if outcome.kept else None,
            fingerprint=prepared.origin.fingerprint,
        )
