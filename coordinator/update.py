"""From a round's gradient sums to new weights: add up, divide once, regularise, clip, and apply the optimizer.

All of it goes block by block, so that a block stays in the cache from the first addition to the new weight, and memory is
gone through once; only clipping has to know the whole gradient before the first weight changes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import fsum, isfinite, sqrt
from time import perf_counter
from typing import Final, NamedTuple

import numpy as np

from coordinator.optimizers import OptimizerSpec, Step, Transform, make_optimizer
from worker.arrays import Floats, sum_of_squares
from worker.model import Layout, ModelSpec
from worker.tree import Additions, Node, additions, root

BLOCK: Final = 32768
"""Entries whose squares are summed at once, for the norm: the same however an update is dealt out."""

BLOCKS_AT_ONCE: Final = 8
"""Blocks updated at once: few enough that they stay in the cache, and enough that numpy's calls and the threads' turns at the
interpreter cost little beside it (docs/performance.md)."""

BLOCKS_A_THREAD: Final = 16
"""Blocks below which a thread is not worth being woken."""

TINY: Final = 1e-30
"""Sum of squares in float32 below which small squares may have been lost."""


@dataclass(frozen=True)
class Parameters:
    """The weights and what the optimizer remembers of them."""

    weights_P: Floats
    optimizer: dict[str, Floats]

    def take(self, other: "Parameters") -> None:
        """Copy the values of others here."""
        np.copyto(self.weights_P, other.weights_P)
        for name, array in other.optimizer.items():
            np.copyto(self.optimizer[name], array)


@dataclass(frozen=True)
class PartialSums:
    """Gradient sums of parts of a round, and the order in which they are to be added, as `worker.tree.additions` has it."""

    arrays: Sequence[Floats]
    additions: Additions = ()

    @classmethod
    def of(cls, nodes: Mapping[Node, Floats], shards: int) -> "PartialSums":
        """Take what belongs to some nodes of the reduction tree, the leftmost first, as the tree has it."""
        return cls(list(nodes.values()), _additions(tuple(nodes), shards))


@dataclass(frozen=True)
class Updated:
    """The round's new parameters.

    Attributes:
        parameters: the new ones.
        gradient_norm: before clipping.
        reduce_seconds: what adding up and dividing took of the time.
    """

    parameters: Parameters
    gradient_norm: float
    reduce_seconds: float


@dataclass(frozen=True)
class Refused:
    """The update was not applied, because the gradient or the new weights are not finite.

    The weights are as before. Where `state_lost`, the optimizer's state was updated in place: training can't go on from here.
    """

    reason: str
    state_lost: bool = False


class Part(NamedTuple):
    """What an update of some blocks came to: the sum of each one's squared gradient, and whether the new weights are finite."""

    squares: list[float]
    finite: bool
    reduce_seconds: float


def squares_of(block: Floats) -> float:
    """Return the sum of squares, not finite where an entry is not; in float64 where float32 can't hold it."""
    squares = float(np.dot(block, block))
    return squares if TINY < squares < float("inf") else sum_of_squares(block)


def clip_factor(norm: float, most: float | None) -> float:
    """Return what scales a gradient of this norm down to `most` (Pascanu et al., 2013, with PyTorch's 1e-6)."""
    return 1.0 if most is None else min(1.0, most / (norm + 1e-6))


