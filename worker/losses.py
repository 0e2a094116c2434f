"""Losses, and what joins them to the output layer: the error of a slice and its gradient at the last weighted input.

Shapes: `z_BO` weighted input of the output layer, `a_BO` its activation, `t_BO` targets, `d_BO` gradient; B rows, O outputs.
All losses are sums over rows and outputs; the mean is taken once, by whoever has the row count.
"""

from typing import ClassVar, Final, Protocol

import numpy as np

from worker.activations import ACTIVATIONS, Activation
from worker.arrays import Floats, total

LOG_FLOOR: Final = -100.0
PRODUCT_FLOOR: Final = 1e-12


class Loss(Protocol):
    """An error between activations and targets."""

    def value(self, a_BO: Floats, t_BO: Floats, scratch_BO: Floats) -> float:
        """Return the sum of the loss over rows and outputs, in float64."""

    def gradient(self, a_BO: Floats, t_BO: Floats, d_BO: Floats, scratch_BO: Floats) -> None:
        """Write dloss/da into `d`."""


class SquaredError:
    """½ Σ (a - t)²."""

    def value(self, a_BO: Floats, t_BO: Floats, scratch_BO: Floats) -> float:
        np.subtract(a_BO, t_BO, out=scratch_BO)
        np.multiply(scratch_BO, scratch_BO, out=scratch_BO)
        return 0.5 * total(scratch_BO)

    def gradient(self, a_BO: Floats, t_BO: Floats, d_BO: Floats, scratch_BO: Floats) -> None:
        np.subtract(a_BO, t_BO, out=d_BO)


class AbsoluteError:
    """Σ |a - t|, with derivative 0 where a = t."""

    def value(self, a_BO: Floats, t_BO: Floats, scratch_BO: Floats) -> float:
        np.subtract(a_BO, t_BO, out=scratch_BO)
        np.abs(scratch_BO, out=scratch_BO)
        return total(scratch_BO)

    def gradient(self, a_BO: Floats, t_BO: Floats, d_BO: Floats, scratch_BO: Floats) -> None:
        np.subtract(a_BO, t_BO, out=d_BO)
        np.sign(d_BO, out=d_BO)


class Huber:
    """½ e² where |e| ≤ δ, else δ (|e| - ½ δ), with e = a - t (Huber, 1964)."""

    def __init__(self, delta: float) -> None:
        self._delta = delta

    def value(self, a_BO: Floats, t_BO: Floats, scratch_BO: Floats) -> float:
        # With c = min(|e|, δ), each term is ½ c² + δ (|e| - c): sums, so that one buffer is enough.
        np.subtract(a_BO, t_BO, out=scratch_BO)
        np.abs(scratch_BO, out=scratch_BO)
        sizes = total(scratch_BO)
        np.minimum(scratch_BO, self._delta, out=scratch_BO)
        clipped = total(scratch_BO)
        np.multiply(scratch_BO, scratch_BO, out=scratch_BO)
        return 0.5 * total(scratch_BO) + self._delta * (sizes - clipped)

    def gradient(self, a_BO: Floats, t_BO: Floats, d_BO: Floats, scratch_BO: Floats) -> None:
        np.subtract(a_BO, t_BO, out=d_BO)
        np.clip(d_BO, -self._delta, self._delta, out=d_BO)


class BinaryCrossEntropy:
    """-Σ [t log a + (1 - t) log(1 - a)], each logarithm held at -100 or above.

    For activations that were not fused with it; the floors are PyTorch's.
    """

    def value(self, a_BO: Floats, t_BO: Floats, scratch_BO: Floats) -> float:
        with np.errstate(divide="ignore"):
            np.log(a_BO, out=scratch_BO)
            np.maximum(scratch_BO, LOG_FLOOR, out=scratch_BO)
            np.multiply(scratch_BO, t_BO, out=scratch_BO)
            positive = total(scratch_BO)
            np.negative(a_BO, out=scratch_BO)
            np.log1p(scratch_BO, out=scratch_BO)
            np.maximum(scratch_BO, LOG_FLOOR, out=scratch_BO)
        negative = total(scratch_BO)
        np.multiply(scratch_BO, t_BO, out=scratch_BO)
        return -(positive + negative - total(scratch_BO))

    def gradient(self, a_BO: Floats, t_BO: Floats, d_BO: Floats, scratch_BO: Floats) -> None:
        np.subtract(1.0, a_BO, out=scratch_BO)
        np.multiply(scratch_BO, a_BO, out=scratch_BO)
        np.maximum(scratch_BO, PRODUCT_FLOOR, out=scratch_BO)
        np.subtract(a_BO, t_BO, out=d_BO)
        np.divide(d_BO, scratch_BO, out=d_BO)


