"""Rounds that the workers of a node run without the coordinator: the part of one of them.

Each computes the gradient sums of its shards, waits for the others', adds all of them up and updates its part of the parameters,
and waits for the other parts. Every worker sees the same numbers and so decides the same: where an error or a gradient is not
finite they stop, and the coordinator does that round by itself.
"""

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite
from time import perf_counter, sleep, time
from typing import Final, cast

import numpy as np

from cluster.arena import CACHE_LINE, ERRORS, Arena, Board
from coordinator.ahead import Ahead, RoundRun
from coordinator.crew import Shards
from coordinator.optimizers import Step
from coordinator.update import PartialSums, Updater, deal, norm_of
from worker.engine import Worker
from worker.messages import ComputeGradients, GradientSums
from worker.network import ErrorSums
from worker.tree import Node, cover, finish, first_member

LOOKS: Final = 32
"""Looks at the flags before the core is offered to others."""

LOOKS_AWAKE: Final = 20_000
"""Looks after which there are naps in between: some milliseconds, after which a moment more does not matter."""

NAP_SECONDS: Final = 100e-6

NOTHING: Final = (0.0,) * ERRORS
"""The errors of a node without rows."""

_HEAD: Final = struct.Struct("<cBxxxxxxqqii")  # kind, place, ticket, first round, rounds, rank


@dataclass(frozen=True)
class RunRounds:
    """What one worker is asked to run: `count` rounds from `first`, as number `rank` of those that have these shares.

    `place` says which parameters to begin with, `ticket` what the flags count from.
    """

    ticket: int
    first: int
    count: int
    place: int
    rank: int
    shares: tuple[Shards, ...]


def encode_rounds(task: RunRounds) -> bytes:
    """Return the task as a message."""
    sizes = [len(share) for share in task.shares]
    numbers = [len(sizes), *sizes, *(shard for share in task.shares for shard in share)]
    head = _HEAD.pack(b"r", task.place, task.ticket, task.first, task.count, task.rank)
    return head + struct.pack(f"<{len(numbers)}i", *numbers)


def decode_rounds(message: bytes) -> RunRounds:
    """Return the task of a message."""
    _, place, ticket, first, count, rank = _HEAD.unpack_from(message)
    workers, *numbers = struct.unpack_from(f"<{(len(message) - _HEAD.size) // 4}i", message, _HEAD.size)
    sizes, shards = numbers[:workers], iter(numbers[workers:])
    return RunRounds(ticket, first, count, place, rank, tuple(tuple(next(shards) for _ in range(size)) for size in sizes))


def run_rounds(task: RunRounds, worker: Worker, updater: Updater, arena: Arena, hung_up: Callable[[], bool]) -> None:
    """Run the rounds with the other workers, until they are done or can't go on.

    Args:
        task: the rounds.
        worker: holds the shards.
        updater: of the run; it must work in one thread.
        arena: the memory they share.
        hung_up: tells that the coordinator is gone, or has given the workers up.
    """
    board, shards, share = arena.board, arena.terms.shards, task.shares[task.rank]
    outputs = arena.terms.update.layout.sizes[-1]
    meeting = Meeting(board, len(task.shares), task.ticket, hung_up)
    nodes = _nodes(task.shares, shards)
    blocks = deal(updater.blocks, len(task.shares))[task.rank]
    rates = board.rates[: task.count].tolist()
    # A diverging run overflows; all workers see it in the sums.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for number in range(task.count):
            before, new = arena.places[(task.place + number) % 2], arena.places[(task.place + number + 1) % 2]
            began = perf_counter()
            gradients = ComputeGradients(task.first + number, share)
            answer = cast(GradientSums, worker.run(gradients, before.weights_P, arena.sums))
            for node, part in answer.items():
                board.put_errors(number, first_member(node), _as_numbers(part.errors) if part is not None else NOTHING)
            seconds = perf_counter() - began
            board.raise_flag(task.rank, task.ticket + 2 * number + 1)
            worker.anticipate(gradients)
            if not meeting.all_at(2 * number + 1):
                return
            present, errors = _survey(board, number, nodes, outputs)
            if not errors.finite:
                return
            sums = PartialSums.of({node: arena.sums[first_member(node)] for node in present}, shards)
            step = Step(task.first + number + 1, rates[number])
            began = perf_counter()
            done = updater.update_blocks(before, sums, errors.divisor, step, new, blocks)
            board.put_squares(number, blocks.start, done.squares if done.finite else [float("inf")] * len(blocks))
            update_seconds = perf_counter() - began - done.reduce_seconds
            board.put_times(number, task.rank, (seconds, done.reduce_seconds, update_seconds))
            if task.rank == 0:
                board.ends[number] = perf_counter()
            board.raise_flag(task.rank, task.ticket + 2 * number + 2)
            if not meeting.all_at(2 * number + 2) or not isfinite(norm_of(board.squares_of(number))):
                return


