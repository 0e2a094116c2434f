"""Rounds that workers run by themselves, without Ray: threads in place of processes, around the same memory."""

import os
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from cluster.arena import Arena, Terms
from cluster.rounds import RunRounds, completed_rounds, decode_rounds, encode_rounds, run_rounds
from coordinator.ahead import MOST_ROUNDS, Ahead, RoundRun, rounds_ahead
from coordinator.optimizers import OptimizerSpec, Step
from coordinator.update import BLOCK, Parameters, PartialSums, Updated, Updater
from worker.arrays import Floats
from worker.messages import ComputeGradients, GradientSums
from worker.model import Layout, ModelSpec
from worker.network import ErrorSums, GradientSum
from worker.tree import cover, first_member, members, tree_sum

PATIENCE_SECONDS = 120.0
SHARDS = 4
MODEL = ModelSpec(task="regression", dtype="float64", l2=0.01)
LAYOUT = Layout((2 * BLOCK + 100, 1), bias=True)
SHARES = {1: [(0, 1, 2, 3)], 2: [(0, 1), (2, 3)], 3: [(2,), (0, 1), (3,)], 4: [(3,), (2,), (1,), (0,)]}


def shard_gradient(weights_P: Floats, round_number: int, shard: int) -> Floats:
    """A gradient that no two shards and rounds have in common, and that the weights have a part in."""
    return weights_P * (shard + 1) / 7 + np.sin(round_number * 10.0 + shard)


class ScriptedWorker:
    """Computes made-up gradients; `fate` is called before each round and may raise, wait or return errors to report."""

    def __init__(self, fate: Callable[[int], float] = lambda number: 0.5, weight: float = 0.75) -> None:
        self._fate = fate
        self._weight = weight

    def run(self, task: ComputeGradients, weights_P: Floats, room: Sequence[Floats]) -> GradientSums:
        loss = self._fate(task.round)
        answer: GradientSums = {}
        for node in cover(task.shards, SHARDS):
            rows = [shard for shard in members(node, SHARDS) if (task.round + shard) % 5]  # some shard has none in some rounds
            answer[node] = None
            if rows:
                leaves = {(0, shard): shard_gradient(weights_P, task.round, shard) for shard in rows}
                total = tree_sum(node, SHARDS, leaves.get, np.add, lambda found: found[0] == 0)
                np.copyto(room[first_member(node)], total)
                answer[node] = GradientSum(
                    room[first_member(node)], ErrorSums(len(rows), self._weight * len(rows), 1, loss, 1.0, 2.0, None)
                )
        return answer

    def anticipate(self, task: ComputeGradients) -> None:
        pass


def make_arena(name: str = "adam") -> tuple[Arena, Updater]:
    updater = Updater(OptimizerSpec(name=name, learning_rate=0.01), MODEL, LAYOUT)  # type: ignore[arg-type]
    start = updater.start(np.linspace(-1.0, 1.0, LAYOUT.size))
    arena = Arena.create(Terms.of(updater.spec, SHARDS, tuple(start.optimizer)))
    arena.places[0].take(start)
    return arena, updater


