"""Workers as Ray actors: the Pool for local runs and clusters. Lost ones are replaced, hung ones are ended and replaced."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from coordinator.crew import Answered, Event, Joined, Lost
from coordinator.dispatch import PoolError
from coordinator.pool import WorkersSpec
from worker.arrays import Floats
from worker.blas import fingerprint, one_thread
from worker.engine import Worker
from worker.errors import UserError
from worker.messages import Answer, ComputeGradients, Evaluate, Task

MOST_FAILED_STARTS: Final = 5
"""Workers in a row that may die before they are up."""


@dataclass(frozen=True)
class Place:
    """Where a worker lives, and what its bits depend on."""

    node: str
    pid: int
    fingerprint: dict[str, str]


class WorkerActor:
    """A worker in a process of its own. It takes one task at a time; the second thread answers for its being alive."""

    def __init__(self) -> None:
        """Hold BLAS to one thread for the life of the process."""
        self._one_thread = one_thread()
        self._worker = Worker()

    def place(self) -> Place:
        """Return where this is, once the process is up."""
        return Place(ray.get_runtime_context().get_node_id(), os.getpid(), fingerprint())

    def alive(self) -> None:
        """Answer."""

    def run(self, task: Task, weights_P: Floats | None) -> Answer:
        """Carry out a task. Raises what `Worker.run` raises."""
        return self._worker.run(task, weights_P)


@dataclass
class _Pending:
    """A task that was given. Without patience, its worker counts as alive while it answers pings."""

    worker: int
    patience: float | None
    due: float
    ping: Any = None


class RayPool:
    """As many worker actors as the cluster can place, up to the most that were asked for."""

    def __init__(self, spec: WorkersSpec, kill_in_round: int | None = None) -> None:
        """Ask for the workers; those that the cluster places show up as events.

        Args:
            spec: how many, and how patient to be with them.
            kill_in_round: kill one worker while it computes this round, to prove that it makes no difference.
        """
        self._spec = spec
        self._actor: Any = ray.remote(WorkerActor).options(num_cpus=spec.cpus, max_restarts=0, max_concurrency=2)
        self._kill_in_round = kill_in_round
        self._weights: Any = None
        self._numbers = 0
        self._failed_starts = 0
        self._actors: dict[int, Any] = {}
        self._places: dict[int, Place] = {}
        self._starting: dict[Any, int] = {}
        self._pending: dict[Any, _Pending] = {}
        self._lost: list[Event] = []
        for _ in range(spec.most):
            self._start_one()

    def publish(self, weights_P: Floats) -> None:
        # Put once: every worker of a node reads the same copy.
        self._weights = ray.put(weights_P)

    def submit(self, worker: int, task: Task, patience: float | None) -> None:
        weights = self._weights if isinstance(task, ComputeGradients | Evaluate) else None
        reference = self._actors[worker].run.remote(task, weights)
        due = monotonic() + (patience or self._spec.deadline_seconds)
        self._pending[reference] = _Pending(worker, patience, due)
        if isinstance(task, ComputeGradients) and task.round == self._kill_in_round:
            self._kill_in_round = None
            end_process(self._places[worker])

    def wait(self, seconds: float) -> list[Event]:
        until = monotonic() + seconds
        while True:
            self._send_pings()
            events = self._collect(max(0.0, min(until, self._next_check()) - monotonic()))
            self._give_up_overdue()
            events += self._lost
            self._lost = []
            if events or monotonic() >= until:
                return events

    def close(self) -> None:
        for number in list(self._actors):
            self._end(number)
        self._starting.clear()
        self._pending.clear()

    def _start_one(self) -> None:
        number = self._numbers
        self._numbers += 1
        self._actors[number] = self._actor.remote()
        self._starting[self._actors[number].place.remote()] = number

    def _collect(self, seconds: float) -> list[Event]:
        pings = {pending.ping: pending for pending in self._pending.values() if pending.ping is not None}
        references = [*self._starting, *self._pending, *pings]
        ready, _ = ray.wait(references, num_returns=1, timeout=seconds, fetch_local=False)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        events: list[Event | None] = []
        for reference in ready:
            if reference in self._starting:
                events.append(self._started(self._starting.pop(reference), reference))
            elif reference in self._pending:
                events.append(self._answered(self._pending.pop(reference).worker, reference))
            else:
                pings[reference].ping = None
                pings[reference].due = monotonic() + self._spec.deadline_seconds
        return [event for event in events if event is not None]

    def _started(self, number: int, reference: Any) -> Event | None:
        try:
            place: Place = ray.get(reference)
        except RayError as error:
            self._failed_starts += 1
            self._actors.pop(number)
            if self._failed_starts >= MOST_FAILED_STARTS:
                raise PoolError(
                    f"{MOST_FAILED_STARTS} workers in a row died while starting, the last one: {first_line(error)}"
                ) from error
            self._start_one()
            return None
        self._failed_starts = 0
        self._places[number] = place
        return Joined(number, place.fingerprint)

    def _answered(self, worker: int, reference: Any) -> Event:
        try:
            return Answered(worker, ray.get(reference))
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except RayError as error:
            return self._replace(worker, death_cause(error))

    def _replace(self, worker: int, cause: str) -> Lost:
        self._end(worker)
        self._start_one()
        return Lost(worker, cause)

    def _end(self, worker: int) -> None:
        handle, place = self._actors.pop(worker), self._places.pop(worker, None)
        ray.kill(handle)
        if place is not None:
            end_process(place)

    def _send_pings(self) -> None:
        for pending in self._pending.values():
            if pending.patience is None and pending.ping is None and monotonic() >= self._ping_at(pending):
                pending.ping = self._actors[pending.worker].alive.remote()

    def _ping_at(self, pending: _Pending) -> float:
        return pending.due - self._spec.deadline_seconds / 2

    def _next_check(self) -> float:
        """Return when something is due even if nothing happens."""
        times = [
            self._ping_at(pending) if pending.patience is None and pending.ping is None else pending.due
            for pending in self._pending.values()
        ]
        return min(times, default=float("inf"))

    def _give_up_overdue(self) -> None:
        for reference, pending in list(self._pending.items()):
            if monotonic() >= pending.due:
                del self._pending[reference]
                waited = pending.patience or self._spec.deadline_seconds
                self._lost.append(self._replace(pending.worker, f"no sign of life for {waited:.3g} s"))


def end_process(place: Place) -> None:
    """Kill a worker's process outright: one that is stopped does not hear Ray's request to exit."""
    if place.node == ray.get_runtime_context().get_node_id():
        _kill(place.pid)
        return
    there = NodeAffinitySchedulingStrategy(place.node, soft=False)
    ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there, max_retries=0).remote(place.pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def death_cause(error: BaseException) -> str:
    """Return why an actor died, out of the paragraph that Ray has about it."""
    text = str(error)
    if "its node has died" in text:
        return "its node is gone"
    return "its process died" if "its worker process has died" in text else first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, which for Ray's is the one that says what happened."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
