"""One run from job to finished run directory, over any pool."""

import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from time import time

from coordinator.checkpoint import CheckpointWriter
from coordinator.clock import Clock
from coordinator.dispatch import PoolError
from coordinator.folders import Folder, name_of
from coordinator.job import dump_job
from coordinator.model_files import save_model, weights_digest
from coordinator.order import Order, check_directory, decided
from coordinator.pool import Pool
from coordinator.preparation import inspect
from coordinator.records import CrewStatus, EpochDone, EpochRecord, Event, Finished, Noticed, Started, Summary
from coordinator.run_directory import ASKED_SECONDS, UNATTENDED_SECONDS, RunDirectory, ending, hold
from coordinator.snapshot import Snapshot
from coordinator.start import Prepared, prepare
from coordinator.training import Outcome
from coordinator.watch import Watch


def run(order: Order, pool: Pool, interrupted: Callable[[], bool]) -> Iterator[Event]:
    """Train the job on the pool's workers, yielding what happens; the last event is Finished.

    Raises:
        UserError: the job, its data or the run directory are at fault.
        PoolError: the workers can't go on; what was done is in the run directory.
    """
    with ExitStack() as held:
        order = decided(order)
        check_directory(order)
        folder = order.folder  # the one that is held: it knows when another process takes it over
        patience = UNATTENDED_SECONDS if order.resume_if_begun or order.restarted else ASKED_SECONDS
        if order.resume:
            # Before all else: a process that had the run before may still write, and take its announcement back.
            yield from hold(folder, held, patience, interrupted)
        inspection = inspect(order.job)
        watch = held.enter_context(closing(Watch(order.job.metrics, order.directory)))
        prepared = prepare(order, inspection, pool)
        # Made only now, so that a run that can't begin leaves nothing behind.
        directory = _directory(order, folder, prepared)
        if not order.resume:
            yield from hold(folder, held, patience, interrupted)
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


def _directory(order: Order, folder: Folder, prepared: Prepared) -> RunDirectory:
    if order.resume:
        return RunDirectory.resume(folder, dump_job(order.job), prepared.progress.history_lines)
    return RunDirectory.create(folder, dump_job(order.job))


def _train(
    order: Order, prepared: Prepared, directory: RunDirectory, watch: Watch, interrupted: Callable[[], bool]
) -> Generator[Event, None, PoolError | None]:
    """Train, fill the run directory and linger; return what the workers could not go on for, if anything."""
    job, training, dispatcher = order.job, prepared.training, prepared.dispatcher
    writer = CheckpointWriter(directory.checkpoints, job.checkpoint, prepared.origin, directory.write_history)
    clock = Clock(order.began, prepared.setup.plan, prepared.progress.rounds)
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
        save_model(directory.model, job.model, prepared.encoding, prepared.layout, outcome.weights_P, job.data.csv)
        summary = _summary(order, prepared, outcome, training.crew, clock)
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


def _summary(order: Order, prepared: Prepared, outcome: Outcome, crew: CrewStatus, clock: Clock) -> Summary:
    return Summary(
        run=name_of(order.directory),
        status=outcome.status,
        stop_reason=outcome.reason,
        epochs=outcome.epochs,
        rounds=outcome.rounds,
        rows_trained=outcome.rows_trained,
        rows_expected=prepared.setup.plan.rows_before(outcome.rounds),
        parameters=prepared.layout.size,
        workers=crew.workers,
        worker_failures=crew.lost,
        slices_recomputed=crew.recomputed,
        kept_epoch=outcome.kept.epoch if outcome.kept else None,
        weights_digest=weights_digest(outcome.weights_P),
        seconds=clock.seconds,
        rows_per_second=clock.rows_per_second,
        round_seconds=clock.round_seconds,
        train=outcome.kept.train if outcome.kept else None,
        validation=outcome.kept.validation if outcome.kept else None,
        fingerprint=prepared.origin.fingerprint,
    )
