"""The network forward and backward: gradient sums of a slice, by the chain rule.

Shapes: B rows of a slice, I inputs, O outputs of a layer, P parameters. `x` inputs, `z` weighted inputs, `a` activations,
`t` targets, `d` the gradient of the loss with respect to z ("delta"). See Goodfellow et al., "Deep Learning", algorithms
6.3 and 6.4, or Nielsen, "Neural Networks and Deep Learning", equations BP1 to BP4.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Self

import numpy as np

from worker.activations import ACTIVATIONS
from worker.arrays import Floats, Integers, sum_of_squares, total
from worker.losses import make_head
from worker.model import Layout, ModelSpec


@dataclass(frozen=True)
class ErrorSums:
    """Errors summed over rows (loss also over outputs), to be divided once by whoever reports them.

    Attributes:
        rows: rows that were summed.
        outputs: outputs a row has.
        loss: sum of the loss.
        absolute: sum of |a - t| over rows and outputs.
        squared: sum of (a - t)² over rows and outputs.
        wrong: rows classified wrongly; None for regressions.
    """

    rows: int
    outputs: int
    loss: float
    absolute: float
    squared: float
    wrong: int | None

    @property
    def finite(self) -> bool:
        """Whether no sum has overflowed or become undefined."""
        return isfinite(self.loss) and isfinite(self.absolute) and isfinite(self.squared)

    def __add__(self, other: Self) -> "ErrorSums":
        """Return the sums over both sets of rows."""
        wrong = None if self.wrong is None or other.wrong is None else self.wrong + other.wrong
        return ErrorSums(
            self.rows + other.rows,
            self.outputs,
            self.loss + other.loss,
            self.absolute + other.absolute,
            self.squared + other.squared,
            wrong,
        )


@dataclass(frozen=True)
class GradientSum:
    """The sum, never the mean, of per-row gradients, with the error sums of the same rows."""

    gradient_P: Floats
    errors: ErrorSums


class _Layer:
    """Buffers of one layer for up to `rows` rows, reused from slice to slice."""

    def __init__(self, rows: int, units: int, dtype: str, *, in_place: bool, dropout: bool) -> None:
        self.z_BO = np.empty((rows, units), dtype)
        self.a_BO = self.z_BO if in_place else np.empty((rows, units), dtype)
        self.d_BO = np.empty((rows, units), dtype)
        self.scratch_BO = np.empty((rows, units), dtype)
        # What the layer above reads: a derivative needs the activation as it was before units were dropped.
        self.out_BO = np.empty((rows, units), dtype) if dropout else self.a_BO
        self.keep_BO = np.empty((rows, units), dtype) if dropout else None

    def first(self, rows: int) -> "_Layer":
        """Return the same buffers cut to their first rows; buffers that were one stay one."""
        part = object.__new__(_Layer)
        cut = {id(buffer): buffer[:rows] for buffer in vars(self).values() if buffer is not None}
        for name, buffer in vars(self).items():
            setattr(part, name, None if buffer is None else cut[id(buffer)])
        return part


class Network:
    """A dense network of one shape, with its buffers. Not for use by several threads at once.

    Attributes:
        layout: where each parameter lies in the flat vectors that the methods take.
    """

    def __init__(self, spec: ModelSpec, inputs: int, outputs: int) -> None:
        """Shape the network for rows of `inputs` values and `outputs` results. Raises JobError as `check_outputs` does."""
        spec.check_outputs(outputs)
        self.spec = spec
        self.layout = Layout((inputs, *spec.hidden, outputs), bias=spec.bias)
        self._hidden = ACTIVATIONS[spec.activation]
        self._head = make_head(spec.output_name, spec.loss_name, spec.huber_delta)
        self._capacity = 0
        self._buffers: list[_Layer] = []
        self._cut: dict[int, list[_Layer]] = {}

    @property
    def inputs(self) -> int:
        """Values of a row, I."""
        return self.layout.sizes[0]

    @property
    def outputs(self) -> int:
        """Results of a row, O."""
        return self.layout.sizes[-1]

    def predict(self, weights_P: Floats, x_BI: Floats) -> Floats:
        """Return the outputs (B, O) for the rows, in a buffer that the next call overwrites."""
        layers = self._layers(len(x_BI))
        self._forward(self.layout.views(weights_P), layers, x_BI, None)
        return layers[-1].a_BO

    def errors(self, weights_P: Floats, x_BI: Floats, t_BO: Floats) -> ErrorSums:
        """Return the error sums of the rows, without any dropout."""
        layers = self._layers(len(x_BI))
        self._forward(self.layout.views(weights_P), layers, x_BI, None)
        return self._error_sums(layers[-1], t_BO)

    def gradient_sum(
        self,
        weights_P: Floats,
        x_BI: Floats,
        t_BO: Floats,
        gradient_P: Floats,
        dropout: np.random.Generator | None = None,
    ) -> ErrorSums:
        """Write the sum over rows of the loss's gradient into `gradient_P` and return the error sums.

        Args:
            weights_P: parameters.
            x_BI: rows.
            t_BO: targets; for classes, one 1 a row.
            gradient_P: overwritten.
            dropout: draws the units to drop; None drops none.
        """
        weights, gradients = self.layout.views(weights_P), self.layout.views(gradient_P)
        layers = self._layers(len(x_BI))
        self._forward(weights, layers, x_BI, dropout)
        top = layers[-1]
        errors = self._error_sums(top, t_BO)
        self._head.delta(top.z_BO, top.a_BO, t_BO, top.d_BO, top.scratch_BO)
        for number in range(len(layers) - 1, -1, -1):
            layer = layers[number]
            below = self._output(layers[number - 1], dropout) if number else x_BI
            np.matmul(layer.d_BO.T, below, out=gradients[f"layers.{number}.weight"])
            if self.layout.bias:
                np.add.reduce(layer.d_BO, axis=0, out=gradients[f"layers.{number}.bias"])
            if number:
                self._backward(weights[f"layers.{number}.weight"], layer, layers[number - 1], dropout)
        return errors

    def _backward(self, weight_OI: Floats, layer: _Layer, below: _Layer, dropout: np.random.Generator | None) -> None:
        np.matmul(layer.d_BO, weight_OI, out=below.d_BO)
        if dropout is not None and below.keep_BO is not None:
            np.multiply(below.d_BO, below.keep_BO, out=below.d_BO)
        self._hidden.backward(below.z_BO, below.a_BO, below.d_BO, below.scratch_BO)

    def _forward(
        self,
        weights: dict[str, Floats],
        layers: list[_Layer],
        x_BI: Floats,
        dropout: np.random.Generator | None,
    ) -> None:
        a_BI = x_BI
        for number, layer in enumerate(layers):
            np.matmul(a_BI, weights[f"layers.{number}.weight"].T, out=layer.z_BO)
            if self.layout.bias:
                np.add(layer.z_BO, weights[f"layers.{number}.bias"], out=layer.z_BO)
            if layer is layers[-1]:
                self._head.activation.apply(layer.z_BO, layer.a_BO, layer.scratch_BO)
            else:
                self._hidden.apply(layer.z_BO, layer.a_BO, layer.scratch_BO)
                if dropout is not None and layer.keep_BO is not None:
                    self._drop(layer.a_BO, layer.keep_BO, layer.out_BO, dropout)
            a_BI = self._output(layer, dropout)

    def _output(self, layer: _Layer, dropout: np.random.Generator | None) -> Floats:
        return layer.a_BO if dropout is None else layer.out_BO

    def _drop(self, a_BO: Floats, keep_BO: Floats, out_BO: Floats, dropout: np.random.Generator) -> None:
        """Set dropped units to 0 and scale the others (Srivastava et al., JMLR 2014, in its inverted form)."""
        dropout.random(out=keep_BO, dtype=keep_BO.dtype.type)
        np.subtract(keep_BO, self.spec.dropout, out=keep_BO)
        np.heaviside(keep_BO, 1.0, out=keep_BO)
        np.divide(keep_BO, 1.0 - self.spec.dropout, out=keep_BO)
        np.multiply(a_BO, keep_BO, out=out_BO)

    def _error_sums(self, top: _Layer, t_BO: Floats) -> ErrorSums:
        loss = self._head.loss(top.z_BO, top.a_BO, t_BO, top.scratch_BO)
        difference_BO = top.scratch_BO
        np.subtract(top.a_BO, t_BO, out=difference_BO)
        np.abs(difference_BO, out=difference_BO)
        absolute = total(difference_BO)
        squared = sum_of_squares(difference_BO)
        return ErrorSums(len(t_BO), self.outputs, loss, absolute, squared, self._wrong(top.a_BO, t_BO))

    def _wrong(self, a_BO: Floats, t_BO: Floats) -> int | None:
        if self.spec.task == "regression":
            return None
        return int(np.count_nonzero(decide(a_BO) != decide(t_BO)))

    def _layers(self, rows: int) -> list[_Layer]:
        if rows > self._capacity:
            self._capacity = rows
            self._buffers = self._allocate(rows)
            self._cut.clear()
        if rows not in self._cut:
            self._cut[rows] = [layer.first(rows) for layer in self._buffers]
        return self._cut[rows]

    def _allocate(self, rows: int) -> list[_Layer]:
        # Losses read the output layer's z after a has been made from it, so these two are never one buffer.
        hidden = [
            _Layer(rows, units, self.spec.dtype, in_place=self._hidden.in_place, dropout=self.spec.dropout > 0)
            for units in self.spec.hidden
        ]
        return [*hidden, _Layer(rows, self.outputs, self.spec.dtype, in_place=False, dropout=False)]


def decide(a_BO: Floats) -> Integers:
    """Return the class number of each row: the largest output, or for a single output whether it is above ½."""
    if a_BO.shape[1] == 1:
        return (a_BO[:, 0] > 0.5).astype(np.intp)
    largest_B: Integers = np.argmax(a_BO, axis=1)
    return largest_B
