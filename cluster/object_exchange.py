"""The exchange through Ray's object store: with workers on other nodes, and with those of this one that have no link yet.

Weights are put into the store once and cross the network once for each node. Large gradient sums stay where they were computed
until all workers of that node have theirs; one of these adds them up, and what they come to crosses the network.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import ray

from cluster.calls import Calls
from cluster.gathering import Gathering
from worker.arrays import Floats
from worker.messages import Answer, ComputeGradients, Evaluate, Task

GATHERED_BYTES: Final = 100 << 10
"""Size of the parameters from which the gradient sums of another node are added up there. Smaller ones come with the answer
itself, in fewer calls than it would take to add them up first."""


class Answers(Protocol):
    """Who is told what came of a worker's task."""

    def is_here(self, worker: int, result: Any) -> bool:
        """Take note of the result of a worker's call, and return whether the worker still counts and answered."""

    def still_computes(self, worker: int) -> None:
        """Give a worker that is asked for one step more of its task the time for it."""

    def waits_for_others(self, worker: int) -> None:
        """Take note that a worker's part of its task is done, but not that of others."""

    def end_task(self, worker: int, answer: Answer, seconds: float) -> None:
        """Take note of a worker's answer and the seconds that it took, unless the worker is lost since."""


@dataclass(frozen=True)
class _Computed:
    """Gradient sums that are still where they were computed, by the actor `handle`, and the seconds that they took."""

    handle: Any
    answer: Any
    seconds: float


class ObjectExchange:
    """Tasks as calls of actors, and answers as what these return."""

    def __init__(self, calls: Calls, answers: Answers) -> None:
        """Begin without weights; calls are made known to `calls`, and what comes of them to `answers`."""
        self._calls, self._answers = calls, answers
        self._weights_P: Floats | None = None
        self._put: Any = None
        self._gathering: Gathering[_Computed] = Gathering()
        self.shards = 0

    def publish(self, weights_P: Floats) -> None:
        """Make these the weights of tasks from now on; they are put into the store once a task needs them."""
        self._weights_P, self._put = weights_P, None

    def submit(self, worker: int, handle: Any, task: Task, apart: str | None) -> None:
        """Have a worker carry out a task. `apart` is its node, if that is another than this one."""
        large = self._weights_P is not None and self._weights_P.nbytes >= GATHERED_BYTES
        if isinstance(task, ComputeGradients) and apart is not None and large:
            self._gathering.begin(apart, worker)
            answer, seconds = handle.run.options(num_returns=2).remote(task, self._weights(task))
            self._calls.add(seconds, partial(self._computed, worker, apart, handle, answer))
        else:
            self._calls.add(handle.run.remote(task, self._weights(task)), partial(self._answered, worker))

    def left(self, worker: int, node: str) -> None:
        """Take note that a worker is lost: what the others of its node have computed may be complete without its part."""
        self._fetch(self._gathering.left(node, worker))

    def _weights(self, task: Task) -> Any:
        """Return a reference to the weights, for a task that needs them."""
        if not isinstance(task, ComputeGradients | Evaluate):
            return None
        if self._put is None:
            self._put = ray.put(self._weights_P)
        return self._put

    def _answered(self, worker: int, answer: Any) -> None:
        if self._answers.is_here(worker, answer):
            self._answers.end_task(worker, *answer)

    def _computed(self, worker: int, node: str, handle: Any, answer: Any, seconds: Any) -> None:
        if self._answers.is_here(worker, seconds):
            self._answers.waits_for_others(worker)
            self._fetch(self._gathering.computed(node, worker, _Computed(handle, answer, seconds)))

    def _fetch(self, sums: dict[int, _Computed]) -> None:
        """Have one of a node's workers add up what all of them have computed, and fetch it."""
        if not sums:
            return
        assert self.shards, "there is room for the sums of so many shards before there are any sums"
        (adder, first), *_ = sums.items()
        self._answers.still_computes(adder)
        answers = [computed.answer for computed in sums.values()]
        total = first.handle.add_up.remote(self.shards, *answers) if len(sums) > 1 else answers[0]
        self._calls.add(total, partial(self._fetched, adder, sums))

    def _fetched(self, adder: int, sums: dict[int, _Computed], total: Any) -> None:
        computed = sums.pop(adder)
        if self._answers.is_here(adder, total):
            self._answers.end_task(adder, total, computed.seconds)
            for worker, other in sums.items():
                self._answers.end_task(worker, {}, other.seconds)
        else:
            self._fetch(sums)  # by the next one: they are still there, unless their node is gone
