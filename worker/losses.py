"""Losses, and what joins them to the output layer: the error of a slice and its gradient at the last weighted input.

Shapes: `z_KOB` weighted input of the output layer, `a_KOB` its activation, `t_KOB` targets, `d_KOB` gradient, `w_K1B` weights of
the rows, if they have any; K slices, B rows of a slice, O outputs. All losses are sums over a slice's rows and outputs; the mean
is taken once, by whoever has the rows' weight.
"""

from typing import ClassVar, Final, Protocol

import numpy as np

from worker.activations import ACTIVATIONS, Activation
from worker.arrays import Floats, totals

LOG_FLOOR: Final = -100.0
PRODUCT_FLOOR: Final = 1e-12


class Loss(Protocol):
    """An error between activations and targets."""

    def value(self, a_KOB: Floats, t_KOB: Floats, scratch_KOB: Floats, w_K1B: Floats | None) -> Floats:
        """Return the loss of each slice (K,), summed over rows and outputs in float64, each row times its weight if any."""

    def gradient(self, a_KOB: Floats, t_KOB: Floats, d_KOB: Floats, scratch_KOB: Floats) -> None:
        """Write dloss/da into `d`."""


class SquaredError:
    """½ Σ (a - t)²."""

    def value(self, a_KOB: Floats, t_KOB: Floats, scratch_KOB: Floats, w_K1B: Floats | None) -> Floats:
        np.subtract(a_KOB, t_KOB, out=scratch_KOB)
        np.multiply(scratch_KOB, scratch_KOB, out=scratch_KOB)
        return 0.5 * totals(scratch_KOB, w_K1B)

    def gradient(self, a_KOB: Floats, t_KOB: Floats, d_KOB: Floats, scratch_KOB: Floats) -> None:
        np.subtract(a_KOB, t_KOB, out=d_KOB)


class AbsoluteError:
    """Σ |a - t|, with derivative 0 where a = t."""

    def value(self, a_KOB: Floats, t_KOB: Floats, scratch_KOB: Floats, w_K1B: Floats | None) -> Floats:
        np.subtract(a_KOB, t_KOB, out=scratch_KOB)
        np.abs(scratch_KOB, out=scratch_KOB)
        return totals(scratch_KOB, w_K1B)

    def gradient(self, a_KOB: Floats, t_KOB: Floats, d_KOB: Floats, scratch_KOB: Floats) -> None:
        np.subtract(a_KOB, t_KOB, out=d_KOB)
        np.sign(d_KOB, out=d_KOB)


class Huber:
    """½ e² where |e| ≤ δ, else δ (|e| - ½ δ), with e = a - t (Huber, 1964)."""

    def __init__(self, delta: float) -> None:
        self._delta = delta

    def value(self, a_KOB: Floats, t_KOB: Floats, scratch_KOB: Floats, w_K1B: Floats | None) -> Floats:
        # With c = min(|e|, δ), each term is ½ c² + δ (|e| - c): sums, so that one buffer is enough.
        np.subtract(a_KOB, t_KOB, out=scratch_KOB)
        np.abs(scratch_KOB, out=scratch_KOB)
        sizes = totals(scratch_KOB, w_K1B)
        np.minimum(scratch_KOB, self._delta, out=scratch_KOB)
        clipped = totals(scratch_KOB, w_K1B)
        np.multiply(scratch_KOB, scratch_KOB, out=scratch_KOB)
        return 0.5 * totals(scratch_KOB, w_K1B) + self._delta * (sizes - clipped)

    def gradient(self, a_KOB: Floats, t_KOB: Floats, d_KOB: Floats, scratch_KOB: Floats) -> None:
        np.subtract(a_KOB, t_KOB, out=d_KOB)
        np.clip(d_KOB, -self._delta, self._delta, out=d_KOB)


class BinaryCrossEntropy:
    """-Σ [t log a + (1 - t) log(1 - a)], each logarithm held at -100 or above.

    For activations that were not fused with it; the floors are PyTorch's.
    """

    def value(self, a_KOB: Floats, t_KOB: Floats, scratch_KOB: Floats, w_K1B: Floats | None) -> Floats:
        with np.errstate(divide="ignore"):
            np.log(a_KOB, out=scratch_KOB)
            np.maximum(scratch_KOB, LOG_FLOOR, out=scratch_KOB)
            np.multiply(scratch_KOB, t_KOB, out=scratch_KOB)
            positive = totals(scratch_KOB, w_K1B)
            np.negative(a_KOB, out=scratch_KOB)
            np.log1p(scratch_KOB, out=scratch_KOB)
            np.maximum(scratch_KOB, LOG_FLOOR, out=scratch_KOB)
        negative = totals(scratch_KOB, w_K1B)
        np.multiply(scratch_KOB, t_KOB, out=scratch_KOB)
        return 0.0 - (positive + negative - totals(scratch_KOB, w_K1B))

    def gradient(self, a_KOB: Floats, t_KOB: Floats, d_KOB: Floats, scratch_KOB: Floats) -> None:
        np.subtract(1.0, a_KOB, out=scratch_KOB)
        np.multiply(scratch_KOB, a_KOB, out=scratch_KOB)
        np.maximum(scratch_KOB, PRODUCT_FLOOR, out=scratch_KOB)
        np.subtract(a_KOB, t_KOB, out=d_KOB)
        np.divide(d_KOB, scratch_KOB, out=d_KOB)