@dataclass(frozen=True)
class UpdateSpec:
    """All that the arithmetic of an update depends on."""

    optimizer: OptimizerSpec
    model: ModelSpec
    layout: Layout

    @property
    def blocks(self) -> int:
        """How many blocks the parameters make."""
        return -(-self.layout.size // BLOCK)

    @property
    def in_one_go(self) -> bool:
        """Whether blocks can be updated one by one; clipping has to know the whole gradient first."""
        return self.optimizer.clip_norm is None


class Updater:
    """Applies one job's optimizer, to all parameters or to some blocks of them.

    Attributes:
        spec: what was asked for.
        blocks: how many blocks the parameters make.
    """

    def __init__(self, optimizer: OptimizerSpec, model: ModelSpec, layout: Layout, threads: int = 1) -> None:
        """Build the optimizer for parameters of this layout, to be worked on by so many threads."""
        self.spec = UpdateSpec(optimizer, model, layout)
        self.blocks = self.spec.blocks
        self._clip_norm = optimizer.clip_norm
        self._transform: Transform = make_optimizer(optimizer)
        self._l2 = model.l2
        self._weights = [slice(slot.offset, slot.offset + slot.size) for slot in layout.slots if slot.is_weight]
        self._threads = max(1, min(threads, self.blocks // BLOCKS_A_THREAD))
        self._executor = ThreadPoolExecutor(self._threads - 1, "update") if self._threads > 1 else None
        self._gradient_P = np.empty(layout.size if self._clip_norm is not None else 0, model.dtype)

    def start(self, weights_P: Floats) -> Parameters:
        """Return the parameters before the first round."""
        return Parameters(weights_P, dict(self._transform.init(weights_P)))

    def update(self, before: Parameters, sums: PartialSums, weight: float, step: Step, new: Parameters) -> Updated | Refused:
        """Write the parameters after a round whose per-row gradients sum to `sums` into `new`; `weight` is that of the rows.

        The new weights must lie elsewhere than those before; the optimizer's state may be the same arrays.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            in_place = any(array is new.optimizer[name] for name, array in before.optimizer.items())
            if self.spec.in_one_go:
                done = applied = self._deal_out(lambda blocks: self.update_blocks(before, sums, weight, step, new, blocks))
            else:
                done = self._deal_out(lambda blocks: self._reduce_blocks(before, sums, weight, blocks))
            norm = norm_of(done.squares)
            if not isfinite(norm):
                return Refused("the gradient is not finite", state_lost=in_place and self.spec.in_one_go)
            if not self.spec.in_one_go:
                factor = clip_factor(norm, self._clip_norm)
                applied = self._deal_out(lambda blocks: self._apply_blocks(before, factor, step, new, blocks))
        if not applied.finite:
            return Refused("the updated weights are not finite", state_lost=in_place)
        return Updated(new, norm, done.reduce_seconds / self._threads)

    def update_blocks(
        self, before: Parameters, sums: PartialSums, weight: float, step: Step, new: Parameters, blocks: range
    ) -> Part:
        """Do for some blocks what `update` does for all, where that is possible `in_one_go`."""
        squares, finite, reduce_seconds = list[float](), True, 0.0
        for span in self._spans(blocks):
            began = perf_counter()
            gradient = self._reduce(before.weights_P, sums, weight, span)
            squares += _squares_by_block(gradient)
            reduce_seconds += perf_counter() - began
            finite = self._apply(before, gradient, step, new, span) and finite
        return Part(squares, finite, reduce_seconds)

    def _reduce_blocks(self, before: Parameters, sums: PartialSums, weight: float, blocks: range) -> Part:
        began, squares = perf_counter(), list[float]()
        for span in self._spans(blocks):
            gradient = self._gradient_P[span] = self._reduce(before.weights_P, sums, weight, span)
            squares += _squares_by_block(gradient)
        return Part(squares, finite=True, reduce_seconds=perf_counter() - began)

    def _apply_blocks(self, before: Parameters, factor: float, step: Step, new: Parameters, blocks: range) -> Part:
        finite = True
        for span in self._spans(blocks):
            gradient = self._gradient_P[span]
            finite = self._apply(before, gradient * factor if factor < 1.0 else gradient, step, new, span) and finite
        return Part([], finite, 0.0)

    def _spans(self, blocks: range) -> Iterator[slice]:
        """Yield the entries of the blocks, some blocks at once."""
        for first in range(blocks.start, blocks.stop, BLOCKS_AT_ONCE):
            yield slice(first * BLOCK, min(min(first + BLOCKS_AT_ONCE, blocks.stop) * BLOCK, self.spec.layout.size))

    def _reduce(self, weights_P: Floats, sums: PartialSums, weight: float, span: slice) -> Floats:
        values = [array[span] for array in sums.arrays]
        for left, right in sums.additions:
            values[left] = values[left] + values[right]
        gradient: Floats = values[0] / weight
        if self._l2:
            for weights in self._weights:
                first, last = max(weights.start, span.start), min(weights.stop, span.stop)
                if first < last:
                    gradient[first - span.start : last - span.start] += self._l2 * weights_P[first:last]
        return gradient

    def _apply(self, before: Parameters, gradient: Floats, step: Step, new: Parameters, span: slice) -> bool:
        """Write the new weights and state of a span, and return whether the weights are finite."""
        state = {name: array[span] for name, array in before.optimizer.items()}
        weights, written = before.weights_P[span], new.weights_P[span]
        updates, state_after = self._transform.update(gradient, state, weights, step)
        np.add(weights, updates, out=written)
        for name, array in state_after.items():
            new.optimizer[name][span] = array
        return isfinite(float(np.dot(written, written))) or bool(np.isfinite(written).all())

    def _deal_out(self, work: Callable[[range], Part]) -> Part:
        """Have all blocks worked on by as many threads as are worth it, and return what they came to, in the blocks' order."""
        if self._executor is None:
            return work(range(self.blocks))

        def share(blocks: range) -> Part:
            with np.errstate(over="ignore", invalid="ignore"):  # which is a thread's own
                return work(blocks)

        first, *others = deal(self.blocks, self._threads)
        futures = [self._executor.submit(share, blocks) for blocks in others]
        parts = [work(first), *(future.result() for future in futures)]
        return Part(
            [squares for part in parts for squares in part.squares],
            all(part.finite for part in parts),
            sum(part.reduce_seconds for part in parts),
        )


def deal(blocks: int, hands: int) -> list[range]:
    """Cut the blocks into as many contiguous ranges, sizes equal to within one; the first has the most."""
    bounds = [-(-hand * blocks // hands) for hand in range(hands + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]


def norm_of(squares: Sequence[float]) -> float:
    """Return the Euclidean norm from sums of squares; infinite where one of them, or all together, are not finite."""
    try:
        return sqrt(fsum(squares)) if all(map(isfinite, squares)) else float("inf")
    except OverflowError:
        return float("inf")


def _squares_by_block(gradient: Floats) -> list[float]:
    return [squares_of(gradient[start : start + BLOCK]) for start in range(0, len(gradient), BLOCK)]


@lru_cache(maxsize=256)
def _additions(nodes: tuple[Node, ...], shards: int) -> Additions:
    return additions(root(shards), shards, {node: place for place, node in enumerate(nodes)})