def run_ahead(arena: Arena, updater: Updater, workers: list[Any], ahead: Ahead, ticket: int = 1) -> list[RoundRun]:
    """Have a thread for each worker run the rounds, and return those that were completed."""
    arena.board.rates[: len(ahead.learning_rates)] = ahead.learning_rates
    shares = tuple(ahead.shares.values())

    def part(rank: int, worker: Any) -> None:
        task = RunRounds(ticket, ahead.first, len(ahead.learning_rates), ahead.place, rank, shares)
        try:
            run_rounds(task, worker, updater, arena, lambda: False)
        except DeathError:
            arena.board.stop(ticket)  # which the coordinator does for a worker that is gone

    began = perf_counter()
    threads = [threading.Thread(target=part, args=(rank, worker)) for rank, worker in enumerate(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    return completed_rounds(arena, ticket, ahead, began)


class DeathError(Exception):
    """The worker is gone."""


def by_hand(rounds: int, name: str = "adam", weight: float = 0.75) -> Parameters:
    """What the coordinator makes of the same rounds, with the gradient of all shards in one piece."""
    updater = Updater(OptimizerSpec(name=name, learning_rate=0.01), MODEL, LAYOUT)  # type: ignore[arg-type]
    parameters = updater.start(np.linspace(-1.0, 1.0, LAYOUT.size))
    for number in range(rounds):
        room = [np.empty(LAYOUT.size) for _ in range(SHARDS)]
        answer = ScriptedWorker(weight=weight).run(ComputeGradients(number, tuple(range(SHARDS))), parameters.weights_P, room)
        ((_, part),) = answer.items()
        assert part is not None
        new = Parameters(np.empty(LAYOUT.size), parameters.optimizer)
        updated = updater.update(parameters, PartialSums([part.gradient_P]), part.errors.divisor, Step(number + 1, 0.01), new)
        assert isinstance(updated, Updated)
        parameters = updated.parameters
    return parameters


def same(one: Parameters, other: Parameters) -> bool:
    """To the bit."""
    return np.array_equal(one.weights_P, other.weights_P) and all(
        np.array_equal(array, other.optimizer[name]) for name, array in one.optimizer.items()
    )


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("count", SHARES)
def test_workers_come_to_what_the_coordinator_would(count: int, name: str) -> None:
    arena, updater = make_arena(name)
    ahead = Ahead(0, (0.01,) * 5, 0, dict(enumerate(SHARES[count])))

    run = run_ahead(arena, updater, [ScriptedWorker() for _ in range(count)], ahead)

    assert len(run) == 5
    assert same(arena.places[1], by_hand(5, name))
    for number, done in enumerate(run):
        assert sum(part.rows for part in done.parts.values()) == sum(1 for shard in range(SHARDS) if (number + shard) % 5)
        assert done.gradient_norm > 0
        assert done.seconds.keys() == ahead.shares.keys()
    again = run_ahead(
        arena, updater, [ScriptedWorker() for _ in range(count)], Ahead(5, (0.01,) * 2, 1, ahead.shares), ticket=100
    )
    assert len(again) == 2
    assert same(arena.places[1], by_hand(7, name))


def test_a_round_in_which_no_row_has_any_weight_is_divided_by_1() -> None:
    arena, updater = make_arena()

    run = run_ahead(arena, updater, [ScriptedWorker(weight=0.0)] * 2, Ahead(0, (0.01,) * 3, 0, dict(enumerate(SHARES[2]))))

    assert len(run) == 3
    assert same(arena.places[1], by_hand(3, weight=0.0))


@pytest.mark.parametrize("dies_in", [0, 1, 4])
def test_a_worker_that_dies_leaves_the_last_completed_round_whole(dies_in: int) -> None:
    arena, updater = make_arena()

    def fate(number: int) -> float:
        if number == dies_in:
            raise DeathError
        return 0.5

    workers = [ScriptedWorker(), ScriptedWorker(fate)]
    run = run_ahead(arena, updater, workers, Ahead(0, (0.01,) * 9, 0, dict(enumerate(SHARES[2]))))

    assert len(run) == dies_in
    assert same(arena.places[dies_in % 2], by_hand(dies_in))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_workers_stop_before_a_round_whose_error_is_not_finite(bad: float) -> None:
    arena, updater = make_arena()
    workers = [ScriptedWorker(), ScriptedWorker(lambda number: bad if number == 3 else 0.5)]

    run = run_ahead(arena, updater, workers, Ahead(0, (0.01,) * 9, 0, dict(enumerate(SHARES[2]))))

    assert len(run) == 3
    assert same(arena.places[1], by_hand(3))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_errors_that_are_finite_in_parts_only_stop_the_workers(count: int) -> None:
    arena, updater = make_arena()
    # Together, the parts of all workers but a single one are more than a float64 holds.
    part = 1.6e308 if count == 1 else 2.0e308 / count
    workers = [ScriptedWorker(lambda number: part if number == 3 else 0.5) for _ in range(count)]

    run = run_ahead(arena, updater, workers, Ahead(0, (0.01,) * 9, 0, dict(enumerate(SHARES[count]))))

    assert len(run) == (9 if count == 1 else 3)


def test_workers_stop_before_a_round_whose_weights_are_not_finite() -> None:
    arena, updater = make_arena("sgd")
    rates = (0.01, 0.01, float("inf"), 0.01)

    run = run_ahead(arena, updater, [ScriptedWorker(), ScriptedWorker()], Ahead(0, rates, 0, dict(enumerate(SHARES[2]))))

    assert len(run) == 2
    assert same(arena.places[0], by_hand(2, "sgd"))


def test_workers_stop_when_their_coordinator_is_gone() -> None:
    arena, updater = make_arena()
    gone = threading.Event()
    task = RunRounds(1, 0, 3, 0, 0, ((0, 1), (2, 3)))
    alone = threading.Thread(target=run_rounds, args=(task, ScriptedWorker(), updater, arena, gone.is_set))
    alone.start()
    gone.set()
    alone.join(PATIENCE_SECONDS)
    assert not alone.is_alive()
    assert completed_rounds(arena, 1, Ahead(0, (0.01,) * 3, 0, {0: (0, 1), 1: (2, 3)}), 0.0) == []


def test_a_task_survives_its_message() -> None:
    task = RunRounds(2**40, 7, 3, 1, 2, ((0, 3), (), (70_000,)))
    assert decode_rounds(encode_rounds(task)) == task


def test_another_process_sees_the_same_arena() -> None:
    arena, _ = make_arena()
    other = Arena.attach(arena.terms, [os.dup(descriptor) for descriptor in arena.descriptors])
    arena.places[1].optimizer["squares"][7] = 3.0
    arena.sums[2][5] = 4.0
    arena.board.raise_flag(1, 12)
    assert other.places[1].optimizer["squares"][7] == 3.0
    assert other.sums[2][5] == 4.0
    assert (other.board.flag(0), other.board.flag(1)) == (0, 12)


@pytest.mark.parametrize(
    ("left_in_epoch", "left", "round_seconds", "count"),
    [
        (10, None, None, 1),
        (10, None, 1e-4, 10),
        (10_000, None, 1e-4, MOST_ROUNDS),
        (10_000, 7, 1e-4, 7),
        (10_000, 0, 1e-4, 0),
        (10_000, None, 0.01, 5),
        (10_000, None, 3.0, 1),
        (3, 2, 0.0, 2),
    ],
)
def test_how_many_rounds(left_in_epoch: int, left: int | None, round_seconds: float | None, count: int) -> None:
    assert rounds_ahead(left_in_epoch=left_in_epoch, left=left, round_seconds=round_seconds) == count


def test_large_networks_and_clipping_are_the_coordinators() -> None:
    small, large = Layout((100, 10), bias=True), Layout((4096, 4096), bias=True)

    def terms(layout: Layout, clip_norm: float | None = None) -> Terms:
        return Terms.of(Updater(OptimizerSpec(clip_norm=clip_norm), MODEL, layout).spec, SHARDS, ())

    assert terms(small).ahead
    assert not terms(large).ahead
    assert not terms(small, 1.0).ahead
