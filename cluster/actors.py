"""A worker in a process of its own, as a Ray actor, and how to end one."""

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.arena import Terms
from cluster.exchange import serve
from worker.arrays import Floats
from worker.blas import fingerprint, one_thread
from worker.engine import Worker
from worker.messages import Answer, GradientSums, Task
from worker.network import GradientSum
from worker.tree import add_up


@dataclass(frozen=True)
class Place:
    """Where a worker lives, and what its bits depend on."""

    node: str
    pid: int
    fingerprint: dict[str, str]


class WorkerActor:
    """A worker in a process of its own. It takes one task at a time; other threads answer for its being alive."""

    def __init__(self, cpus: float, workers: int) -> None:
        """Hold BLAS to one thread for the life of the process.

        Args:
            cpus: that are set aside for this worker.
            workers: that there are at most, on all nodes.
        """
        self._one_thread = one_thread()
        # No more workers than these fit on a node, so that their shares never come to more than the whole.
        self._worker = Worker(min(1.0, max(1 / workers, cpus / _node_cpus())))

    def place(self) -> Place:
        """Return where this is, once the process is up."""
        return Place(ray.get_runtime_context().get_node_id(), os.getpid(), fingerprint())

    def alive(self) -> None:
        """Answer."""

    def run(self, task: Task, weights_P: Floats | None) -> tuple[Answer, float]:
        """Carry out a task, and return the answer and the seconds it took. Raises what `Worker.run` raises."""
        began = perf_counter()
        return self._worker.run(task, weights_P), perf_counter() - began

    def add_up(self, shards: int, *answers: GradientSums) -> GradientSums:
        """Return what the answers of this node's workers come to, over the maximal nodes of the tree over S shards."""
        parts = {node: part for answer in answers for node, part in answer.items()}
        return add_up(parts, shards, _add)

    def serve(self, address: str, terms: Terms) -> None:
        """Take the tasks of rounds from a coordinator on this node, until it hangs up. Raises what `exchange.serve` raises."""
        serve(self._worker, address, terms)


def _node_cpus() -> float:
    """Return the CPUs of this node, as Ray counts them."""
    resources: Any = ray
    here = ray.get_runtime_context().get_node_id()
    cpus: list[float] = [node["Resources"].get("CPU", 0.0) for node in resources.nodes() if node["NodeID"] == here]
    return max(1.0, *cpus)


def _add(left: GradientSum, right: GradientSum) -> GradientSum:
    # What comes from others is read-only; a sum of two is this process's own.
    memory = left.gradient_P if left.gradient_P.flags.writeable else None
    return GradientSum(np.add(left.gradient_P, right.gradient_P, out=memory), left.errors + right.errors)


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
