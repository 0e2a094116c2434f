"""From a round's gradient sum to new weights: divide once, regularise, clip, and apply the optimizer in blocks."""

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Final

import numpy as np

from coordinator.optimizers import OptimizerSpec, Step, Transform, make_optimizer
from worker.arrays import Floats, sum_of_squares
from worker.model import Layout, ModelSpec

BLOCK: Final = 32768
"""Entries updated at once: few enough that a block and its temporaries stay in the cache."""


@dataclass(frozen=True)
class Parameters:
    """The weights and what the optimizer remembers of them; replaced, never changed, by an update."""

    weights_P: Floats
    optimizer: dict[str, Floats]


@dataclass(frozen=True)
class Updated:
    """The round's new parameters, with the norm of the gradient before clipping."""

    parameters: Parameters
    gradient_norm: float


@dataclass(frozen=True)
class Refused:
    """The update was not applied, because the gradient or the new weights are not finite."""

    reason: str


def gradient_norm(gradient_P: Floats) -> float:
    """Return the Euclidean norm; not finite where the gradient is not."""
    squares = sum_of_squares(gradient_P)
    return sqrt(squares) if squares >= 0 else float("nan")


def clip_factor(norm: float, most: float | None) -> float:
    """Return what scales a gradient of this norm down to `most` (Pascanu et al., 2013, with PyTorch's 1e-6)."""
    return 1.0 if most is None else min(1.0, most / (norm + 1e-6))


class Updater:
    """Applies one job's optimizer."""

    def __init__(self, optimizer: OptimizerSpec, model: ModelSpec, layout: Layout) -> None:
        """Build the optimizer for parameters of this layout."""
        self._clip_norm = optimizer.clip_norm
        self._transform: Transform = make_optimizer(optimizer)
        self._l2 = model.l2
        self._weights = [slice(slot.offset, slot.offset + slot.size) for slot in layout.slots if slot.is_weight]

    def start(self, weights_P: Floats) -> Parameters:
        """Return the parameters before the first round."""
        return Parameters(weights_P, dict(self._transform.init(weights_P)))

    def update(self, parameters: Parameters, gradient_sum_P: Floats, rows: int, step: Step) -> Updated | Refused:
        """Return the parameters after a round whose per-row gradients sum to `gradient_sum_P`."""
        with np.errstate(over="ignore", invalid="ignore"):
            gradient_P = gradient_sum_P / rows
            for weights in self._weights if self._l2 else ():
                gradient_P[weights] += self._l2 * parameters.weights_P[weights]
            norm = gradient_norm(gradient_P)
            if not isfinite(norm):
                return Refused("the gradient is not finite")
            factor = clip_factor(norm, self._clip_norm)
            if factor < 1.0:
                np.multiply(gradient_P, factor, out=gradient_P)
            updated = self._apply(parameters, gradient_P, step)
        if not np.isfinite(updated.weights_P).all():
            return Refused("the updated weights are not finite")
        return Updated(updated, norm)

    def _apply(self, parameters: Parameters, gradient_P: Floats, step: Step) -> Parameters:
        new = Parameters(
            np.empty_like(parameters.weights_P), {name: np.empty_like(array) for name, array in parameters.optimizer.items()}
        )
        for start in range(0, len(gradient_P), BLOCK):
            block = slice(start, start + BLOCK)
            state = {name: array[block] for name, array in parameters.optimizer.items()}
            updates, state_after = self._transform.update(gradient_P[block], state, parameters.weights_P[block], step)
            np.add(parameters.weights_P[block], updates, out=new.weights_P[block])
            for name, array in state_after.items():
                new.optimizer[name][block] = array
        return new
