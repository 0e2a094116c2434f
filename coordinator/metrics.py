"""The metrics of a run, made of its events, as Prometheus takes them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import time
from typing import Final

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily

from coordinator.records import (
    Checkpointed,
    CrewStatus,
    EpochDone,
    EpochRecord,
    Errors,
    Event,
    Finished,
    Noticed,
    Phase,
    RoundDone,
    Started,
)

STATUSES: Final = ("running", "completed", "diverged", "failed", "interrupted")
ROUND_PHASES: Final[tuple[Phase, ...]] = ("compute", "reduce", "update")
PHASES: Final[tuple[Phase, ...]] = (*ROUND_PHASES, "evaluate", "checkpoint")
BOUNDS: Final = tuple(base * 10.0**power for power in range(-5, 3) for base in (1.0, 2.5, 5.0))[:-1]
"""Upper bounds of the buckets of durations, in seconds: 10 µs to 250 s, for the phases of rounds of 100 µs to minutes."""

ROUNDS_TOGETHER: Final = 256
"""Rounds that are added to the totals at a time, which costs a third of adding each by itself."""


class _Durations:
    """A histogram of durations in seconds."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(BOUNDS) + 1, np.int64)
        self._sum = 0.0

    def add(self, seconds: Sequence[float]) -> None:
        self._counts += np.bincount(np.searchsorted(BOUNDS, seconds), minlength=len(self._counts))
        self._sum += sum(seconds)

    def state(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative counts by upper bound, as Prometheus has them, and the sum."""
        bounds = [*(f"{bound:g}" for bound in BOUNDS), "+Inf"]
        return list(zip(bounds, map(float, np.cumsum(self._counts)), strict=True)), self._sum


class Metrics:
    """The metrics of one run, made of its events. Counters count from the process's start, as Prometheus wants them."""

    def __init__(self, run: str) -> None:
        """Begin without a value: what is not known yet is not exported."""
        self._run = run
        self._began = time()
        self._started: Started | None = None
        self._status = "running"
        self._rows = 0
        self._rounds = 0
        self._round: RoundDone | None = None
        self._waiting: list[RoundDone] = []
        self._record: EpochRecord | None = None
        self._crew, self._crew_before = CrewStatus(), CrewStatus()
        self._checkpointed: float | None = None
        self._durations = {phase: _Durations() for phase in PHASES}
        self._computed: dict[int, list[float]] = {}  # rounds and seconds by worker

    def observe(self, event: Event) -> None:
        """Bring the metrics up to date with an event."""
        match event:
            case RoundDone():
                self._round = event
                self._waiting.append(event)
                if len(self._waiting) == ROUNDS_TOGETHER:
                    self._add_up()
            case Started():
                self._started = event
                self._crew, self._crew_before = event.crew, event.crew_before
                self._record = event.history[-1] if event.history else None
            case EpochDone(record=record):
                self._record = record
                if record.validation is not None:
                    self._durations["evaluate"].add([event.evaluate_seconds])
            case Checkpointed():
                self._durations["checkpoint"].add([event.seconds])
                self._checkpointed = event.timestamp
            case Finished(summary=summary, crew=crew):
                self._add_up()
                self._status = summary.status
                self._take_crew(crew)
            case Noticed():
                pass

    def fail(self) -> None:
        """Take note that the run broke off."""
        self._status = "failed"

    def _add_up(self) -> None:
        """Bring the totals up to date with the rounds that wait."""
        rounds, self._waiting = self._waiting, []
        if not rounds:
            return
        self._rows += sum([event.rows for event in rounds])
        self._rounds += len(rounds)
        for phase in ROUND_PHASES:
            self._durations[phase].add([event.phases[phase] for event in rounds])
        for event in rounds:
            for worker, seconds in event.worker_seconds.items():
                computed = self._computed.setdefault(worker, [0, 0.0])
                computed[0] += 1
                computed[1] += seconds
        self._take_crew(rounds[-1].crew)

    def _take_crew(self, crew: CrewStatus) -> None:
        self._crew = crew
        # Those that were lost take their series along, or a long run would have ever more.
        self._computed = {worker: past for worker, past in self._computed.items() if worker in crew.shares}

    @property
    def compute_means(self) -> dict[int, float]:
        """How long each worker computed in a round, in seconds, in the mean since it came."""
        self._add_up()
        return {worker: seconds / count for worker, (count, seconds) in self._computed.items()}

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        yield from self.final()
        yield from self._speed()
        yield from self._workers()

    def final(self) -> Iterator[Metric]:
        """Yield those that still mean something when the run is over."""
        self._add_up()
        yield from self._errors()
        yield self._counter("rows", "Rows trained since the coordinator started.", self._rows)
        yield self._counter("rounds", "Rounds committed since the coordinator started.", self._rounds)
        yield self._gauge("epoch", "Epochs recorded, those before the run was taken up included.", self._epochs)
        states = {status: float(status == self._status) for status in STATUSES}
        yield self._gauges("run_status", "1 for what the run is: running, or how it ended.", "status", states)
        started = self._started
        yield self._gauge(
            "run_start_timestamp_seconds",
            "When the coordinator began its first round, until then when it began to get ready, in seconds since the Unix epoch.",
            started.timestamp if started is not None else self._began,
        )
        if started is None:
            return
        info = GaugeMetricFamily(
            "isograd_run_info", "The run: 1, with its sizes as labels.", labels=("run", "shards", "parameters")
        )
        info.add_metric((self._run, str(started.shards), str(started.parameters)), 1.0)
        yield info
        if started.most_rounds is not None:
            done = self._round.round if self._round else started.rounds_done
            yield self._gauge(
                "progress_ratio",
                "Share of the run's rounds that are done, 0 to 1; absent without a limit.",
                done / started.most_rounds,
            )

    @property
    def _epochs(self) -> int:
        return self._record.epoch if self._record else 0

    def _errors(self) -> Iterator[Metric]:
        record = self._record
        if record is None:
            return
        splits = {"train": record.train} | ({"validation": record.validation} if record.validation else {})

        def family(name: str, help_text: str, value: Callable[[Errors], float]) -> Metric:
            return self._gauges(name, help_text, "split", {split: value(errors) for split, errors in splits.items()})

        yield family("loss", "Mean loss over the rows of the last epoch.", lambda errors: errors.loss)
        yield family(
            "mean_absolute_error",
            "Mean absolute error over rows and outputs of the last epoch.",
            lambda errors: errors.mean_absolute_error,
        )
        yield family(
            "mean_squared_error",
            "Mean squared error over rows and outputs of the last epoch.",
            lambda errors: errors.mean_squared_error,
        )
        if record.train.error_rate is not None:
            yield family(
                "error_ratio",
                "Share of the last epoch's rows that were classified wrongly, 0 to 1.",
                lambda e: e.error_rate or 0.0,
            )

    def _speed(self) -> Iterator[Metric]:
        last = self._round
        if last is not None:
            yield self._gauge("round_loss", "Mean loss over the rows of the last round.", last.loss)
            yield self._gauge(
                "gradient_norm", "Euclidean norm of the last round's gradient, before clipping.", last.gradient_norm
            )
            yield self._gauge("learning_rate", "Learning rate of the last round.", last.learning_rate)
            yield self._gauge(
                "last_round_timestamp_seconds",
                "When the last round was committed, in seconds since the Unix epoch.",
                last.timestamp,
            )
        if self._checkpointed is not None:
            yield self._gauge(
                "checkpoint_last_success_timestamp_seconds",
                "When the last checkpoint was written, in seconds since the Unix epoch.",
                self._checkpointed,
            )
        rounds = HistogramMetricFamily(
            "isograd_round_seconds", "Duration of a round's phases in seconds.", labels=("run", "phase")
        )
        for phase, durations in self._durations.items():
            rounds.add_metric((self._run, phase), *durations.state())
        yield rounds

    def _workers(self) -> Iterator[Metric]:
        crew, before = self._crew, self._crew_before
        most = self._started.most_workers if self._started else crew.workers
        states = {"ready": crew.workers - crew.loading, "loading": crew.loading, "missing": max(0, most - crew.workers)}
        yield self._gauges(
            "workers",
            "Workers by state: ready, loading their rows, missing of those asked for.",
            "state",
            states,
        )
        yield self._counter("worker_failures", "Workers lost since the coordinator started.", crew.lost - before.lost)
        yield self._counter(
            "shards_moved",
            "Shards that went from one worker to another since the coordinator started.",
            crew.moved - before.moved,
        )
        yield self._counter(
            "slices_recomputed", "Slices that were under way on a worker when it was lost.", crew.recomputed - before.recomputed
        )
        shares = {str(worker): share for worker, share in crew.shares.items()}
        yield self._gauges("worker_shards", "Shards that each worker has to compute.", "worker", shares)
        computed = SummaryMetricFamily(
            "isograd_worker_compute_seconds", "Time that each worker computed in a round, in seconds.", labels=("run", "worker")
        )
        for worker, (count, seconds) in self._computed.items():
            computed.add_metric((self._run, str(worker)), int(count), seconds)
        yield computed

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"isograd_{name}", help_text, labels=("run",))
        family.add_metric((self._run,), value)
        return family

    def _gauges(self, name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
        """Return a family with a second label, and its values by what that label says."""
        family = GaugeMetricFamily(f"isograd_{name}", help_text, labels=("run", label))
        for member, value in values.items():
            family.add_metric((self._run, member), value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"isograd_{name}", help_text, labels=("run",))
        family.add_metric((self._run,), value)
        return family
