"""Workers as Ray actors: the Pool for local runs and clusters."""

from time import monotonic
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from coordinator.pool import Answered, Event, Lost, PoolError, WorkersSpec
from worker.arrays import Floats
from worker.blas import one_thread
from worker.engine import Worker
from worker.errors import UserError
from worker.messages import Answer, ComputeGradients, Evaluate, Task


class WorkerActor:
    """A worker in a process of its own."""

    def __init__(self) -> None:
        """Hold BLAS to one thread for the life of the process."""
        self._one_thread = one_thread()
        self._worker = Worker()

    def ready(self) -> bool:
        """Answer, once the process is up."""
        return True

    def run(self, task: Task, weights_P: Floats | None) -> Answer:
        """Carry out a task. Raises what `Worker.run` raises."""
        return self._worker.run(task, weights_P)


class RayPool:
    """Worker actors, each with one task at a time."""

    def __init__(self, spec: WorkersSpec) -> None:
        """Start the actors and wait until all are up.

        Raises:
            PoolError: the cluster has not placed them all within `spec.wait_seconds`.
        """
        actor = ray.remote(WorkerActor).options(num_cpus=spec.cpus, max_restarts=0)
        self._actors: dict[int, Any] = {number: actor.remote() for number in range(spec.count)}
        self._weights: Any = None
        self._pending: dict[Any, int] = {}
        starting = [handle.ready.remote() for handle in self._actors.values()]
        began = monotonic()
        ready, waiting = ray.wait(starting, num_returns=len(starting), timeout=spec.wait_seconds)
        if waiting:
            self.close()
            raise PoolError(
                f"the cluster placed {len(ready)} of {spec.count} workers of {spec.cpus:g} CPUs within "
                f"{monotonic() - began:.0f} s; ask for fewer in workers.count, or wait longer with workers.wait_seconds"
            )
        try:
            ray.get(ready)
        except RayActorError as error:
            self.close()
            raise PoolError(f"a worker did not start: {first_line(error)}") from error

    @property
    def workers(self) -> tuple[int, ...]:
        return tuple(self._actors)

    def publish(self, weights_P: Floats) -> None:
        # Put once: every worker of a node reads the same copy.
        self._weights = ray.put(weights_P)

    def submit(self, worker: int, task: Task) -> None:
        weights = self._weights if isinstance(task, ComputeGradients | Evaluate) else None
        self._pending[self._actors[worker].run.remote(task, weights)] = worker

    def wait(self) -> list[Event]:
        done, _ = ray.wait(list(self._pending), num_returns=1)
        return [self._event(self._pending.pop(reference), reference) for reference in done]

    def _event(self, worker: int, reference: Any) -> Event:
        try:
            return Answered(worker, ray.get(reference))
        except RayActorError as error:
            del self._actors[worker]
            return Lost(worker, first_line(error))
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise

    def close(self) -> None:
        for handle in self._actors.values():
            ray.kill(handle)
        self._actors.clear()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, which for Ray's is the one that says what happened."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
