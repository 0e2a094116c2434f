"""The pool of Ray actors: which way tasks go, and that all ways lead to the same bits."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, time

import pytest

from cluster.launch import IN_PROCESS, launch
from cluster.ray_pool import RayPool
from coordinator.ahead import Ahead
from coordinator.crew import Event as PoolEvent
from coordinator.crew import Lost
from coordinator.job import JobSpec
from coordinator.records import Finished, RoundDone, Summary
from coordinator.run import Order, run
from worker.blas import one_thread
from worker.messages import ComputeGradients

pytestmark = pytest.mark.usefixtures("local_ray")
PATIENCE_SECONDS = 30.0


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


class Watched(RayPool):
    """Notes how many workers were linked, whenever it waits, and how many rounds they were asked to run by themselves.

    `apart` makes this node seem another than the workers'.
    """

    def __init__(self, job: JobSpec, *, apart: bool) -> None:
        super().__init__(job.workers)
        self.seen: list[int] = []
        self.sent_ahead = 0
        if apart:
            self._node = "another"

    def run_ahead(self, rounds: Ahead, patience: float | None) -> None:
        self.sent_ahead += len(rounds.learning_rates)
        super().run_ahead(rounds, patience)

    def wait(self, seconds: float) -> list[PoolEvent]:
        self.seen.append(self.linked)
        return super().wait(seconds)


def train(job: JobSpec, directory: Path, pool: RayPool) -> Summary:
    summary = None
    for event in run(Order(job, directory, time()), pool, lambda: False):
        if isinstance(event, RoundDone):
            assert sum(event.crew.shares.values()) == job.data.shards
            assert set(event.worker_seconds) <= set(event.crew.shares)
            assert all(seconds > 0 for seconds in (*event.worker_seconds.values(), *event.phases.values())), (
                event.phases,
                event.worker_seconds,
            )
        if isinstance(event, Finished):
            summary = event.summary
    assert summary is not None
    return summary


@pytest.mark.parametrize("apart", [False, True], ids=["shared memory", "object store"])
def test_both_ways_of_exchange_give_the_bits_of_one_process(
    apart: bool, small_job: Callable[..., JobSpec], tmp_path: Path
) -> None:
    job = small_job({"workers.count": 2, "training.epochs": 30})
    *_, last = launch(Order(job, tmp_path / "calm", time()), IN_PROCESS, lambda: False, debug=False)
    assert isinstance(last, Finished)
    pool = Watched(job, apart=apart)
    descriptors = len(os.listdir("/proc/self/fd"))

    summary = train(job, tmp_path / "run", pool)
    pool.close()

    assert summary.weights_digest == last.summary.weights_digest
    assert summary.validation == last.summary.validation
    assert max(pool.seen) == (0 if apart else 2)
    cores = len(os.sched_getaffinity(0))
    assert (pool.sent_ahead > 0) == (not apart and cores >= 2)
    del pool
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_a_linked_worker_that_dies_while_idle_is_noticed_and_replaced(small_job: Callable[..., JobSpec], tmp_path: Path) -> None:
    job = small_job({"workers.count": 1, "training.epochs": 1})
    pool = RayPool(job.workers)
    train(job, tmp_path / "run", pool)
    until = monotonic() + PATIENCE_SECONDS
    while not pool.linked and monotonic() < until:
        pool.wait(0.1)
    (pid,) = (member.place.pid for member in pool._members.values() if member.place is not None)
    os.kill(pid, 9)

    events: list[PoolEvent] = []
    while len(events) < 2 and monotonic() < until:
        events += pool.wait(0.1)
    pool.close()

    assert [type(event).__name__ for event in events] == ["Lost", "Joined"]


def is_stopped(pid: int) -> bool:
    return all(
        (thread / "stat").read_text().rsplit(")", 1)[1].split()[0] == "T" for thread in Path(f"/proc/{pid}/task").iterdir()
    )


@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_is_noticed_whichever_answer_is_waited_for(
    victim: int, small_job: Callable[..., JobSpec], tmp_path: Path
) -> None:
    job = small_job({"workers.count": 2, "training.epochs": 1})
    pool = RayPool(job.workers)
    train(job, tmp_path / "run", pool)
    until = monotonic() + PATIENCE_SECONDS
    while pool.linked < 2 and monotonic() < until:
        pool.wait(0.1)
    pids = [member.place.pid for member in pool._members.values() if member.place is not None]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # so that neither answers
    while not all(is_stopped(pid) for pid in pids) and monotonic() < until:
        pool.wait(0.01)
    for worker in (0, 1):
        pool.submit(worker, ComputeGradients(0, (worker,)), PATIENCE_SECONDS)
    os.kill(pids[victim], 9)

    events: list[PoolEvent] = []
    while not events and monotonic() < until:
        events += pool.wait(0.1)
    pool.close()

    assert events == [Lost(victim, "its process died")]