class Meeting:
    """Where workers wait for each other."""

    def __init__(self, board: Board, workers: int, ticket: int, hung_up: Callable[[], bool]) -> None:
        """Wait by the flags of so many workers."""
        self._board, self._ticket, self._hung_up = board, ticket, hung_up
        self._flags = board.flags
        self._places = [CACHE_LINE * (rank + 1) for rank in range(workers)]

    def all_at(self, step: int) -> bool:
        """Return once every worker has come so far; False if they were told to stop, or the coordinator is gone."""
        wanted, flags, looks = self._ticket + step, self._flags, 0
        for place in self._places:
            while flags[place] < wanted:
                looks += 1
                if flags[0] >= self._ticket:
                    return False
                if looks % LOOKS == 0:
                    os.sched_yield()
                    if looks % (64 * LOOKS) == 0 and self._hung_up():
                        return False
                    if looks > LOOKS_AWAKE:
                        sleep(NAP_SECONDS)
        self._board.order_memory()
        return True


def completed_rounds(arena: Arena, ticket: int, rounds: Ahead, began: float) -> list[RoundRun]:
    """Return what the board tells of rounds that all workers have completed, whatever became of the workers since.

    Args:
        arena: with the board.
        ticket: that the workers' flags count from.
        rounds: that they were asked for.
        began: when that was, by `perf_counter`.
    """
    board, shards, outputs = arena.board, arena.terms.shards, arena.terms.update.layout.sizes[-1]
    ranks = range(len(rounds.shares))
    board.order_memory()
    count = min(max(0, board.flag(rank) - ticket) // 2 for rank in ranks)
    nodes = _nodes(rounds.shares.values(), shards)
    now, wall, before = perf_counter(), time(), began
    run: list[RoundRun] = []
    for number in range(min(count, len(rounds.learning_rates))):
        norm, end = norm_of(board.squares[number].tolist()), float(board.ends[number])
        if not isfinite(norm):
            break
        errors, times = board.errors[number].tolist(), board.times[number, : len(ranks)].tolist()
        _, reduce_seconds, update_seconds = times[0]  # of whom the ends are, so that the phases add up to the duration
        run.append(
            RoundRun(
                parts={node: _as_sums(errors[first_member(node)], outputs) for node in nodes if errors[first_member(node)][0]},
                gradient_norm=norm,
                timestamp=wall - (now - end),
                seconds={worker: seconds for worker, (seconds, _, _) in zip(rounds.shares, times, strict=True)},
                reduce_seconds=reduce_seconds,
                update_seconds=update_seconds,
                duration=end - before,
            )
        )
        before = end
    return run


def _nodes(shares: Iterable[Shards], shards: int) -> list[Node]:
    """Return the nodes of the reduction tree that workers with these shares can add up, from left to right."""
    return sorted((node for share in shares for node in cover(share, shards)), key=first_member)


def _as_sums(numbers: Sequence[float], outputs: int) -> ErrorSums:
    rows, weight, loss, absolute, squared, wrong = numbers
    return ErrorSums(int(rows), weight, outputs, loss, absolute, squared, None if wrong < 0 else wrong)


def _as_numbers(errors: ErrorSums) -> tuple[float, ...]:
    wrong = -1.0 if errors.wrong is None else errors.wrong
    return errors.rows, errors.weight, errors.loss, errors.absolute, errors.squared, wrong


def _survey(board: Board, number: int, nodes: list[Node], outputs: int) -> tuple[tuple[Node, ...], ErrorSums]:
    """Return which nodes have rows in a round, and the errors of all of them."""
    errors = {node: board.errors_of(number, first_member(node)) for node in nodes}
    present = {node: numbers for node, numbers in errors.items() if numbers[0]}
    # Added up in the tree: what is finite in parts may not be together, and that must not depend on the parts.
    total = finish(present, board.shards, lambda left, right: [one + other for one, other in zip(left, right, strict=True)])
    assert total is not None, "no round is empty"
    return tuple(present), _as_sums(total, outputs)
