"""The memory that a coordinator and the workers of its node share: parameters, gradient sums, and a board for telling of them.

Two places hold parameters; a round reads one and writes the other, so that the last round that was completed is whole, whatever
happens to the next. Each node of the reduction tree has its sum at the array of its first shard, which no two nodes under way at
the same time have in common.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cluster.shared_arrays import SharedArrays
from coordinator.ahead import MOST_ROUNDS
from coordinator.update import Parameters, UpdateSpec
from worker.arrays import Floats

MOST_PARAMETERS: Final = 1 << 22
"""Parameters up to which workers run rounds by themselves. With more, a round is so long that the coordinator's part does not
show, and a second copy of the optimizer's state would."""

CACHE_LINE: Final = 8
"""Numbers of eight bytes in a cache line. Flags of different workers lie apart: each is written by one and watched by all."""


ERRORS: Final = 6
"""Numbers that tell of a node's errors."""


@dataclass(frozen=True)
class Terms:
    """What a coordinator and its workers agree on.

    Attributes:
        update: how parameters are updated.
        shards: S.
        state: names of the arrays that the optimizer keeps.
        ahead: whether workers are to run rounds by themselves.
    """

    update: UpdateSpec
    shards: int
    state: tuple[str, ...]
    ahead: bool

    @classmethod
    def of(cls, update: UpdateSpec, shards: int, state: tuple[str, ...]) -> "Terms":
        """Return the terms for a run."""
        ahead = update.layout.size <= MOST_PARAMETERS and update.in_one_go
        return cls(update, shards, state, ahead)


class Arena:
    """The memory, mapped into this process.

    Attributes:
        terms: what it is made for.
        weights: at the two places.
        sums: an array a shard.
        places: weights with the optimizer's state; only where workers run rounds by themselves.
        board: likewise.
    """

    def __init__(self, terms: Terms, memory: Sequence[SharedArrays]) -> None:
        """Sort out what the pieces of memory hold."""
        self.terms = terms
        self._memory = memory
        self.weights: list[Floats] = memory[0].arrays
        self.sums: list[Floats] = memory[1].arrays
        self.places: list[Parameters] = []
        if terms.ahead:
            state = memory[3].arrays if terms.state else []
            self.board = Board(memory[2].arrays[0], terms)
            self.places = [
                Parameters(weights_P, dict(zip(terms.state, state[place::2], strict=True)))
                for place, weights_P in enumerate(self.weights)
            ]

    @classmethod
    def create(cls, terms: Terms) -> "Arena":
        """Make it."""
        return cls(terms, [SharedArrays.create(*shape) for shape in _shapes(terms)])

    @classmethod
    def attach(cls, terms: Terms, descriptors: Sequence[int]) -> "Arena":
        """Map what another process has made, and take over its descriptors."""
        shapes = _shapes(terms)
        assert len(shapes) == len(descriptors), "one descriptor for each piece of memory"
        return cls(terms, [SharedArrays(descriptor, *shape) for descriptor, shape in zip(descriptors, shapes, strict=True)])

    @property
    def descriptors(self) -> list[int]:
        """What other processes map it by."""
        return [piece.descriptor for piece in self._memory]


def descriptors_of(terms: Terms) -> int:
    """Return how many descriptors an arena has."""
    return len(_shapes(terms))


def _shapes(terms: Terms) -> list[tuple[int, int, str]]:
    """Return arrays, entries and dtype of each piece of memory. Pages that are never written take no memory."""
    entries, dtype = terms.update.layout.size, terms.update.model.dtype
    shapes: list[tuple[int, int, str]] = [(2, entries, dtype), (terms.shards, entries, dtype)]
    if terms.ahead:
        shapes.append((1, Board.entries(terms), "float64"))
        if terms.state:
            shapes.append((2 * len(terms.state), entries, dtype))
    return shapes


