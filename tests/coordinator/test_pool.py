import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.pool import Answered, Crew, InProcessPool, Lost, PoolError, share_out
from coordinator.pool import Event as PoolEvent
from coordinator.records import Event, Summary
from worker.arrays import Floats
from worker.messages import Answer, ComputeGradients, CountRows, Task
from worker.network import GradientSum

Document = dict[str, dict[str, Any]]


class ScriptedPool:
    """A pool that takes every task and gives the scripted events, a list a wait."""

    def __init__(self, workers: tuple[int, ...], *script: list[PoolEvent]) -> None:
        self.workers = workers
        self.tasks: list[tuple[int, Task]] = []
        self._script = iter(script)

    def publish(self, weights_P: Floats) -> None:
        raise AssertionError("these tests need no weights")

    def submit(self, worker: int, task: Task) -> None:
        self.tasks.append((worker, task))

    def wait(self) -> list[PoolEvent]:
        return next(self._script)

    def close(self) -> None:
        pass


class RemotePool:
    """Workers as the network shows them: the last to be asked answers first, and all arrays are read-only copies."""

    def __init__(self, workers: int) -> None:
        self._inner = InProcessPool(workers)
        self.workers = self._inner.workers
        self._events: list[PoolEvent] = []

    def publish(self, weights_P: Floats) -> None:
        copy_P = weights_P.copy()
        copy_P.setflags(write=False)
        self._inner.publish(copy_P)

    def submit(self, worker: int, task: Task) -> None:
        self._inner.submit(worker, pickle.loads(pickle.dumps(task)))
        self._events += self._inner.wait()

    def wait(self) -> list[PoolEvent]:
        event = self._events.pop()
        assert isinstance(event, Answered)
        return [replace(event, answer=read_only(pickle.loads(pickle.dumps(event.answer))))]

    def close(self) -> None:
        self._inner.close()


def read_only(answer: Answer) -> Answer:
    for part in (answer or {}).values():
        if isinstance(part, GradientSum):
            part.gradient_P.setflags(write=False)
    return answer


class LosingPool(InProcessPool):
    """Loses worker 1 when it is to compute the slices of the third round."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._lost: list[PoolEvent] = []

    def submit(self, worker: int, task: Task) -> None:
        if isinstance(task, ComputeGradients) and task.round == 2 and worker == 1:
            self._lost.append(Lost(1, "killed by the test"))
        else:
            super().submit(worker, task)

    def wait(self) -> list[PoolEvent]:
        return super().wait() + self._lost


@given(shards=st.integers(1, 300), data=st.data())
def test_shards_are_shared_out_in_contiguous_ranges_equal_to_within_one(shards: int, data: st.DataObject) -> None:
    workers = tuple(data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=min(shards, 40), unique=True)))

    held = share_out(shards, workers)

    assert tuple(held) == workers
    assert [shard for worker in workers for shard in held[worker]] == list(range(shards))
    assert max(map(len, held.values())) - min(map(len, held.values())) <= 1


def test_a_crew_gives_each_worker_its_shards_and_waits_for_every_answer() -> None:
    pool = ScriptedPool((4, 9), [Answered(9, {"nine": 9})], [Answered(4, {"four": 4})])

    answers = Crew(pool, 5).ask(lambda shards: ComputeGradients(0, shards))

    assert answers == [{"nine": 9}, {"four": 4}]
    assert pool.tasks == [(4, ComputeGradients(0, (0, 1))), (9, ComputeGradients(0, (2, 3, 4)))]


def test_one_worker_is_asked_what_needs_no_shards() -> None:
    pool = ScriptedPool((4, 9), [Answered(4, {"a.csv": 3})])

    assert Crew(pool, 5).ask_one(CountRows(("a.csv",))) == {"a.csv": 3}
    assert pool.tasks == [(4, CountRows(("a.csv",)))]


def test_a_lost_worker_ends_the_task_with_its_number_and_cause() -> None:
    pool = ScriptedPool((4, 9), [Answered(4, None), Lost(9, "its node went away")])

    with pytest.raises(PoolError, match=r"^worker 9 was lost: its node went away$"):
        Crew(pool, 5).ask(lambda shards: ComputeGradients(0, shards))


def test_a_worker_lost_in_a_round_ends_the_run(
    begin_job: Callable[..., Iterator[Event]], blobs_job: Document, tmp_path: Path
) -> None:
    with pytest.raises(PoolError, match=r"^worker 1 was lost: killed by the test$"):
        list(begin_job(blobs_job, pool=LosingPool(3)))

    assert not (tmp_path / "run-1" / "summary.json").exists()
    assert not (tmp_path / "run-1" / "model").exists()


def test_workers_of_this_process_answer_each_task_once() -> None:
    pool = InProcessPool(2)
    for worker in pool.workers:
        pool.submit(worker, CountRows(()))

    assert pool.wait() == [Answered(0, {}), Answered(1, {})]
    assert pool.wait() == []


def test_neither_the_order_of_answers_nor_read_only_arrays_change_the_weights(
    run_job: Callable[..., tuple[list[Event], Summary]], blobs_job: Document
) -> None:
    _, near = run_job(blobs_job, {"data.validation": 0.2})
    _, far = run_job(blobs_job, {"data.validation": 0.2}, pool=RemotePool(3))

    assert far.workers == 3
    assert far.weights_digest == near.weights_digest
    assert far.train == near.train
    assert far.validation == near.validation
    assert np.isfinite(near.train.loss)
