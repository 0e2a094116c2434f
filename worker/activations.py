"""Activation functions and their derivatives, written into buffers that the caller owns.

Shapes: `z_BO` is a layer's weighted input, `a_BO` its activation, `g_BO` a gradient, `scratch_BO` memory to work in;
B rows, O units. The formulas are those of Goodfellow, Bengio and Courville, "Deep Learning", chapter 6, unless said.
"""

from typing import ClassVar, Final, Protocol

import numpy as np

from worker.arrays import Floats

LEAKY_SLOPE: Final = 0.01
GELU_SCALE: Final = 0.7978845608028654  # sqrt(2 / pi)
GELU_CUBIC: Final = 0.044715


class Activation(Protocol):
    """A function applied to a layer's weighted inputs."""

    in_place: ClassVar[bool]
    """Whether `z` and `a` may be one buffer: true where the derivative can be worked out from `a` alone."""

    def apply(self, z_BO: Floats, a_BO: Floats, scratch_BO: Floats) -> None:
        """Write f(z) into `a`."""

    def backward(self, z_BO: Floats, a_BO: Floats, g_BO: Floats, scratch_BO: Floats) -> None:
        """Turn the gradient with respect to `a` into the one with respect to `z`, in place."""


class Identity:
    """f(z) = z."""

    in_place: ClassVar[bool] = True

    def apply(self, z_BO: Floats, a_BO: Floats, scratch_BO: Floats) -> None:
        if a_BO is not z_BO:
            np.copyto(a_BO, z_BO)

    def backward(self, z_BO: Floats, a_BO: Floats, g_BO: Floats, scratch_BO: Floats) -> None:
        pass


class Sigmoid:
    """f(z) = 1 / (1 + e^-z), as (1 + tanh(z/2)) / 2 so that nothing overflows; f' = a (1 - a)."""

    in_place: ClassVar[bool] = True

    def apply(self, z_BO: Floats, a_BO: Floats, scratch_BO: Floats) -> None:
        np.multiply(z_BO, 0.5, out=a_BO)
        np.tanh(a_BO, out=a_BO)
        np.multiply(a_BO, 0.5, out=a_BO)
        np.add(a_BO, 0.5, out=a_BO)

    def backward(self, z_BO: Floats, a_BO: Floats, g_BO: Floats, scratch_BO: Floats) -> None:
        np.subtract(1.0, a_BO, out=scratch_BO)
        np.multiply(scratch_BO, a_BO, out=scratch_BO)
        np.multiply(g_BO, scratch_BO, out=g_BO)


class Tanh:
    """f(z) = tanh(z); f' = 1 - a²."""

    in_place: ClassVar[bool] = True

    def apply(self, z_BO: Floats, a_BO: Floats, scratch_BO: Floats) -> None:
        np.tanh(z_BO, out=a_BO)

    def backward(self, z_BO: Floats, a_BO: Floats, g_BO: Floats, scratch_BO: Floats) -> None:
        np.multiply(a_BO, a_BO, out=scratch_BO)
        np.subtract(1.0, scratch_BO, out=scratch_BO)
        np.multiply(g_BO, scratch_BO, out=g_BO)


class Relu:
    """f(z) = max(z, 0), with derivative 0 at 0."""

    in_place: ClassVar[bool] = True

    def apply(self, z_BO: Floats, a_BO: Floats, scratch_BO: Floats) -> None:
        np.maximum(z_BO, 0.0, out=a_BO)

    def backward(self, z_BO: Floats, a_BO: Floats, g_BO: Floats, scratch_BO: Floats) -> None:
        np.sign(a_BO, out=scratch_BO)  # a >= 0, so its sign is the derivative
        np.multiply(g_BO, scratch_BO, out=g_BO)


class LeakyRelu:
    """f(z) = max(z, slope·z) (Maas, Hannun and Ng, 2013), with derivative `slope` at 0."""

    in_place: ClassVar[bool] = False

    def apply(self, z_BO: Floats, a_BO: Floats, scratch_BO: Floats) -> None:
        np.multiply(z_BO, LEAKY_SLOPE, out=a_BO)
        np.maximum(z_BO, a_BO, out=a_BO)

    def backward(self, z_BO: Floats, a_BO: Floats, g_BO: Floats, scratch_BO: Floats) -> None:
        np.heaviside(z_BO, 0.0, out=scratch_BO)
        np.multiply(scratch_BO, 1.0 - LEAKY_SLOPE, out=scratch_BO)
        np.add(scratch_BO, LEAKY_SLOPE, out=scratch_BO)
        np.multiply(g_BO, scratch_BO, out=g_BO)


