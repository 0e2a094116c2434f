"""Workers of a pool in this process that die or hang: real processes, but no clock that a busy machine could outrun."""

import os
import random
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest

from cluster.actors import WorkerActor
from cluster.launch import IN_PROCESS, launch
from cluster.ray_pool import RayPool
from coordinator.crew import Event as PoolEvent
from coordinator.crew import Lost
from coordinator.dispatch import PoolError
from coordinator.job import JobSpec
from coordinator.order import Order
from coordinator.records import EpochDone, Event, Finished, RoundDone, Summary
from coordinator.run import run
from worker.blas import one_thread
from worker.messages import ComputeGradients, Task

pytestmark = pytest.mark.usefixtures("local_ray")
PATIENCE_SECONDS = 300.0
LONG_SECONDS = 1000.0
Jobs = Callable[..., JobSpec]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


class Clock:
    """Makes it seem to pools that more time has passed than they have patience with any worker."""

    def __init__(self) -> None:
        self._passed = 0.0

    def __call__(self) -> float:
        return monotonic() + self._passed

    def let_time_pass(self) -> None:
        self._passed += LONG_SECONDS


def wait_until(condition: Callable[[], bool]) -> None:
    until, pause = monotonic() + PATIENCE_SECONDS, threading.Event()
    while not condition():
        assert monotonic() < until
        pause.wait(0.001)


def pid_of(pool: RayPool, worker: int) -> int:
    return pool._roster.place(worker).pid


