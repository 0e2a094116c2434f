"""The `[workers]` section, and the coordinator's view of its workers: a Pool, with one that lives in this process."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from worker.arrays import Floats
from worker.engine import Worker
from worker.errors import require
from worker.messages import Answer, Task


@dataclass(frozen=True, kw_only=True)
class WorkersSpec:
    """How many workers share the work. No number here changes a result.

    Attributes:
        count: worker actors; at most data.shards.
        cpus: CPUs that Ray sets aside for each. Each computes in one thread.
        wait_seconds: how long the cluster may take to place them all.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    count: int = 2
    cpus: float = 1.0
    wait_seconds: float = 120.0

    def __post_init__(self) -> None:
        require(self.count >= 1, "workers.count", f"must be at least 1, got {self.count}")
        require(0 < self.cpus < float("inf"), "workers.cpus", f"must be above 0, got {self.cpus}")
        require(self.wait_seconds > 0, "workers.wait_seconds", f"must be above 0, got {self.wait_seconds}")


class PoolError(RuntimeError):
    """The workers can't go on: too few of them, or the cluster failed."""


@dataclass(frozen=True)
class Answered:
    """A worker finished the task it was given."""

    worker: int
    answer: Answer


@dataclass(frozen=True)
class Lost:
    """A worker is gone, and with it the task it was given."""

    worker: int
    cause: str


Event = Answered | Lost


class Pool(Protocol):
    """Workers that take one task at a time and answer in any order."""

    @property
    def workers(self) -> tuple[int, ...]:
        """The numbers of the workers that can be given tasks."""

    def publish(self, weights_P: Floats) -> None:
        """Make these the weights of the tasks submitted from now on. They must not change before those are answered."""

    def submit(self, worker: int, task: Task) -> None:
        """Give an idle worker a task."""

    def wait(self) -> list[Event]:
        """Return at least one event, waiting for it if need be. Raises what a worker raised, UserErrors among it."""

    def close(self) -> None:
        """Let go of the workers."""


class InProcessPool:
    """Workers of this process that compute one after the other: for debugging, and for tests without Ray."""

    def __init__(self, count: int) -> None:
        """Make `count` workers."""
        self._workers = [Worker() for _ in range(count)]
        self._weights_P: Floats | None = None
        self._events: deque[Event] = deque()

    @property
    def workers(self) -> tuple[int, ...]:
        return tuple(range(len(self._workers)))

    def publish(self, weights_P: Floats) -> None:
        self._weights_P = weights_P

    def submit(self, worker: int, task: Task) -> None:
        self._events.append(Answered(worker, self._workers[worker].run(task, self._weights_P)))

    def wait(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None:
        self._workers.clear()


class Crew:
    """The pool's workers with the shards that each of them holds."""

    def __init__(self, pool: Pool, shards: int) -> None:
        """Share out the shards: each worker gets a contiguous range, sizes equal to within one."""
        self._pool = pool
        self._shards = share_out(shards, pool.workers)

    def publish(self, weights_P: Floats) -> None:
        """Make these the weights of the tasks from now on."""
        self._pool.publish(weights_P)

    def ask(self, task: Callable[[tuple[int, ...]], Task]) -> list[Answer]:
        """Give every worker the task for its shards, and return the answers. Raises PoolError where a worker is lost."""
        return self._gather({worker: task(shards) for worker, shards in self._shards.items()})

    def ask_one(self, task: Task) -> Answer:
        """Give one worker a task and return its answer. Raises PoolError where it is lost."""
        return self._gather({self._pool.workers[0]: task})[0]

    def _gather(self, tasks: Mapping[int, Task]) -> list[Answer]:
        for worker, task in tasks.items():
            self._pool.submit(worker, task)
        answers: list[Answer] = []
        while len(answers) < len(tasks):
            for event in self._pool.wait():
                if isinstance(event, Lost):
                    raise PoolError(f"worker {event.worker} was lost: {event.cause}")
                answers.append(event.answer)
        return answers


def share_out(shards: int, workers: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Return which shards each worker holds: contiguous ranges, sizes equal to within one."""
    bounds = [len(workers) and place * shards // len(workers) for place in range(len(workers) + 1)]
    return {worker: tuple(range(first, last)) for worker, first, last in zip(workers, bounds[:-1], bounds[1:], strict=True)}