class Head(Protocol):
    """The output activation together with the loss."""

    @property
    def activation(self) -> Activation:
        """The output activation."""

    def loss(self, z_KOB: Floats, a_KOB: Floats, t_KOB: Floats, scratch_KOB: Floats, w_K1B: Floats | None) -> Floats:
        """Return the loss of each slice (K,), as `Loss.value` does. `z` and `a` are as `activation.apply` left them."""

    def delta(self, z_KOB: Floats, a_KOB: Floats, t_KOB: Floats, d_KOB: Floats, scratch_KOB: Floats) -> None:
        """Write dloss/dz into `d`. May overwrite `z`; leaves `a`."""


class ChainedHead:
    """Any activation with any loss, by the chain rule."""

    def __init__(self, activation: Activation, loss: Loss) -> None:
        """Join the two."""
        self.activation = activation
        self._loss = loss

    def loss(self, z_KOB: Floats, a_KOB: Floats, t_KOB: Floats, scratch_KOB: Floats, w_K1B: Floats | None) -> Floats:
        return self._loss.value(a_KOB, t_KOB, scratch_KOB, w_K1B)

    def delta(self, z_KOB: Floats, a_KOB: Floats, t_KOB: Floats, d_KOB: Floats, scratch_KOB: Floats) -> None:
        self._loss.gradient(a_KOB, t_KOB, d_KOB, scratch_KOB)
        self.activation.backward(z_KOB, a_KOB, d_KOB, scratch_KOB)


class SoftmaxCrossEntropy:
    """-Σ t log softmax(z), from log-probabilities, so that no logit is too large; dloss/dz = a Σt - t, with Σt = 1."""

    activation: ClassVar[Activation] = ACTIVATIONS["softmax"]

    def loss(self, z_KOB: Floats, a_KOB: Floats, t_KOB: Floats, scratch_KOB: Floats, w_K1B: Floats | None) -> Floats:
        np.multiply(z_KOB, t_KOB, out=scratch_KOB)
        return 0.0 - totals(scratch_KOB, w_K1B)  # and never -0

    def delta(self, z_KOB: Floats, a_KOB: Floats, t_KOB: Floats, d_KOB: Floats, scratch_KOB: Floats) -> None:
        np.subtract(a_KOB, t_KOB, out=d_KOB)


def log1p_exp_minus_abs(z_KOB: Floats, out_KOB: Floats) -> None:
    """Write log(1 + e^-|z|), the part of softplus that never overflows."""
    np.abs(z_KOB, out=out_KOB)
    np.negative(out_KOB, out=out_KOB)
    np.exp(out_KOB, out=out_KOB)
    np.log1p(out_KOB, out=out_KOB)


class SigmoidBinaryCrossEntropy:
    """-Σ [t log σ(z) + (1 - t) log(1 - σ(z))] = Σ max(z, 0) - t z + log1p(e^-|z|); dloss/dz = a - t."""

    activation: ClassVar[Activation] = ACTIVATIONS["sigmoid"]

    def loss(self, z_KOB: Floats, a_KOB: Floats, t_KOB: Floats, scratch_KOB: Floats, w_K1B: Floats | None) -> Floats:
        np.heaviside(z_KOB, 0.0, out=scratch_KOB)
        np.subtract(scratch_KOB, t_KOB, out=scratch_KOB)
        np.multiply(scratch_KOB, z_KOB, out=scratch_KOB)
        linear = totals(scratch_KOB, w_K1B)
        log1p_exp_minus_abs(z_KOB, scratch_KOB)
        return linear + totals(scratch_KOB, w_K1B)

    def delta(self, z_KOB: Floats, a_KOB: Floats, t_KOB: Floats, d_KOB: Floats, scratch_KOB: Floats) -> None:
        np.subtract(a_KOB, t_KOB, out=d_KOB)


class SigmoidCrossEntropy:
    """-Σ t log σ(z) = Σ t [max(-z, 0) + log1p(e^-|z|)], for targets t ≥ 0; dloss/dz = t (a - 1)."""

    activation: ClassVar[Activation] = ACTIVATIONS["sigmoid"]

    def loss(self, z_KOB: Floats, a_KOB: Floats, t_KOB: Floats, scratch_KOB: Floats, w_K1B: Floats | None) -> Floats:
        np.multiply(z_KOB, t_KOB, out=scratch_KOB)
        np.minimum(scratch_KOB, 0.0, out=scratch_KOB)
        linear = -totals(scratch_KOB, w_K1B)
        log1p_exp_minus_abs(z_KOB, scratch_KOB)
        np.multiply(scratch_KOB, t_KOB, out=scratch_KOB)
        return linear + totals(scratch_KOB, w_K1B)

    def delta(self, z_KOB: Floats, a_KOB: Floats, t_KOB: Floats, d_KOB: Floats, scratch_KOB: Floats) -> None:
        np.subtract(a_KOB, 1.0, out=d_KOB)
        np.multiply(d_KOB, t_KOB, out=d_KOB)


def make_head(output: str, loss: str, huber_delta: float) -> Head:
    """Return the head for a pairing that `ModelSpec` has let through."""
    match output, loss:
        case "softmax", "cross_entropy":
            return SoftmaxCrossEntropy()
        case "sigmoid", "cross_entropy":
            return SigmoidCrossEntropy()
        case "sigmoid", "binary_cross_entropy":
            return SigmoidBinaryCrossEntropy()
    chained: dict[str, Loss] = {
        "squared_error": SquaredError(),
        "absolute_error": AbsoluteError(),
        "huber": Huber(huber_delta),
        "binary_cross_entropy": BinaryCrossEntropy(),
    }
    return ChainedHead(ACTIVATIONS[output], chained[loss])
