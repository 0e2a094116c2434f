"""The exchange on one node, without Ray: messages, shared memory, and what happens when one end goes."""

import os
import pickle
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cluster.arena import Arena, Terms
from cluster.exchange import (
    Link,
    LinkLostError,
    Listener,
    decode_answer,
    decode_task,
    encode_answer,
    encode_failure,
    encode_task,
    serve,
)
from cluster.shared_arrays import SharedArrays
from coordinator.optimizers import OptimizerSpec
from coordinator.update import UpdateSpec
from worker.arrays import Floats
from worker.errors import DataError
from worker.messages import Answer, ComputeGradients, Evaluate, Task
from worker.model import Layout, ModelSpec
from worker.network import ErrorSums, GradientSum

PATIENCE_SECONDS = 120.0
SUMS = ErrorSums(7, 6.5, 2, 0.1, 0.2, 1e300, 3)
TERMS = Terms.of(
    UpdateSpec(OptimizerSpec(name="momentum"), ModelSpec(task="regression"), Layout((4, 1), bias=True)), 3, ("momentum",)
)


class ScriptedWorker:
    """Answers with what a function returns; `anticipated` is set when it was asked to get ready for the next round."""

    def __init__(self, answer: Callable[[Task, Floats, list[Floats]], Answer]) -> None:
        self._answer = answer
        self.anticipated = threading.Event()

    def run(self, task: Task, weights_P: Floats, room: list[Floats]) -> Answer:
        return self._answer(task, weights_P, room)

    def anticipate(self, task: ComputeGradients) -> None:
        self.anticipated.set()


@pytest.fixture
def connect() -> Iterator[Callable[[Any], tuple[Link, Arena]]]:
    """Connects a worker in a thread of its own; returns its link and the memory it shares."""
    listener, links, threads = Listener(), [], []

    def make(worker: Any) -> tuple[Link, Arena]:
        thread = threading.Thread(target=serve, args=(worker, listener.address, TERMS))
        thread.start()
        threads.append(thread)
        readable(listener)
        accepted = listener.accept()
        assert accepted is not None
        pid, link = accepted
        assert pid == os.getpid()
        links.append(link)
        arena = Arena.create(TERMS)
        link.share(arena)
        return link, arena

    yield make
    for link in links:
        link.close()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    listener.close()


def readable(source: Any) -> None:
    assert select.select([source], [], [], PATIENCE_SECONDS)[0]


@pytest.mark.parametrize(
    "task",
    [ComputeGradients(2**40, (0, 3, 70_000)), ComputeGradients(0, ()), Evaluate("train", (1,)), Evaluate("validation", (0, 1))],
)
def test_a_task_survives_its_message(task: ComputeGradients | Evaluate) -> None:
    assert decode_task(encode_task(task, 1)) == (task, 1)


def test_an_answer_survives_its_message_and_its_sums_stay_where_they_are() -> None:
    arrays = [np.zeros(3, "float32") for _ in range(8)]
    no_classes = ErrorSums(1, 1.0, 1, float("inf"), float("-inf"), 0.0, None)
    answer = {(2, 0): GradientSum(arrays[0], SUMS), (0, 4): None, (1, 3): GradientSum(arrays[6], no_classes)}

    found, seconds = decode_answer(encode_answer(answer, 0.25), arrays)

    assert isinstance(found, dict)
    assert seconds == 0.25
    assert list(found) == list(answer)
    assert found[2, 0].gradient_P is arrays[0]
    assert found[1, 3].gradient_P is arrays[6]
    assert (found[2, 0].errors, found[0, 4], found[1, 3].errors) == (SUMS, None, no_classes)
    errors: dict[tuple[int, int], GradientSum | ErrorSums | None] = {(0, 0): SUMS, (0, 1): None}
    assert decode_answer(encode_answer(errors, 0.0), ()) == (errors, 0.0)
    assert decode_answer(encode_answer({}, 1.0), ()) == ({}, 1.0)


class UnpicklableError(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("no")


def test_a_failure_is_raised_at_the_other_end() -> None:
    with pytest.raises(DataError, match="row 3 is bad"):
        decode_answer(encode_failure(DataError("row 3 is bad")), ())
    with pytest.raises(RuntimeError, match="UnpicklableError: what it was"):
        decode_answer(encode_failure(UnpicklableError("what it was")), ())
    with pytest.raises(RuntimeError, match="ValueError: xxx"):
        decode_answer(encode_failure(ValueError("x" * 10**6)), ())
    assert isinstance(pickle.loads(pickle.dumps(LinkLostError())), LinkLostError)


def test_weights_and_sums_are_seen_by_both_ends(connect: Callable[[Any], tuple[Link, Arena]]) -> None:
    def answer(task: Task, weights_P: Floats, room: list[Floats]) -> Answer:
        assert task == ComputeGradients(4, (0, 1))
        np.multiply(weights_P, 2, out=room[2])
        return {(1, 1): GradientSum(room[2], SUMS)}

    worker = ScriptedWorker(answer)
    link, arena = connect(worker)
    arena.weights[1][:] = range(5)

    link.submit(ComputeGradients(4, (0, 1)), 1)
    readable(link)
    answered = link.answer()

    assert answered is not None
    assert link.answer() is None
    ((node, part),) = answered[0].items()  # type: ignore[union-attr]
    assert node == (1, 1)
    assert part.gradient_P.tolist() == [0, 2, 4, 6, 8]
    assert part.gradient_P is arena.sums[2]
    assert worker.anticipated.wait(PATIENCE_SECONDS)


def test_a_worker_goes_on_after_a_failure(connect: Callable[[Any], tuple[Link, Arena]]) -> None:
    failures = iter([DataError("rows.csv: gone")])

    def answer(task: Task, weights_P: Floats, room: list[Floats]) -> Answer:
        for failure in failures:
            raise failure
        return {(0, 0): SUMS}

    link, _ = connect(ScriptedWorker(answer))
    link.submit(Evaluate("train", (0,)), 0)
    readable(link)
    with pytest.raises(DataError, match=r"rows\.csv: gone"):
        link.answer()

    link.submit(Evaluate("train", (0,)), 0)
    readable(link)
    answered = link.answer()
    assert answered is not None
    assert answered[0] == {(0, 0): SUMS}


def test_an_end_that_goes_is_noticed_at_the_other(connect: Callable[[Any], tuple[Link, Arena]]) -> None:
    def answer(task: Task, weights_P: Floats, room: list[Floats]) -> Answer:
        raise ConnectionResetError

    link, _ = connect(ScriptedWorker(answer))
    link.submit(Evaluate("train", (0,)), 0)
    readable(link)
    with pytest.raises(LinkLostError):
        link.answer()
    link.submit(Evaluate("train", (0,)), 0)  # into the void, which reading has told
    assert link.await_end(PATIENCE_SECONDS)


def test_shared_arrays_begin_at_0_lie_apart_and_leave_nothing_behind(shared: Callable[[], set[int]]) -> None:
    before = shared()
    created = SharedArrays.create(3, 1500, "float64")
    first, second, third = created.arrays
    first[:] = 1
    third[:] = 3

    assert not second.any()
    assert (second.__array_interface__["data"][0] - first.__array_interface__["data"][0]) % 4096 == 0
    mapped = SharedArrays(os.dup(created.descriptor), 3, 1500, "float64")
    assert mapped.arrays[2].tolist() == third.tolist()
    assert shared() - before
    del created, mapped
    assert third[0] == 3
    del first, second, third
    assert not shared() - before
