"""One run from job to finished run directory, over any pool."""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import cast

import numpy as np

from coordinator.job import JobSpec, dump_job
from coordinator.metrics import Metrics, MetricsServer
from coordinator.model_files import save_model, starting_weights, weights_digest
from coordinator.pool import Crew, Pool
from coordinator.preparation import Inspection, fit_encoding, inspect, make_plan, make_setup
from coordinator.records import EpochDone, Event, Finished, Percentiles, RoundDone, Seconds, Started, Summary
from coordinator.run_directory import RunDirectory, check
from coordinator.training import Outcome, Training
from worker.arrays import Floats
from worker.blas import fingerprint
from worker.encoding import Encoding, Scan
from worker.messages import PrepareShards, RowCounts, Setup
from worker.model import Layout
from worker.network import Network
from worker.sharding import ShardPlan


@dataclass(frozen=True)
class Order:
    """What a run needs beside its pool.

    Attributes:
        job: the job.
        directory: the run directory; its name is the run's.
        began: when the user asked for the run, in seconds since the epoch.
    """

    job: JobSpec
    directory: Path
    began: float


def run(order: Order, pool: Pool, interrupted: Callable[[], bool]) -> Iterator[Event]:
    """Train the job on the pool's workers, yielding what happens; the last event is Finished.

    Raises:
        UserError: the job, its data or the run directory are at fault.
        PoolError: the workers can't go on.
    """
    job, name = order.job, order.directory.name
    check(order.directory)
    inspection = inspect(job)
    metrics = Metrics(name)
    server = None if job.metrics is None else MetricsServer(job.metrics, name, metrics.registry)
    try:
        prepared = _prepare(job, inspection, pool)
        # Made only now, so that a run that can't begin leaves nothing behind.
        directory = RunDirectory(order.directory, dump_job(job))
        for event in _train(order, prepared, directory, server.url if server else None, interrupted):
            metrics.observe(event)
            if isinstance(event, EpochDone):
                directory.append(event.record)
            yield event
        if server is not None:
            server.linger(interrupted)
    finally:
        if server is not None:
            server.stop()


@dataclass(frozen=True)
class _Prepared:
    """All that is settled before the first round."""

    setup: Setup
    encoding: Encoding
    crew: Crew
    layout: Layout
    weights_P: Floats
    workers: int


def _train(
    order: Order,
    prepared: _Prepared,
    directory: RunDirectory,
    metrics_url: str | None,
    interrupted: Callable[[], bool],
) -> Iterator[Event]:
    job, layout = order.job, prepared.layout
    training = Training(job, prepared.setup, prepared.crew, layout, prepared.weights_P)
    yield _started(order, prepared, metrics_url)
    clock = _Clock(order.began, prepared.setup.plan)
    for event in training.events(interrupted):
        clock.observe(event)
        yield event
    outcome = training.outcome
    save_model(directory.model, job.model, prepared.encoding, layout, outcome.weights_P)
    summary = clock.summary(order.directory.name, outcome, layout.size, prepared.workers)
    directory.finish(summary)
    yield Finished(summary=summary)


def _prepare(job: JobSpec, inspection: Inspection, pool: Pool) -> _Prepared:
    crew = Crew(pool, job.data.shards)
    if inspection.uncounted is not None:
        inspection = inspection.counted(cast(RowCounts, crew.ask_one(inspection.uncounted)))
    setup = make_setup(job, inspection, make_plan(job, inspection))
    encoding = fit_encoding(
        setup,
        lambda task: {shard: scan for answer in crew.ask(task) for shard, scan in cast(dict[int, Scan], answer).items()},
    )
    layout = Network(job.model, len(setup.columns.feature_names), encoding.outputs).layout
    weights_P = starting_weights(job.model, layout, job.job.seed)
    crew.ask(lambda shards: PrepareShards(setup, shards, encoding))
    return _Prepared(setup, encoding, crew, layout, weights_P, len(pool.workers))


def _started(order: Order, prepared: _Prepared, metrics_url: str | None) -> Started:
    setup, plan = prepared.setup, prepared.setup.plan
    return Started(
        run=order.directory.name,
        directory=str(order.directory),
        rows=plan.training_rows,
        validation_rows=plan.validation_rows if setup.validation is None else setup.validation.rows,
        inputs=prepared.layout.sizes[0],
        outputs=prepared.encoding.outputs,
        parameters=prepared.layout.size,
        shards=plan.shards,
        workers=prepared.workers,
        rounds_per_epoch=plan.rounds_per_epoch,
        most_rounds=order.job.training.most_rounds(plan.rounds_per_epoch),
        metrics_url=metrics_url,
    )


class _Clock:
    """Times a run."""

    def __init__(self, began: float, plan: ShardPlan) -> None:
        self._began, self._plan = began, plan
        self._ready = time()
        self._rounds = array("d")

    def observe(self, event: Event) -> None:
        if isinstance(event, RoundDone):
            self._rounds.append(event.seconds)

    def summary(self, run_name: str, outcome: Outcome, parameters: int, workers: int) -> Summary:
        now = time()
        seconds = np.asarray(self._rounds) if self._rounds else np.zeros(1)
        first = self._plan.rounds_per_epoch if outcome.epochs > 1 else 0
        timed, rows = float(seconds[first:].sum()), self._planned_rows(outcome.rounds) - self._planned_rows(first)
        return Summary(
            run=run_name,
            status=outcome.status,
            stop_reason=outcome.reason,
            epochs=outcome.epochs,
            rounds=outcome.rounds,
            rows_trained=outcome.rows_trained,
            rows_expected=self._planned_rows(outcome.rounds),
            parameters=parameters,
            workers=workers,
            worker_failures=0,
            kept_epoch=outcome.kept.epoch if outcome.kept else None,
            weights_digest=weights_digest(outcome.weights_P),
            seconds=Seconds(startup=self._ready - self._began, training=now - self._ready, total=now - self._began),
            rows_per_second=rows / timed if timed else 0.0,
            round_seconds=Percentiles(p50=float(np.percentile(seconds, 50)), p99=float(np.percentile(seconds, 99))),
            train=outcome.kept.train if outcome.kept else None,
            validation=outcome.kept.validation if outcome.kept else None,
            fingerprint=fingerprint(),
        )

    def _planned_rows(self, rounds: int) -> int:
        """Return the rows that the plan has for the first `rounds` rounds of the run."""
        epochs, rest = divmod(rounds, self._plan.rounds_per_epoch)
        return epochs * self._plan.training_rows + rest * self._plan.training_rows // self._plan.rounds_per_epoch
