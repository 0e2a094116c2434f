"""Activation functions and their derivatives, written into buffers that the caller owns.

Shapes: `z_KOB` is a layer's weighted input, `a_KOB` its activation, `g_KOB` a gradient, `scratch_KOB` memory to work in;
K slices, B rows of a slice, O units. The formulas are those of Goodfellow, Bengio and Courville, "Deep Learning",
chapter 6, unless said.
"""

from typing import ClassVar, Final, Protocol

import numpy as np

from worker.arrays import Floats

LEAKY_SLOPE: Final = 0.01
GELU_SCALE: Final = 0.7978845608028654  # sqrt(2 / pi)
GELU_CUBIC: Final = 0.044715
SMALL: Final = 4096


class Activation(Protocol):
    """A function applied to a layer's weighted inputs."""

    in_place: ClassVar[bool]
    """Whether `z` and `a` may be one buffer: true where the derivative can be worked out from `a` alone."""

    def apply(self, z_KOB: Floats, a_KOB: Floats, scratch_KOB: Floats) -> None:
        """Write f(z) into `a`."""

    def backward(self, z_KOB: Floats, a_KOB: Floats, g_KOB: Floats, scratch_KOB: Floats) -> None:
        """Turn the gradient with respect to `a` into the one with respect to `z`, in place. May overwrite `z`, if not `a`."""


class Identity:
    """f(z) = z."""

    in_place: ClassVar[bool] = True

    def apply(self, z_KOB: Floats, a_KOB: Floats, scratch_KOB: Floats) -> None:
        if a_KOB is not z_KOB:
            np.copyto(a_KOB, z_KOB)

    def backward(self, z_KOB: Floats, a_KOB: Floats, g_KOB: Floats, scratch_KOB: Floats) -> None:
        pass


class Sigmoid:
    """f(z) = 1 / (1 + e^-z), as (1 + tanh(z/2)) / 2 so that nothing overflows; f' = a (1 - a)."""

    in_place: ClassVar[bool] = True

    def apply(self, z_KOB: Floats, a_KOB: Floats, scratch_KOB: Floats) -> None:
        np.multiply(z_KOB, 0.5, out=a_KOB)
        np.tanh(a_KOB, out=a_KOB)
        np.multiply(a_KOB, 0.5, out=a_KOB)
        np.add(a_KOB, 0.5, out=a_KOB)

    def backward(self, z_KOB: Floats, a_KOB: Floats, g_KOB: Floats, scratch_KOB: Floats) -> None:
        np.subtract(1.0, a_KOB, out=scratch_KOB)
        np.multiply(scratch_KOB, a_KOB, out=scratch_KOB)
        np.multiply(g_KOB, scratch_KOB, out=g_KOB)


class Tanh:
    """f(z) = tanh(z); f' = 1 - a²."""

    in_place: ClassVar[bool] = True

    def apply(self, z_KOB: Floats, a_KOB: Floats, scratch_KOB: Floats) -> None:
        np.tanh(z_KOB, out=a_KOB)

    def backward(self, z_KOB: Floats, a_KOB: Floats, g_KOB: Floats, scratch_KOB: Floats) -> None:
        np.multiply(a_KOB, a_KOB, out=scratch_KOB)
        np.subtract(1.0, scratch_KOB, out=scratch_KOB)
        np.multiply(g_KOB, scratch_KOB, out=g_KOB)


class Relu:
    """f(z) = max(z, 0), with derivative 0 at 0."""

    in_place: ClassVar[bool] = True

    def apply(self, z_KOB: Floats, a_KOB: Floats, scratch_KOB: Floats) -> None:
        # A third of the time of np.maximum with a number, but for a few entries, where being called is what takes time. Which of
        # the two it is depends on one slice, since they differ in the sign of a zero.
        if z_KOB[0].size <= SMALL:
            np.maximum(z_KOB, 0.0, out=a_KOB)
        else:
            np.clip(z_KOB, 0.0, np.inf, out=a_KOB)

    def backward(self, z_KOB: Floats, a_KOB: Floats, g_KOB: Floats, scratch_KOB: Floats) -> None:
        np.greater(a_KOB, 0.0, out=scratch_KOB, casting="unsafe")
        np.multiply(g_KOB, scratch_KOB, out=g_KOB)


