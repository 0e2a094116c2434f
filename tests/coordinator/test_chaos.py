"""Some hundred faults at random moments: the digest and the ledger must not show them."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from coordinator.crew import Answered, Event, Joined, Lost
from coordinator.records import Noticed, Summary
from coordinator.update import Parameters, Updater
from worker.arrays import Floats
from worker.blas import fingerprint
from worker.engine import Worker
from worker.messages import ComputeGradients, Evaluate, PrepareShards, ScanShards, Task

Document = dict[str, dict[str, Any]]


class ChaosPool:
    """Workers of this process that come and go by a seed: while scanning, loading, computing and evaluating."""

    ahead: None = None

    def __init__(self, seed: int, rate: float, most: int) -> None:
        self._chance = random.Random(seed)
        self._rate = rate
        self._numbers = 0
        self._workers: dict[int, Worker] = {}
        self._tasks: list[tuple[int, Task, Floats | None]] = []
        self._weights_P: Floats | None = None
        self._coming: list[Event] = []
        self.faults: dict[str, int] = {}
        for _ in range(most):
            self._start()

    def _start(self) -> None:
        self._workers[self._numbers] = Worker()
        self._coming.append(Joined(self._numbers, fingerprint()))
        self._numbers += 1

    def make_room(self, start: Parameters, updater: Updater, shards: int) -> tuple[Parameters, Parameters]:
        first_P, second_P = (np.full_like(start.weights_P, np.nan) for _ in range(2))
        return Parameters(first_P, start.optimizer), Parameters(second_P, start.optimizer)

    def publish(self, weights_P: Floats) -> None:
        self._weights_P = weights_P

    def submit(self, worker: int, task: Task, patience: float | None) -> None:
        self._tasks.append((worker, task, self._weights_P))

    def wait(self, seconds: float) -> list[Event]:
        self._chance.shuffle(self._tasks)
        events: list[Event] = []
        if self._coming and (not self._tasks or self._chance.random() < 0.5):
            events.append(self._coming.pop(0))
        if self._tasks:
            worker, task, weights_P = self._tasks.pop()
            if self._chance.random() < self._rate:
                if self._chance.random() < 0.5:
                    self._workers[worker].run(task, weights_P)  # dies with the answer on its lips
                del self._workers[worker]
                kind = type(task).__name__
                self.faults[kind] = self.faults.get(kind, 0) + 1
                events.append(Lost(worker, "chaos"))
                self._start()
            else:
                events.append(Answered(worker, self._workers[worker].run(task, weights_P)))
        return events

    def close(self) -> None:
        self._workers.clear()


RunJob = Callable[..., tuple[list[Any], Summary]]


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("memory_limit", [None, 2000], ids=["in memory", "streamed"])
def test_digest_and_ledger_survive_chaos(
    blobs_job: Document, run_job: RunJob, workers: int, seed: int, memory_limit: int | None
) -> None:
    blobs_job["data"]["validation"] = 0.2
    if memory_limit is not None:
        blobs_job["data"] |= {"shuffle": "window", "window_rows": 20}
    blobs_job["data"]["scale"] = "standard"
    blobs_job["model"]["dropout"] = 0.2
    blobs_job["training"]["epochs"] = 40
    calm_events, calm = run_job(blobs_job)
    pool = ChaosPool(seed, rate=0.03, most=workers)
    if memory_limit is not None:
        blobs_job["data"]["memory_limit"] = memory_limit
    events, summary = run_job(blobs_job, {"workers.count": workers}, pool=pool)
    assert summary.weights_digest == calm.weights_digest
    assert summary.rows_trained == summary.rows_expected == calm.rows_trained
    assert summary.worker_failures == sum(pool.faults.values()) > 3
    assert sum(isinstance(event, Noticed) for event in events) > 0
    assert [event.record.train for event in events if hasattr(event, "record")] == [
        event.record.train for event in calm_events if hasattr(event, "record")
    ]


def test_chaos_reaches_every_kind_of_task(blobs_job: Document, run_job: RunJob) -> None:
    blobs_job["data"] |= {"validation": 0.2, "scale": "minmax"}
    reached: set[str] = set()
    for seed in range(12):
        pool = ChaosPool(seed, rate=0.04, most=3)
        run_job(blobs_job, {"workers.count": 3}, pool=pool)
        reached |= pool.faults.keys()
    assert reached == {kind.__name__ for kind in (ScanShards, PrepareShards, ComputeGradients, Evaluate)}
