"""The `[model]` section of a job, and where each weight lies in the flat parameter vector."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import inf, prod
from typing import ClassVar, Final, Literal

from worker.arrays import Floats
from worker.errors import require

Task = Literal["classification", "binary", "regression"]
HiddenActivation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "identity"]
OutputActivation = Literal["sigmoid", "tanh", "relu", "leaky_relu", "gelu", "identity", "softmax"]
LossName = Literal["squared_error", "absolute_error", "huber", "cross_entropy", "binary_cross_entropy"]

DEFAULT_OUTPUT: Final[Mapping[Task, OutputActivation]] = {
    "classification": "softmax",
    "binary": "sigmoid",
    "regression": "identity",
}
DEFAULT_LOSS: Final[Mapping[Task, LossName]] = {
    "classification": "cross_entropy",
    "binary": "binary_cross_entropy",
    "regression": "squared_error",
}
PROBABILITIES: Final = ("softmax", "sigmoid")
INITIALIZERS: Final = ("small", "xavier", "he", "zeros")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The network: dense layers, output and loss.

    Attributes:
        task: what the label means: one of several classes, one of two, or numbers.
        hidden: units of each hidden layer; none makes a linear model.
        activation: of the hidden layers.
        output: activation of the output layer; None takes the task's (softmax, sigmoid, identity).
        loss: None takes the task's (cross_entropy, binary_cross_entropy, squared_error).
        huber_delta: error at which the Huber loss turns from squared to linear.
        bias: whether the layers have biases.
        l2: λ of the penalty ½ λ Σ w² over the weights, biases left out; added to the gradient, not to reported losses.
        dropout: share of each hidden layer's units dropped in training, the others scaled by 1 / (1 - dropout).
        initial_weights: small (uniform in ±0.05), xavier, he, zeros, or a .safetensors file; None takes he for the relu
            family and gelu, xavier for the others.
        dtype: precision of rows, weights and gradients.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    task: Task
    hidden: tuple[int, ...] = ()
    activation: HiddenActivation = "relu"
    output: OutputActivation | None = None
    loss: LossName | None = None
    huber_delta: float = 1.0
    bias: bool = True
    l2: float = 0.0
    dropout: float = 0.0
    initial_weights: str | None = None
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        for place, units in enumerate(self.hidden):
            require(units >= 1, f"model.hidden[{place}]", f"{units} units is too few; at least 1 is needed")
        require(0 < self.huber_delta < inf, "model.huber_delta", f"must be above 0, got {self.huber_delta}")
        require(0 <= self.l2 < inf, "model.l2", f"must be 0 or more, got {self.l2}")
        require(0 <= self.dropout < 1, "model.dropout", f"must be at least 0 and below 1, got {self.dropout}")
        require(
            not self.dropout or bool(self.hidden),
            "model.dropout",
            "drops hidden units, but model.hidden is empty; leave it out or add a hidden layer",
        )
        require(
            self.initial_weights is None or self.initial_weights in INITIALIZERS or self.initial_weights.endswith(".safetensors"),
            "model.initial_weights",
            f"'{self.initial_weights}' is neither one of {', '.join(INITIALIZERS)} nor a .safetensors file",
        )
        self._check_pairing()

    def _check_pairing(self) -> None:
        output, loss = self.output_name, self.loss_name
        if loss == "cross_entropy":
            require(
                self.task == "classification",
                "model.loss",
                f"cross_entropy needs classes to choose from, but model.task is '{self.task}'; "
                f"use task = 'classification' or loss = '{DEFAULT_LOSS[self.task]}'",
            )
        if loss in ("cross_entropy", "binary_cross_entropy"):
            require(
                output in PROBABILITIES,
                "model.output",
                f"{loss} takes the logarithm of probabilities, which '{output}' does not give; "
                f"use {' or '.join(PROBABILITIES)}, or another loss",
            )
        require(
            not (self.task == "binary" and output == "softmax"),
            "model.output",
            "softmax over the single output of a binary task is always 1; use sigmoid",
        )

    @property
    def output_name(self) -> OutputActivation:
        """The output activation, the task's default filled in."""
        return self.output or DEFAULT_OUTPUT[self.task]

    @property
    def loss_name(self) -> LossName:
        """The loss, the task's default filled in."""
        return self.loss or DEFAULT_LOSS[self.task]

    @property
    def reads_initial_weights(self) -> bool:
        """Whether the initial weights come from a file."""
        return self.initial_weights is not None and self.initial_weights not in INITIALIZERS

    def check_outputs(self, outputs: int) -> None:
        """Raise JobError where the number of outputs, known only from the data, contradicts the output activation."""
        require(
            not (self.output_name == "softmax" and outputs == 1),
            "model.output",
            f"softmax over one output is always 1, so {self.loss_name} could learn nothing; "
            "use sigmoid or identity, or a label with more columns or classes",
        )


@dataclass(frozen=True)
class Slot:
    """One array within the flat parameter vector."""

    name: str
    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)

    @property
    def width(self) -> int:
        """Entries an output of the layer has in it."""
        return prod(self.shape[1:])

    @property
    def is_weight(self) -> bool:
        """Whether it holds weights rather than biases."""
        return len(self.shape) == 2


class Layout:
    """Names, shapes and offsets of the parameters: those of a PyTorch nn.Sequential of linear layers.

    `layers.0.weight` (outputs, inputs), `layers.0.bias` (outputs,), `layers.1.weight`, …
    """

    def __init__(self, sizes: tuple[int, ...], *, bias: bool) -> None:
        """Lay out dense layers between consecutive `sizes` (inputs, hidden…, outputs)."""
        self.sizes = sizes
        self.bias = bias
        slots: list[Slot] = []
        offset = 0
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            shapes: dict[str, tuple[int, ...]] = {"weight": (outputs, inputs)}
            if bias:
                shapes["bias"] = (outputs,)
            for kind, shape in shapes.items():
                slots.append(Slot(f"layers.{layer}.{kind}", offset, shape))
                offset += prod(shape)
        self.slots = tuple(slots)
        self.size = offset

    def views(self, flat_P: Floats) -> dict[str, Floats]:
        """Return the named arrays as views into a flat vector of `size` entries."""
        return {slot.name: flat_P[slot.offset : slot.offset + slot.size].reshape(slot.shape) for slot in self.slots}

    def layers(self, flat_P: Floats) -> list[tuple[Floats, Floats | None]]:
        """Return each layer's weights (O, I) and biases (O, 1), None without them, as views into a flat vector."""
        views = self.views(flat_P)
        return [
            (views[f"layers.{layer}.weight"], views[f"layers.{layer}.bias"][:, None] if self.bias else None)
            for layer in range(len(self.sizes) - 1)
        ]