class LeakyRelu:
    """f(z) = max(z, slope·z) (Maas, Hannun and Ng, 2013), with derivative `slope` at 0."""

    in_place: ClassVar[bool] = False

    def apply(self, z_KOB: Floats, a_KOB: Floats, scratch_KOB: Floats) -> None:
        np.multiply(z_KOB, LEAKY_SLOPE, out=a_KOB)
        np.maximum(z_KOB, a_KOB, out=a_KOB)

    def backward(self, z_KOB: Floats, a_KOB: Floats, g_KOB: Floats, scratch_KOB: Floats) -> None:
        np.heaviside(z_KOB, 0.0, out=scratch_KOB)
        np.multiply(scratch_KOB, 1.0 - LEAKY_SLOPE, out=scratch_KOB)
        np.add(scratch_KOB, LEAKY_SLOPE, out=scratch_KOB)
        np.multiply(g_KOB, scratch_KOB, out=g_KOB)


class Gelu:
    """f(z) = ½ z (1 + tanh u) with u = sqrt(2/π) (z + 0.044715 z³): the tanh form of Hendrycks and Gimpel (2016)."""

    in_place: ClassVar[bool] = False

    def _u(self, z_KOB: Floats, out_KOB: Floats) -> None:
        np.multiply(z_KOB, z_KOB, out=out_KOB)
        np.multiply(out_KOB, GELU_CUBIC * GELU_SCALE, out=out_KOB)
        np.add(out_KOB, GELU_SCALE, out=out_KOB)
        np.multiply(out_KOB, z_KOB, out=out_KOB)

    def apply(self, z_KOB: Floats, a_KOB: Floats, scratch_KOB: Floats) -> None:
        self._u(z_KOB, scratch_KOB)
        np.tanh(scratch_KOB, out=scratch_KOB)
        np.add(scratch_KOB, 1.0, out=scratch_KOB)
        np.multiply(scratch_KOB, 0.5, out=scratch_KOB)
        np.multiply(scratch_KOB, z_KOB, out=a_KOB)

    def backward(self, z_KOB: Floats, a_KOB: Floats, g_KOB: Floats, scratch_KOB: Floats) -> None:
        # f' = ½ (1 + t) + ½ z (1 - t²) u', with t = tanh u and z u' = 3 u - 2 sqrt(2/π) z.
        self._u(z_KOB, scratch_KOB)
        np.multiply(z_KOB, -2.0 / 3.0 * GELU_SCALE, out=z_KOB)
        np.add(z_KOB, scratch_KOB, out=z_KOB)
        np.multiply(z_KOB, 3.0, out=z_KOB)  # z u'
        np.tanh(scratch_KOB, out=scratch_KOB)
        np.add(scratch_KOB, 1.0, out=scratch_KOB)  # 1 + t
        np.multiply(g_KOB, 0.5, out=g_KOB)
        np.multiply(g_KOB, scratch_KOB, out=g_KOB)  # ½ g (1 + t)
        np.subtract(2.0, scratch_KOB, out=scratch_KOB)  # 1 - t
        np.multiply(z_KOB, scratch_KOB, out=z_KOB)
        np.add(z_KOB, 1.0, out=z_KOB)  # 1 + z u' (1 - t)
        np.multiply(g_KOB, z_KOB, out=g_KOB)


class Softmax:
    """f(z)_i = e^z_i / Σ_j e^z_j over the units of a row. Leaves the log-probabilities behind in `z`."""

    in_place: ClassVar[bool] = False

    def apply(self, z_KOB: Floats, a_KOB: Floats, scratch_KOB: Floats) -> None:
        column_K1B = scratch_KOB[:, :1]
        np.maximum.reduce(z_KOB, axis=1, keepdims=True, out=column_K1B)
        np.subtract(z_KOB, column_K1B, out=z_KOB)
        np.exp(z_KOB, out=a_KOB)
        np.add.reduce(a_KOB, axis=1, keepdims=True, out=column_K1B)
        np.divide(a_KOB, column_K1B, out=a_KOB)
        np.log(column_K1B, out=column_K1B)
        np.subtract(z_KOB, column_K1B, out=z_KOB)

    def backward(self, z_KOB: Floats, a_KOB: Floats, g_KOB: Floats, scratch_KOB: Floats) -> None:
        # The Jacobian is diag(a) - a aᵀ, so g becomes a (g - Σ_j g_j a_j).
        np.multiply(g_KOB, a_KOB, out=scratch_KOB)
        along_K1B = np.add.reduce(scratch_KOB, axis=1, keepdims=True)
        np.subtract(g_KOB, along_K1B, out=g_KOB)
        np.multiply(g_KOB, a_KOB, out=g_KOB)


ACTIVATIONS: Final[dict[str, Activation]] = {
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "relu": Relu(),
    "leaky_relu": LeakyRelu(),
    "gelu": Gelu(),
    "identity": Identity(),
    "softmax": Softmax(),
}