class Board:
    """Where workers that run rounds by themselves tell each other how far they are, and the coordinator what came of it.

    Flags only ever grow: every run of rounds has a ticket, 1 or more, above all flags before it. A worker's flag is 2i + 1 above
    the ticket when its gradient sums of round i are there, and 2i + 2 when its part of the update is.

    Attributes:
        flags: integers; the first is for `stop`, one cache line after the other for the workers, by their rank.
        rates: the learning rate of each round (K,).
        errors: rows, weight, loss, absolute, squared error and wrong rows of the node that begins with each shard (K, S, 6);
            0 rows where there is none.
        squares: sum of squared gradients of each block (K, blocks); infinite where weights are not finite.
        times: seconds of computing, reducing and updating of each rank (K, S, 3).
        shards: S.
        ends: when each round was completed, by `perf_counter`, which all processes of a machine share (K,).
    """

    def __init__(self, memory: Floats, terms: Terms) -> None:
        """Lay the board out over an array of float64."""
        shards, blocks = terms.shards, terms.update.blocks
        self._fence = threading.Lock()
        start = CACHE_LINE * (shards + 1)
        self.flags = memory[:start].data.cast("B").cast("q")

        def cut(*shape: int) -> Floats:
            nonlocal start
            first, size = start, 1
            for length in shape:
                size *= length
            start += size
            return memory[first:start].reshape(shape)

        self.rates = cut(MOST_ROUNDS)
        self.errors = cut(MOST_ROUNDS, shards, ERRORS)
        self.squares = cut(MOST_ROUNDS, blocks)
        self.times = cut(MOST_ROUNDS, shards, 3)
        self.ends = cut(MOST_ROUNDS)
        self.shards, self._blocks = shards, blocks
        # Single numbers are written and read faster through these than through arrays.
        self._errors, self._squares, self._times = (
            part.reshape(-1).data.cast("B").cast("d") for part in (self.errors, self.squares, self.times)
        )

    @staticmethod
    def entries(terms: Terms) -> int:
        """Return how many numbers of eight bytes a board takes."""
        return CACHE_LINE * (terms.shards + 1) + MOST_ROUNDS * (
            2 + ERRORS * terms.shards + terms.update.blocks + 3 * terms.shards
        )

    def raise_flag(self, rank: int, value: int) -> None:
        """Tell the others that what was written so far is there to be read."""
        self.order_memory()
        self.flags[CACHE_LINE * (rank + 1)] = value

    def flag(self, rank: int) -> int:
        """Return how far a worker is."""
        return self.flags[CACHE_LINE * (rank + 1)]

    def put_errors(self, number: int, shard: int, numbers: Sequence[float]) -> None:
        """Write the errors of the node that begins with this shard."""
        self._put(self._errors, ERRORS * (number * self.shards + shard), numbers)

    def errors_of(self, number: int, shard: int) -> Sequence[float]:
        """Return them."""
        start = ERRORS * (number * self.shards + shard)
        return self._errors[start : start + ERRORS].tolist()

    def put_squares(self, number: int, first: int, squares: Sequence[float]) -> None:
        """Write the squares of a round's blocks from the first of them on."""
        self._put(self._squares, number * self._blocks + first, squares)

    def squares_of(self, number: int) -> Sequence[float]:
        """Return the squares of all blocks of a round."""
        return self._squares[number * self._blocks : (number + 1) * self._blocks].tolist()

    def put_times(self, number: int, rank: int, times: Sequence[float]) -> None:
        """Write what a worker took for a round."""
        self._put(self._times, 3 * (number * self.shards + rank), times)

    @staticmethod
    def _put(memory: "memoryview[float]", start: int, numbers: Sequence[float]) -> None:
        for place, number in enumerate(numbers, start):
            memory[place] = number

    def stop(self, ticket: int) -> None:
        """Have the workers of this run of rounds stop where they are."""
        self.flags[0] = ticket

    def order_memory(self) -> None:
        """Keep what is written before this before what is written after it, and likewise for reading.

        x86 keeps stores and loads in order by itself; ARM does so around the release and the next taking of a lock.
        """
        for _ in range(2):
            with self._fence:
                pass