class Head(Protocol):
    """The output activation together with the loss."""

    @property
    def activation(self) -> Activation:
        """The output activation."""

    def loss(self, z_BO: Floats, a_BO: Floats, t_BO: Floats, scratch_BO: Floats) -> float:
        """Return the loss summed over rows and outputs. `z` and `a` are as `activation.apply` left them."""

    def delta(self, z_BO: Floats, a_BO: Floats, t_BO: Floats, d_BO: Floats, scratch_BO: Floats) -> None:
        """Write dloss/dz into `d`. May overwrite `z`; leaves `a`."""


class ChainedHead:
    """Any activation with any loss, by the chain rule."""

    def __init__(self, activation: Activation, loss: Loss) -> None:
        """Join the two."""
        self.activation = activation
        self._loss = loss

    def loss(self, z_BO: Floats, a_BO: Floats, t_BO: Floats, scratch_BO: Floats) -> float:
        return self._loss.value(a_BO, t_BO, scratch_BO)

    def delta(self, z_BO: Floats, a_BO: Floats, t_BO: Floats, d_BO: Floats, scratch_BO: Floats) -> None:
        self._loss.gradient(a_BO, t_BO, d_BO, scratch_BO)
        self.activation.backward(z_BO, a_BO, d_BO, scratch_BO)


class SoftmaxCrossEntropy:
    """-Σ t log softmax(z), from log-probabilities, so that no logit is too large; dloss/dz = a Σt - t, with Σt = 1."""

    activation: ClassVar[Activation] = ACTIVATIONS["softmax"]

    def loss(self, z_BO: Floats, a_BO: Floats, t_BO: Floats, scratch_BO: Floats) -> float:
        np.multiply(z_BO, t_BO, out=scratch_BO)
        return -total(scratch_BO)

    def delta(self, z_BO: Floats, a_BO: Floats, t_BO: Floats, d_BO: Floats, scratch_BO: Floats) -> None:
        np.subtract(a_BO, t_BO, out=d_BO)


def log1p_exp_minus_abs(z_BO: Floats, out_BO: Floats) -> None:
    """Write log(1 + e^-|z|), the part of softplus that never overflows."""
    np.abs(z_BO, out=out_BO)
    np.negative(out_BO, out=out_BO)
    np.exp(out_BO, out=out_BO)
    np.log1p(out_BO, out=out_BO)


class SigmoidBinaryCrossEntropy:
    """-Σ [t log σ(z) + (1 - t) log(1 - σ(z))] = Σ max(z, 0) - t z + log1p(e^-|z|); dloss/dz = a - t."""

    activation: ClassVar[Activation] = ACTIVATIONS["sigmoid"]

    def loss(self, z_BO: Floats, a_BO: Floats, t_BO: Floats, scratch_BO: Floats) -> float:
        np.heaviside(z_BO, 0.0, out=scratch_BO)
        np.subtract(scratch_BO, t_BO, out=scratch_BO)
        np.multiply(scratch_BO, z_BO, out=scratch_BO)
        linear = total(scratch_BO)
        log1p_exp_minus_abs(z_BO, scratch_BO)
        return linear + total(scratch_BO)

    def delta(self, z_BO: Floats, a_BO: Floats, t_BO: Floats, d_BO: Floats, scratch_BO: Floats) -> None:
        np.subtract(a_BO, t_BO, out=d_BO)


class SigmoidCrossEntropy:
    """-Σ t log σ(z) = Σ t [max(-z, 0) + log1p(e^-|z|)], for targets t ≥ 0; dloss/dz = t (a - 1)."""

    activation: ClassVar[Activation] = ACTIVATIONS["sigmoid"]

    def loss(self, z_BO: Floats, a_BO: Floats, t_BO: Floats, scratch_BO: Floats) -> float:
        np.multiply(z_BO, t_BO, out=scratch_BO)
        np.minimum(scratch_BO, 0.0, out=scratch_BO)
        linear = -total(scratch_BO)
        log1p_exp_minus_abs(z_BO, scratch_BO)
        np.multiply(scratch_BO, t_BO, out=scratch_BO)
        return linear + total(scratch_BO)

    def delta(self, z_BO: Floats, a_BO: Floats, t_BO: Floats, d_BO: Floats, scratch_BO: Floats) -> None:
        np.subtract(a_BO, 1.0, out=d_BO)
        np.multiply(d_BO, t_BO, out=d_BO)


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
