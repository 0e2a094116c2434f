"""From a round's gradient sums to new weights: add up, divide once, regularise, clip, and apply the optimizer.

All of it goes block by block, so that a block stays in the cache from the first addition to the new weight, and memory is
gone through once; only clipping has to know the whole gradient before the first weight changes.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import fsum, isfinite, sqrt
from time import perf_counter
from typing import Final, NamedTuple

import numpy as np

from coordinator.optimizers import OptimizerSpec, Step, Transform, make_optimizer
from worker.arrays import Floats, sum_of_squares
from worker.model import Layout, ModelSpec
from worker.tree import Additions

BLOCK: Final = 262144
"""Entries updated at once: few enough that a block stays in the cache, and enough that numpy's calls and the threads' turns at
the interpreter cost little beside it (docs/performance.md)."""

BLOCKS_A_THREAD: Final = 2
"""Blocks below which a thread is not worth being woken."""

TINY: Final = 1e-30
"""Sum of squares in float32 below which small squares may have been lost."""


@dataclass(frozen=True)
class Parameters:
    """The weights and what the optimizer remembers of them. An update writes new weights elsewhere, and the state in place."""

    weights_P: Floats
    optimizer: dict[str, Floats]


@dataclass(frozen=True)
class PartialSums:
    """Gradient sums of parts of a round, and the order in which they are to be added, as `worker.tree.additions` has it."""

    arrays: Sequence[Floats]
    additions: Additions = ()


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

    The weights are as before. Where `state_lost`, the optimizer's state is not, so that training can't go on from here.
    """

    reason: str
    state_lost: bool = False


class _BlockDone(NamedTuple):
    squares: float
    finite: bool
    reduce_seconds: float


def squares_of(block: Floats) -> float:
    """Return the sum of squares, not finite where an entry is not; in float64 where float32 can't hold it."""
    squares = float(np.dot(block, block))
    return squares if TINY < squares < float("inf") else sum_of_squares(block)


def clip_factor(norm: float, most: float | None) -> float:
    """Return what scales a gradient of this norm down to `most` (Pascanu et al., 2013, with PyTorch's 1e-6)."""
    return 1.0 if most is None else min(1.0, most / (norm + 1e-6))


class Updater:
    """Applies one job's optimizer."""

    def __init__(self, optimizer: OptimizerSpec, model: ModelSpec, layout: Layout, threads: int = 1) -> None:
        """Build the optimizer for parameters of this layout, to be worked on by so many threads."""
        self._clip_norm = optimizer.clip_norm
        self._transform: Transform = make_optimizer(optimizer)
        self._l2 = model.l2
        self._weights = [slice(slot.offset, slot.offset + slot.size) for slot in layout.slots if slot.is_weight]
        self._blocks = [slice(start, min(start + BLOCK, layout.size)) for start in range(0, layout.size, BLOCK)]
        self._threads = max(1, min(threads, len(self._blocks) // BLOCKS_A_THREAD))
        self._executor = ThreadPoolExecutor(self._threads - 1, "update") if self._threads > 1 else None
        self._gradient_P = np.empty(layout.size if self._clip_norm is not None else 0, model.dtype)

    def start(self, weights_P: Floats) -> Parameters:
        """Return the parameters before the first round."""
        return Parameters(weights_P, dict(self._transform.init(weights_P)))

    def update(self, parameters: Parameters, sums: PartialSums, rows: int, step: Step, new_P: Floats) -> Updated | Refused:
        """Return the parameters after a round whose per-row gradients sum to `sums`; the weights are put into `new_P`."""
        new = Parameters(new_P, parameters.optimizer)

        def reduce(block: slice) -> Floats:
            return self._reduce(parameters.weights_P, sums, rows, block)

        def reduce_and_apply(block: slice) -> _BlockDone:
            began = perf_counter()
            gradient = reduce(block)
            squares, reduced = squares_of(gradient), perf_counter() - began
            return _BlockDone(squares, self._apply(parameters, gradient, step, new, block), reduced)

        def reduce_only(block: slice) -> _BlockDone:
            began = perf_counter()
            gradient = self._gradient_P[block] = reduce(block)
            return _BlockDone(squares_of(gradient), finite=True, reduce_seconds=perf_counter() - began)

        with np.errstate(over="ignore", invalid="ignore"):
            clipped = self._clip_norm is not None
            done = self._over_blocks(reduce_only if clipped else reduce_and_apply)
            norm = sqrt(fsum(part.squares for part in done)) if all(isfinite(part.squares) for part in done) else float("inf")
            if not isfinite(norm):
                return Refused("the gradient is not finite", state_lost=not clipped)
            if clipped:
                factor = clip_factor(norm, self._clip_norm)
                applied = self._over_blocks(
                    lambda block: _BlockDone(
                        0.0, self._apply(parameters, self._scaled(self._gradient_P[block], factor), step, new, block), 0.0
                    )
                )
            else:
                applied = done
        if not all(part.finite for part in applied):
            return Refused("the updated weights are not finite", state_lost=True)
        return Updated(new, norm, sum(part.reduce_seconds for part in done) / self._threads)

    def _reduce(self, weights_P: Floats, sums: PartialSums, rows: int, block: slice) -> Floats:
        values = [array[block] for array in sums.arrays]
        for left, right in sums.additions:
            values[left] = values[left] + values[right]
        gradient: Floats = values[0] / rows
        if self._l2:
            for weights in self._weights:
                first, last = max(weights.start, block.start), min(weights.stop, block.stop)
                if first < last:
                    gradient[first - block.start : last - block.start] += self._l2 * weights_P[first:last]
        return gradient

    def _scaled(self, gradient: Floats, factor: float) -> Floats:
        return gradient * factor if factor < 1.0 else gradient

    def _apply(self, before: Parameters, gradient: Floats, step: Step, new: Parameters, block: slice) -> bool:
        """Write the block's new weights and state, and return whether the weights are finite."""
        state = {name: array[block] for name, array in before.optimizer.items()}
        weights = before.weights_P[block]
        updates, state_after = self._transform.update(gradient, state, weights, step)
        np.add(weights, updates, out=new.weights_P[block])
        for name, array in state_after.items():
            state[name][...] = array
        written = new.weights_P[block]
        return isfinite(float(np.dot(written, written))) or bool(np.isfinite(written).all())

    def _over_blocks(self, work: Callable[[slice], _BlockDone]) -> list[_BlockDone]:
        """Return the work's results in the order of the blocks, whichever thread did them."""
        if self._executor is None:
            return [work(block) for block in self._blocks]
        bounds = [place * len(self._blocks) // self._threads for place in range(self._threads + 1)]
        first, *others = [self._blocks[start:stop] for start, stop in pairwise(bounds)]

        def span(blocks: list[slice]) -> list[_BlockDone]:
            with np.errstate(over="ignore", invalid="ignore"):  # which is a thread's own
                return [work(block) for block in blocks]

        futures = [self._executor.submit(span, blocks) for blocks in others]
        done = span(first)
        return done + [part for future in futures for part in future.result()]
