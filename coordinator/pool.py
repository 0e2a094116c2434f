"""The `[workers]` section, and the coordinator's view of its workers: a Pool, with one that lives in this process."""

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar, Final, Literal, Protocol

import numpy as np

from coordinator.ahead import Ahead, RoundRun
from coordinator.crew import Answered, Event, Joined
from coordinator.update import Parameters, Updater
from worker.arrays import Floats
from worker.blas import fingerprint
from worker.engine import Worker
from worker.errors import require
from worker.messages import Task

Placement = Literal["pack", "spread", "strict_pack", "strict_spread"]


@dataclass(frozen=True, kw_only=True)
class WorkersSpec:
    """How many workers share the work. No number here changes a result.

    Attributes:
        count: worker actors; at most data.shards. Not together with min and max.
        min: workers to begin with, and to wait for when there are fewer; None takes count to begin with, and 1 to go on.
        max: workers to ask the cluster for; None takes count.
        cpus: CPUs that Ray sets aside for each. Each computes in one thread.
        placement: over how many nodes: as few as can be, as many as can be, or strictly one, or one each.
        wait_seconds: how long to wait for the cluster to place workers while there are too few.
        deadline_seconds: least time after which a worker that does not answer is taken for lost. Where the last rounds took
            longer than a tenth of it, the time is ten times the longest of them.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    count: int | None = None
    min: int | None = None
    max: int | None = None
    cpus: float = 1.0
    placement: Placement = "pack"
    wait_seconds: float = 120.0
    deadline_seconds: float = 10.0

    def __post_init__(self) -> None:
        for key in ("count", "min", "max"):
            given = getattr(self, key)
            require(given is None or given >= 1, f"workers.{key}", f"must be at least 1, got {given}")
        require(
            self.count is None or (self.min is None and self.max is None),
            "workers.count",
            "is a fixed number, but min or max is given too; use either count, or min and max",
        )
        require(self.least <= self.most, "workers.min", f"{self.min} is more than workers.max = {self.most}")
        require(
            not self.placement.startswith("strict") or self.first == self.most,
            "workers.placement",
            f"{self.placement!r} is for a fixed number of workers; use 'pack' or 'spread' with workers.min and workers.max",
        )
        require(
            LEAST_CPUS <= self.cpus < float("inf"),
            "workers.cpus",
            f"must be at least {LEAST_CPUS}, the smallest part of a CPU that Ray sets aside, got {self.cpus}",
        )
        for key in ("wait_seconds", "deadline_seconds"):
            given = getattr(self, key)
            require(0 < given < float("inf"), f"workers.{key}", f"must be above 0, got {given}")

    @property
    def first(self) -> int:
        """Workers to begin with."""
        return self.min or self.most

    @property
    def least(self) -> int:
        """Workers below which the run waits."""
        return self.min or 1

    @property
    def most(self) -> int:
        """Workers to ask for."""
        return self.max or self.count or max(self.min or 0, DEFAULT_WORKERS)


DEFAULT_WORKERS: Final = 2
LEAST_CPUS: Final = 0.0001


class RunsAhead(Protocol):
    """Workers that run rounds by themselves, between the two places of parameters."""

    def can_run_ahead(self, workers: Collection[int]) -> bool:
        """Return whether these workers can."""

    def run_ahead(self, rounds: Ahead, patience: float | None) -> None:
        """Have idle workers do so; after `patience` seconds, whoever holds the others up counts as lost."""

    def stop_ahead(self) -> None:
        """Have the workers sent ahead stop where they are."""

    def ran(self) -> list[RoundRun] | None:
        """Return the rounds that all of the workers sent ahead have completed; None while some are still at it.

        The parameters after the last of them are at their place, whatever became of the workers since.
        """


class Pool(Protocol):
    """Workers that take one task at a time and answer in any order. Lost ones are replaced without being asked for."""

    def make_room(self, start: Parameters, updater: Updater, shards: int) -> tuple[Parameters, Parameters]:
        """Return two places for parameters like `start`, whose weights `publish` takes without copying them.

        Both may have the same arrays for the optimizer's state. Called once, before the first round.
        """

    def publish(self, weights_P: Floats) -> None:
        """Make these the weights of the tasks submitted from now on. They must not change before those are answered."""

    def submit(self, worker: int, task: Task, patience: float | None) -> None:
        """Give an idle worker a task; after `patience` seconds without an answer it counts as lost.

        Without patience, the worker may take any time, as long as it gives signs of life.
        """

    @property
    def ahead(self) -> "RunsAhead | None":
        """The same workers, as they run rounds by themselves; None where they can't."""

    def wait(self, seconds: float) -> list[Event]:
        """Return what has happened, waiting so many seconds at most for something to happen; workers' coming back is something.

        Raises what a worker raised, UserErrors among it.
        """

    def close(self) -> None:
        """Let go of the workers."""


class InProcessPool:
    """Workers of this process that compute one after the other: for debugging, and for tests without Ray."""

    ahead: None = None

    def __init__(self, count: int) -> None:
        """Make `count` workers."""
        self._workers = [Worker(1 / count) for _ in range(count)]
        self._weights_P: Floats | None = None
        self._events: deque[Event] = deque(Joined(number, fingerprint()) for number in range(count))

    def make_room(self, start: Parameters, updater: Updater, shards: int) -> tuple[Parameters, Parameters]:
        return (
            Parameters(np.empty_like(start.weights_P), start.optimizer),
            Parameters(np.empty_like(start.weights_P), start.optimizer),
        )

    def publish(self, weights_P: Floats) -> None:
        self._weights_P = weights_P

    def submit(self, worker: int, task: Task, patience: float | None) -> None:
        began = perf_counter()
        answer = self._workers[worker].run(task, self._weights_P)
        self._events.append(Answered(worker, answer, perf_counter() - began))

    def wait(self, seconds: float) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None:
        self._workers.clear()