def stop(pid: int) -> None:
    """Stop a process, all threads of it."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid))


def is_stopped(pid: int) -> bool:
    try:
        states = [(thread / "stat").read_text().rsplit(")", 1)[1].split()[0] for thread in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):  # of a thread that ended meanwhile
        return False
    return set(states) == {"T"}


def calm_run(job: JobSpec, directory: Path) -> Summary:
    return summary_of(list(launch(Order(job, directory, time()), IN_PROCESS, lambda: False, debug=False)))


def summary_of(events: list[Event]) -> Summary:
    last = events[-1]
    assert isinstance(last, Finished)
    return last.summary


def train_until(job: JobSpec, directory: Path, pool: RayPool, over: Callable[[Event], bool]) -> Summary:
    """Train until an event says that it is over."""
    ended, until = False, monotonic() + PATIENCE_SECONDS

    def interrupted() -> bool:
        return ended or monotonic() > until

    for event in run(Order(job, directory, time()), pool, interrupted):
        ended = ended or over(event)
    pool.close()
    assert ended
    return summary_of([event])


def check(summary: Summary, calm: Summary) -> None:
    assert (summary.weights_digest, summary.train, summary.validation) == (calm.weights_digest, calm.train, calm.validation)
    assert summary.rows_trained == summary.rows_expected


def linked(job: JobSpec, directory: Path) -> RayPool:
    """A pool that has trained a job, whose workers have connected and are idle now."""
    pool = RayPool(job.workers)
    summary_of(list(run(Order(job, directory, time()), pool, lambda: False)))
    until = monotonic() + PATIENCE_SECONDS
    while pool.linked < job.workers.most:
        assert monotonic() < until
        pool.wait(0.1)
    return pool


def test_a_linked_worker_that_dies_while_idle_is_noticed_and_replaced(small_job: Jobs, tmp_path: Path) -> None:
    pool = linked(small_job({"workers.count": 1, "training.epochs": 1}), tmp_path / "run")
    os.kill(pid_of(pool, 0), signal.SIGKILL)

    events: list[PoolEvent] = []
    while len(events) < 2:
        events += pool.wait(PATIENCE_SECONDS)
    pool.close()

    assert [type(event).__name__ for event in events] == ["Lost", "Joined"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_is_noticed_whichever_answer_is_waited_for(victim: int, small_job: Jobs, tmp_path: Path) -> None:
    pool = linked(small_job({"workers.count": 2, "training.epochs": 1}), tmp_path / "run")
    pids = [pid_of(pool, worker) for worker in (0, 1)]
    for worker, pid in enumerate(pids):
        stop(pid)  # so that neither answers
        pool.submit(worker, ComputeGradients(0, (worker,)), PATIENCE_SECONDS)
    os.kill(pids[victim], signal.SIGKILL)

    events = pool.wait(PATIENCE_SECONDS)
    pool.close()

    assert events == [Lost(victim, "its process died")]


def test_a_coordinator_that_is_held_up_blames_nobody(small_job: Jobs, tmp_path: Path) -> None:
    job, held_up, clock = small_job({"workers.count": 2, "training.epochs": 60}), False, Clock()
    pool = RayPool(job.workers, clock=clock)
    for event in run(Order(job, tmp_path / "run", time()), pool, lambda: False):
        if isinstance(event, RoundDone) and event.round > 100 and not held_up:
            held_up = True
            for link in pool._awaited_links:
                assert select.select([link], [], [], PATIENCE_SECONDS)[0]
            clock.let_time_pass()
    pool.close()

    assert held_up
    assert summary_of([event]).worker_failures == 0


def stop_amid_rounds(pool: RayPool, worker: int) -> bool:
    """Stop a worker while it runs rounds by itself, if it does; return whether it has some of them still before it."""
    if pool._runs is None or pool._runs._run is None or pool._arena is None:
        return False
    run = pool._runs._run
    stop(pid_of(pool, worker))
    end = run.ticket + 2 * len(run.rounds.learning_rates)
    if pool._arena.board.flag(run.ranks.index(worker)) < end:
        return True
    os.kill(pid_of(pool, worker), signal.SIGCONT)
    return False


def test_of_workers_that_run_rounds_by_themselves_only_the_one_that_hangs_is_lost(
    small_job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})  # on one core they would not
    overrides = {"workers.count": 2, "training.epochs": 1_000_000, "training.batch_size": 4}
    job, stopped, clock = small_job(overrides), False, Clock()
    pool = RayPool(job.workers, clock=clock)

    def recovered(event: Event) -> bool:
        nonlocal stopped
        if isinstance(event, RoundDone) and not stopped and stop_amid_rounds(pool, 1):
            stopped = True
            assert pool._runs is not None
            wait_until(lambda: pool._runs.held_up() == {0})
            clock.let_time_pass()
        return stopped and isinstance(event, EpochDone)

    summary = train_until(job, tmp_path / "run", pool, recovered)

    check(summary, calm_run(small_job(overrides | {"training.epochs": summary.epochs}), tmp_path / "calm"))
    assert summary.worker_failures == 1
    assert summary.slices_recomputed <= 3


class Harassed(RayPool):
    """One worker after the other is killed or stopped, whenever it waits, as long as there is another to go on with."""

    FAULTS = 6

    def __init__(self, job: JobSpec, seed: int) -> None:
        super().__init__(job.workers)
        self._chance = random.Random(seed)
        self.killed: set[int] = set()
        self.stopped: set[int] = set()

    def wait(self, seconds: float) -> list[PoolEvent]:
        victims = self.killed | self.stopped
        well = [number for number, member in self._members.items() if member.place is not None and number not in victims]
        if len(victims) < self.FAULTS and len(well) > 1 and self._chance.random() < 0.05:
            self._harass(self._chance.choice(well))
        for number in self.stopped & self._members.keys():
            if number in self._deadlines:
                self._deadlines._pending[number].due = 0.0  # as if it had been waited for long enough
        return super().wait(seconds)

    def _harass(self, worker: int) -> None:
        if len(self.killed) <= len(self.stopped):
            self.killed.add(worker)
            os.kill(pid_of(self, worker), signal.SIGKILL)
        else:
            self.stopped.add(worker)
            stop(pid_of(self, worker))


def test_the_digest_survives_workers_that_are_killed_and_stopped_at_random(small_job: Jobs, tmp_path: Path) -> None:
    job = small_job({"workers.count": 3, "workers.deadline_seconds": 60.0, "training.epochs": 1_000_000})
    pool = Harassed(job, seed=4)

    summary = train_until(
        job,
        tmp_path / "run",
        pool,
        lambda event: isinstance(event, RoundDone) and event.crew.lost == pool.FAULTS and event.round > 4,
    )

    check(summary, calm_run(small_job({"training.epochs": summary.epochs}), tmp_path / "calm"))
    assert summary.worker_failures == len(pool.killed) + len(pool.stopped) == pool.FAULTS


class Doomed(WorkerActor):
    """Dies of the rows of one shard, some epochs after the start."""

    def __init__(self, cpus: float, workers: int) -> None:
        super().__init__(cpus, workers)
        compute = self._worker.run

        def run(task: Task, *more: Any) -> Any:
            if isinstance(task, ComputeGradients) and task.round >= 20 and 3 in task.shards:
                os.kill(os.getpid(), signal.SIGKILL)
            return compute(task, *more)

        self._worker.run = run  # type: ignore[method-assign]


def test_a_slice_that_costs_one_worker_after_the_other_ends_the_run_with_a_checkpoint(
    small_job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.ray_pool.WorkerActor", Doomed)
    job = small_job({"workers.count": 2, "training.epochs": 1_000_000, "workers.wait_seconds": PATIENCE_SECONDS})
    pool = RayPool(job.workers)
    with pytest.raises(PoolError, match=r"shard 3 cost \d+ workers in a row, the last of them worker \d+: its process died"):
        list(run(Order(job, tmp_path / "run", time()), pool, lambda: False))
    pool.close()

    assert '"status": "failed"' in (tmp_path / "run" / "summary.json").read_text()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] != []
