"""The network forward and backward: gradient sums of slices, by the chain rule.

Shapes: K slices of one size, B rows of a slice, I inputs, O outputs of a layer, P parameters. `x` inputs, `z` weighted
inputs, `a` activations, `t` targets, `d` the gradient of the loss with respect to z ("delta"). Between the layers rows run
along the last axis: BLAS multiplies a short slice faster that way. See Goodfellow et al., "Deep Learning", algorithms 6.3
and 6.4, or Nielsen, "Neural Networks and Deep Learning", equations BP1 to BP4.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final, Self

import numpy as np

from worker.activations import ACTIVATIONS
from worker.arrays import Floats, Integers, totals, totals_and_squares
from worker.batch import Batch, Buffers, Run
from worker.gradients import GradientStack
from worker.losses import make_head
from worker.model import Layout, ModelSpec
from worker.tree import Additions

Draws = Sequence[np.random.Generator]

CACHED_WEIGHTS: Final = 4
"""Weight vectors whose views are kept: a coordinator publishes its weights in the same few places."""

CACHED_PARAMETERS: Final = 1 << 16
"""Entries of a vector whose views are worth being kept, and itself with them."""


@dataclass(frozen=True)
class ErrorSums:
    """Errors summed over rows (loss also over outputs), to be divided once by whoever reports them.

    Attributes:
        rows: rows that were summed.
        weight: of them together: their number, unless they have weights. All sums below are of rows times their weight.
        outputs: outputs a row has.
        loss: sum of the loss.
        absolute: sum of |a - t| over rows and outputs, in the targets' own units.
        squared: sum of (a - t)² over rows and outputs, likewise.
        wrong: rows classified wrongly; None for regressions.
    """

    rows: int
    weight: float
    outputs: int
    loss: float
    absolute: float
    squared: float
    wrong: float | None

    @property
    def divisor(self) -> float:
        """What gradients and loss of a round are divided by: the weight, or 1 where nothing weighs and all sums are 0."""
        return self.weight or 1.0

    @property
    def finite(self) -> bool:
        """Whether no sum has overflowed or become undefined."""
        return isfinite(self.loss) and isfinite(self.absolute) and isfinite(self.squared)

    def __add__(self, other: Self) -> "ErrorSums":
        """Return the sums over both sets of rows."""
        wrong = None if self.wrong is None or other.wrong is None else self.wrong + other.wrong
        return ErrorSums(
            self.rows + other.rows,
            self.weight + other.weight,
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


class Network:
    """A dense network of one shape, with its buffers. Not for use by several threads at once.

    Attributes:
        layout: where each parameter lies in the flat vectors that the methods take.
    """

    def __init__(
        self, spec: ModelSpec, inputs: int, outputs: int, units: Sequence[float] | None = None, *, weighted: bool = False
    ) -> None:
        """Shape the network. Raises JobError as `check_outputs` does.

        Args:
            spec: the `[model]` section.
            inputs: values of a row.
            outputs: results of a row.
            units: what 1 of each output is in the units in which absolute and squared errors are told; None leaves them.
            weighted: whether rows have weights.
        """
        spec.check_outputs(outputs)
        self._units_O1 = None if units is None else np.array(units)[:, np.newaxis]
        self.spec = spec
        self.layout = Layout((inputs, *spec.hidden, outputs), bias=spec.bias)
        self._hidden = ACTIVATIONS[spec.activation]
        self._head = make_head(spec.output_name, spec.loss_name, spec.huber_delta)
        in_place = [self._hidden.in_place] * len(spec.hidden) + [False]
        dropout = [spec.dropout > 0] * len(spec.hidden) + [False]
        # Losses read the output layer's z after a has been made from it, so these two are never one buffer.
        self._buffers = Buffers(self.layout.sizes, spec.dtype, in_place=in_place, dropout=dropout, weighted=weighted)
        self._stack = GradientStack(self.layout, spec.dtype)
        self._views: dict[int, tuple[Floats, list[tuple[Floats, Floats | None]]]] = {}

    @property
    def inputs(self) -> int:
        """Values of a row, I."""
        return self.layout.sizes[0]

    @property
    def outputs(self) -> int:
        """Results of a row, O."""
        return self.layout.sizes[-1]

    def batch(self, sizes: tuple[int, ...]) -> Batch:
        """Return room for slices of these sizes, to be filled with their rows; it is good until the next call."""
        return self._buffers.batch(sizes)

    def rows_within(self, size: int) -> int:
        """Return how many rows' buffers fit into so many bytes, at least 1."""
        return max(1, size // self._buffers.bytes_per_row)

    def predict(self, weights_P: Floats, x_BI: Floats) -> Floats:
        """Return the outputs (B, O) for the rows, in a buffer that the next call overwrites."""
        batch = self.batch((len(x_BI),))
        np.copyto(batch.x_RI, x_BI)
        (run,) = batch.runs
        self._forward(self._layers(weights_P), run, None)
        a_BO: Floats = run.layers[-1].a_KOB[0].T
        return a_BO

    def errors(self, weights_P: Floats, x_BI: Floats, t_BO: Floats, w_B: Floats | None = None) -> ErrorSums:
        """Return the error sums of the rows, without any dropout; `w_B` are their weights, if they have any."""
        return self.errors_of(weights_P, self._filled(x_BI, t_BO, w_B))

    def gradient_sum(
        self,
        weights_P: Floats,
        x_BI: Floats,
        t_BO: Floats,
        gradient_P: Floats,
        dropout: np.random.Generator | None = None,
        w_B: Floats | None = None,
    ) -> ErrorSums:
        """Do for one slice, given as arrays, what `gradient_sums` does for a batch."""
        batch = self._filled(x_BI, t_BO, w_B)
        return self.gradient_sums(weights_P, batch, (), gradient_P, None if dropout is None else [dropout])

    def errors_of(self, weights_P: Floats, batch: Batch) -> ErrorSums:
        """Return the error sums of a batch of one slice, without any dropout."""
        (run,) = batch.runs
        self._forward(self._layers(weights_P), run, None)
        return self._as_sums(batch, self._error_sums(run)[0])

    def gradient_sums(
        self, weights_P: Floats, batch: Batch, additions: Additions, gradient_P: Floats, dropout: Draws | None = None
    ) -> ErrorSums:
        """Write the sum over rows of the loss's gradient into `gradient_P` and return the error sums.

        Args:
            weights_P: parameters.
            batch: its slices, filled with their rows.
            additions: in which order the sums of the slices are to be added, as `tree.additions` has it.
            gradient_P: overwritten.
            dropout: draws the units to drop, one generator a slice; None drops none.
        """
        layers = self._layers(weights_P)
        errors: list[Floats] = []
        for run in batch.runs:
            self._forward(layers, run, dropout)
            errors.append(self._error_sums(run))
            self._backward(layers, run, dropout)
        self._stack.sum(batch, additions, gradient_P)
        sums = errors[0] if len(errors) == 1 else np.concatenate(errors)
        for left, right in additions:
            np.add(sums[left], sums[right], out=sums[left])
        return self._as_sums(batch, sums[0])

    def _forward(self, weights: list[tuple[Floats, Floats | None]], run: Run, dropout: Draws | None) -> None:
        below_KIB = run.x_KIB
        last = run.layers[-1]
        for layer, (weight_OI, bias_O1) in zip(run.layers, weights, strict=True):
            np.matmul(weight_OI, below_KIB, out=layer.z_KOB)
            if bias_O1 is not None:
                np.add(layer.z_KOB, bias_O1, out=layer.z_KOB)
            if layer is last:
                self._head.activation.apply(layer.z_KOB, layer.a_KOB, layer.scratch_KOB)
                return
            self._hidden.apply(layer.z_KOB, layer.a_KOB, layer.scratch_KOB)
            if layer.keep_KOB is not None:
                self._drop(run, layer.a_KOB, layer.keep_KOB, layer.out_KOB, dropout)
            below_KIB = layer.out_KOB

    def _backward(self, weights: list[tuple[Floats, Floats | None]], run: Run, dropout: Draws | None) -> None:
        top = run.layers[-1]
        self._head.delta(top.z_KOB, top.a_KOB, run.t_KOB, top.d_KOB, top.scratch_KOB)
        if run.w_K1B is not None:
            np.multiply(top.d_KOB, run.w_K1B, out=top.d_KOB)
        for number in range(len(run.layers) - 1, 0, -1):
            layer, below = run.layers[number], run.layers[number - 1]
            np.matmul(weights[number][0].T, layer.d_KOB, out=below.d_KOB)
            if dropout is not None and below.keep_KOB is not None:
                np.multiply(below.d_KOB, below.keep_KOB, out=below.d_KOB)
            self._hidden.backward(below.z_KOB, below.a_KOB, below.d_KOB, below.scratch_KOB)

    def _drop(self, run: Run, a_KOB: Floats, keep_KOB: Floats, out_KOB: Floats, dropout: Draws | None) -> None:
        """Set dropped units to 0 and scale the others (Srivastava et al., JMLR 2014, in its inverted form)."""
        if dropout is None:
            np.copyto(out_KOB, a_KOB)
            return
        for keep_OB, draws in zip(keep_KOB, dropout[run.first : run.first + len(keep_KOB)], strict=True):
            draws.random(out=keep_OB, dtype=keep_OB.dtype.type)
        np.subtract(keep_KOB, self.spec.dropout, out=keep_KOB)
        np.heaviside(keep_KOB, 1.0, out=keep_KOB)
        np.divide(keep_KOB, 1.0 - self.spec.dropout, out=keep_KOB)
        np.multiply(a_KOB, keep_KOB, out=out_KOB)

    def _error_sums(self, run: Run) -> Floats:
        """Return loss, absolute error, squared error and wrong rows (K, 4) of each slice; where rows have weights, these too."""
        top, w_K1B = run.layers[-1], run.w_K1B
        sums = np.zeros((len(run.t_KOB), 4 if w_K1B is None else 5))
        sums[:, 0] = self._head.loss(top.z_KOB, top.a_KOB, run.t_KOB, top.scratch_KOB, w_K1B)
        difference_KOB = top.scratch_KOB
        np.subtract(top.a_KOB, run.t_KOB, out=difference_KOB)
        np.abs(difference_KOB, out=difference_KOB)
        if self._units_O1 is not None:
            # In float64, whatever the model's precision: in their own units, errors may be as small or large as they like.
            difference_KOB = difference_KOB * self._units_O1
        sums[:, 1:3] = totals_and_squares(difference_KOB, w_K1B)
        if self.spec.task != "regression":
            wrong_KB = _decide(top.a_KOB) != _decide(run.t_KOB)
            sums[:, 3] = np.add.reduce(wrong_KB, axis=1) if w_K1B is None else totals(w_K1B * wrong_KB[:, np.newaxis])
        if w_K1B is not None:
            sums[:, 4] = totals(w_K1B)
        return sums

    def _as_sums(self, batch: Batch, sums: Floats) -> ErrorSums:
        loss, absolute, squared, wrong, *weight = sums.tolist()
        wrong = None if self.spec.task == "regression" else wrong
        return ErrorSums(batch.rows, weight[0] if weight else float(batch.rows), self.outputs, loss, absolute, squared, wrong)

    def _filled(self, x_BI: Floats, t_BO: Floats, w_B: Floats | None) -> Batch:
        batch = self.batch((len(x_BI),))
        np.copyto(batch.x_RI, x_BI)
        (target,) = batch.targets
        np.copyto(target.t_OB, t_BO.T)
        if target.w_B is not None:
            np.copyto(target.w_B, 1.0 if w_B is None else w_B)
        return batch

    def _layers(self, weights_P: Floats) -> list[tuple[Floats, Floats | None]]:
        """Return the layers' weights and biases, as `Layout.layers` does."""
        if weights_P.size > CACHED_PARAMETERS:
            return self.layout.layers(weights_P)
        known = self._views.get(id(weights_P))
        if known is None:
            if len(self._views) >= CACHED_WEIGHTS:
                self._views.clear()
            # The vector is kept as well, so that no other can come to have its id.
            known = self._views[id(weights_P)] = weights_P, self.layout.layers(weights_P)
        return known[1]


def decide(a_BO: Floats) -> Integers:
    """Return the class number of each row: the largest output, or for a single output whether it is above ½."""
    chosen_B: Integers = _decide(a_BO.T[np.newaxis])[0]
    return chosen_B


def _decide(a_KOB: Floats) -> Integers:
    if a_KOB.shape[1] == 1:
        return (a_KOB[:, 0] > 0.5).astype(np.intp)
    largest_KB: Integers = a_KOB.argmax(axis=1)
    return largest_KB