class Gelu:
    """f(z) = ½ z (1 + tanh u) with u = sqrt(2/π) (z + 0.044715 z³): the tanh form of Hendrycks and Gimpel (2016)."""

    in_place: ClassVar[bool] = False

    def _tanh_u(self, z_BO: Floats, out_BO: Floats) -> None:
        np.multiply(z_BO, z_BO, out=out_BO)
        np.multiply(out_BO, GELU_CUBIC * GELU_SCALE, out=out_BO)
        np.add(out_BO, GELU_SCALE, out=out_BO)
        np.multiply(out_BO, z_BO, out=out_BO)
        np.tanh(out_BO, out=out_BO)

    def apply(self, z_BO: Floats, a_BO: Floats, scratch_BO: Floats) -> None:
        self._tanh_u(z_BO, scratch_BO)
        np.add(scratch_BO, 1.0, out=scratch_BO)
        np.multiply(scratch_BO, 0.5, out=scratch_BO)
        np.multiply(scratch_BO, z_BO, out=a_BO)

    def backward(self, z_BO: Floats, a_BO: Floats, g_BO: Floats, scratch_BO: Floats) -> None:
        # f' = ½ (1 + t) + ½ z (1 - t²) u'. `a` is not needed any more, so it serves as the second scratch buffer.
        self._tanh_u(z_BO, scratch_BO)
        np.multiply(z_BO, z_BO, out=a_BO)
        np.multiply(a_BO, 3.0 * GELU_CUBIC * GELU_SCALE, out=a_BO)
        np.add(a_BO, GELU_SCALE, out=a_BO)
        np.multiply(a_BO, z_BO, out=a_BO)  # z u'
        np.add(scratch_BO, 1.0, out=scratch_BO)  # 1 + t
        np.multiply(g_BO, 0.5, out=g_BO)
        np.multiply(g_BO, scratch_BO, out=g_BO)  # ½ g (1 + t)
        np.subtract(2.0, scratch_BO, out=scratch_BO)  # 1 - t
        np.multiply(a_BO, scratch_BO, out=a_BO)
        np.add(a_BO, 1.0, out=a_BO)  # 1 + z u' (1 - t)
        np.multiply(g_BO, a_BO, out=g_BO)


class Softmax:
    """f(z)_i = e^z_i / Σ_j e^z_j over the units of a row. Leaves the log-probabilities behind in `z`."""

    in_place: ClassVar[bool] = False

    def apply(self, z_BO: Floats, a_BO: Floats, scratch_BO: Floats) -> None:
        column_B1 = scratch_BO[:, :1]
        np.maximum.reduce(z_BO, axis=1, keepdims=True, out=column_B1)
        np.subtract(z_BO, column_B1, out=z_BO)
        np.exp(z_BO, out=a_BO)
        np.add.reduce(a_BO, axis=1, keepdims=True, out=column_B1)
        np.divide(a_BO, column_B1, out=a_BO)
        np.log(column_B1, out=column_B1)
        np.subtract(z_BO, column_B1, out=z_BO)

    def backward(self, z_BO: Floats, a_BO: Floats, g_BO: Floats, scratch_BO: Floats) -> None:
        # The Jacobian is diag(a) - a aᵀ, so g becomes a (g - Σ_j g_j a_j).
        np.einsum("bo,bo->b", g_BO, a_BO, out=scratch_BO[:, 0])
        np.subtract(g_BO, scratch_BO[:, :1], out=g_BO)
        np.multiply(g_BO, a_BO, out=g_BO)


ACTIVATIONS: Final[dict[str, Activation]] = {
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "relu": Relu(),
    "leaky_relu": LeakyRelu(),
    "gelu": Gelu(),
    "identity": Identity(),
    "softmax": Softmax(),
}
