"""The pool of Ray actors: which way tasks go, and that all ways lead to the same bits."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest

from cluster.actors import WorkerActor
from cluster.launch import IN_PROCESS, launch
from cluster.object_exchange import ObjectExchange
from cluster.ray_pool import RayPool
from coordinator.ahead import Ahead
from coordinator.crew import Event as PoolEvent
from coordinator.job import JobSpec
from coordinator.order import Order
from coordinator.records import Event, Finished, Noticed, RoundDone, Summary
from coordinator.run import run
from worker.arrays import Floats
from worker.blas import one_thread
from worker.errors import DataError
from worker.messages import ComputeGradients, GradientSums

pytestmark = pytest.mark.usefixtures("local_ray")
PATIENCE_SECONDS = 300.0


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
        self._most_linked = 0 if apart else job.workers.most
        if apart:
            self._roster.node = "another"

    def publish(self, weights_P: Floats) -> None:
        super().publish(weights_P)
        until = monotonic() + PATIENCE_SECONDS
        while self.linked < self._most_linked:  # or the run might be over before
            assert monotonic() < until
            self._waker.wait(0.1)

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
    apart: bool, small_job: Callable[..., JobSpec], tmp_path: Path, shared: Callable[[], set[int]]
) -> None:
    job = small_job({"workers.count": 2, "training.epochs": 30, "data.class_weights": "balanced"})
    *_, last = launch(Order(job, tmp_path / "calm", time()), IN_PROCESS, lambda: False, debug=False)
    assert isinstance(last, Finished)
    before = shared()
    pool = Watched(job, apart=apart)

    summary = train(job, tmp_path / "run", pool)
    assert shared() - before
    pool.close()

    assert summary.weights_digest == last.summary.weights_digest
    assert summary.validation == last.summary.validation
    assert max(pool.seen) == (0 if apart else 2)
    cores = len(os.sched_getaffinity(0))
    assert (pool.sent_ahead > 0) == (not apart and cores >= 2)
    del pool
    gc.collect()
    assert not shared() - before


def train_apart(job: JobSpec, directory: Path, kill_in_round: int | None = None) -> Summary:
    """Train with workers that are taken for another node's, and hold the weights against those of one process."""
    *_, last = launch(Order(job, directory / "calm", time()), IN_PROCESS, lambda: False, debug=False)
    assert isinstance(last, Finished)
    pool = RayPool(job.workers, kill_in_round=kill_in_round)
    pool._roster.node = "another"
    summary = train(job, directory / "run", pool)
    pool.close()
    assert summary.weights_digest == last.summary.weights_digest
    assert summary.rows_trained == summary.rows_expected
    return summary


LARGE: dict[str, object] = {"workers.count": 3, "workers.deadline_seconds": 300.0, "training.epochs": 3, "model.hidden": [4000]}


def test_large_sums_of_another_node_are_added_up_there(
    small_job: Callable[..., JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    fetch = ObjectExchange._fetch

    def noted(exchange: ObjectExchange, sums: Any) -> None:
        together.append(len(sums))
        fetch(exchange, sums)

    monkeypatch.setattr(ObjectExchange, "_fetch", noted)
    summary = train_apart(small_job(LARGE), tmp_path)
    assert [count for count in together if count] == [3] * summary.rounds


def test_a_death_before_sums_are_added_up_costs_one_share(small_job: Callable[..., JobSpec], tmp_path: Path) -> None:
    summary = train_apart(small_job(LARGE), tmp_path, kill_in_round=5)
    assert (summary.worker_failures, summary.slices_recomputed) == (1, 2)


def test_a_death_while_sums_are_added_up_costs_one_share(
    small_job: Callable[..., JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fatal = tmp_path / "fatal"
    fatal.touch()

    class Dying(WorkerActor):
        def add_up(self, shards: int, *answers: GradientSums) -> GradientSums:
            if fatal.exists():
                fatal.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().add_up(shards, *answers)

    monkeypatch.setattr("cluster.ray_pool.WorkerActor", Dying)
    summary = train_apart(small_job(LARGE), tmp_path)
    assert not fatal.exists()
    assert (summary.worker_failures, summary.slices_recomputed) == (1, 2)


@pytest.mark.parametrize("shard", [0, 5])
def test_what_a_worker_raises_in_rounds_of_its_own_is_raised_at_once(
    shard: int, small_job: Callable[..., JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(WorkerActor):
        def __init__(self, cpus: float, workers: int) -> None:
            super().__init__(cpus, workers)
            run = self._worker.run

            def raising(task: Any, *arguments: Any) -> Any:
                if isinstance(task, ComputeGradients) and task.round >= 60 and shard in task.shards:
                    raise DataError("rows.parquet: made up")
                return run(task, *arguments)

            self._worker.run = raising  # type: ignore[method-assign]

    monkeypatch.setattr("cluster.ray_pool.WorkerActor", Failing)
    job = small_job({"workers.count": 2, "training.epochs": 200, "workers.deadline_seconds": 60.0})
    pool = RayPool(job.workers)
    events: list[Event] = []
    with pytest.raises(DataError, match="made up"):
        events.extend(run(Order(job, tmp_path / "run", time()), pool, lambda: False))
    pool.close()

    assert not any(isinstance(event, Noticed) and "was lost" in event.message for event in events)


def test_actors_read_a_store_that_fails_at_times(small_job: Callable[..., JobSpec], store: Any, tmp_path: Path) -> None:
    *_, last = launch(Order(small_job({}), tmp_path / "here", time()), IN_PROCESS, lambda: False, debug=False)
    assert isinstance(last, Finished)
    address = store.put("rows.parquet", tmp_path / "rows.parquet")
    job = small_job({"data.train": address, "storage": store.storage | {"attempts": 6}})
    store.requests.clear()
    for how in ("503 Slow Down", "dropped", "cut"):
        store.fail("GET", how)
    pool = RayPool(job.workers)

    summary = train(job, tmp_path / "there", pool)
    pool.close()

    assert summary.weights_digest == last.summary.weights_digest
    assert summary.worker_failures == 0
    assert store.requests
