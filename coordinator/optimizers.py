"""The `[optimizer]` section, and the optimizers as chains of small pure transforms.

A transform is a pair of functions. `init(weights)` returns the state; `update(updates, state, weights, step)` returns new
updates and new state. All are elementwise, so a vector may be cut into blocks and updated block by block to the same bits.
Formulas and defaults are PyTorch's, which names the papers: Polyak (1964), Nesterov (1983) as in Sutskever et al. (2013),
Duchi et al. (2011), Tieleman and Hinton (2012), Kingma and Ba (2015), Loshchilov and Hutter (2019).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import ClassVar, Final, Literal

import numpy as np

from coordinator.schedules import ScheduleSpec
from worker.arrays import Floats
from worker.errors import require

OptimizerName = Literal["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"]

DEFAULTS: Final[Mapping[OptimizerName, Mapping[str, float]]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9},
    "adagrad": {"epsilon": 1e-10},
    "rmsprop": {"decay": 0.99, "epsilon": 1e-8},
    "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    "adamw": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01},
}


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """How the weights are updated. A key that the named optimizer has no use for is refused.

    Attributes:
        name: sgd, momentum, nesterov, adagrad, rmsprop, adam or adamw.
        learning_rate: size of a step, before the schedule.
        schedule: how the learning rate changes over the run.
        clip_norm: the gradient is scaled down to this global norm where it is larger; None never clips.
        momentum: share of the last step kept (momentum, nesterov); None takes 0.9.
        decay: of the mean of squared gradients (rmsprop); None takes 0.99.
        beta1: decay of the mean gradient (adam, adamw); None takes 0.9.
        beta2: decay of the mean squared gradient (adam, adamw); None takes 0.999.
        epsilon: added to the denominator; None takes 1e-8, for adagrad 1e-10.
        weight_decay: decoupled decay of all parameters (adamw); None takes 0.01. For others see model.l2.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    name: OptimizerName = "sgd"
    learning_rate: float = 0.01
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    clip_norm: float | None = None
    momentum: float | None = None
    decay: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        rate = self.learning_rate
        require(isfinite(rate) and rate > 0, "optimizer.learning_rate", f"must be above 0, got {rate}")
        require(self.clip_norm is None or self.clip_norm > 0, "optimizer.clip_norm", f"must be above 0, got {self.clip_norm}")
        for key in ("momentum", "decay", "beta1", "beta2", "epsilon", "weight_decay"):
            given = getattr(self, key)
            if given is None:
                continue
            users = [name for name, defaults in DEFAULTS.items() if key in defaults]
            hint = "; for L2 regularisation use model.l2" if key == "weight_decay" else ""
            require(
                self.name in users,
                f"optimizer.{key}",
                f"{self.name} has no {key}; leave it out, or use {' or '.join(users)}{hint}",
            )
            if key in ("epsilon", "weight_decay"):
                require(isfinite(given) and given >= 0, f"optimizer.{key}", f"must be 0 or more, got {given}")
            else:
                require(0 <= given < 1, f"optimizer.{key}", f"must be at least 0 and below 1, got {given}")

    def constant(self, key: str) -> float:
        """Return one of the optimizer's constants, the default filled in."""
        given: float | None = getattr(self, key)
        return DEFAULTS[self.name][key] if given is None else given


@dataclass(frozen=True)
class Step:
    """What an update may depend on beside the arrays: its number, from 1, and the learning rate."""

    number: int
    learning_rate: float


State = Mapping[str, Floats]
Update = Callable[[Floats, State, Floats, Step], tuple[Floats, State]]


@dataclass(frozen=True)
class Transform:
    """A pair of pure functions over arrays of one shape."""

    init: Callable[[Floats], State]
    update: Update


def make_optimizer(spec: OptimizerSpec) -> Transform:
    """Return the optimizer; its updates are to be added to the weights."""
    match spec.name:
        case "sgd":
            parts = []
        case "momentum":
            parts = [trace(spec.constant("momentum"), nesterov=False)]
        case "nesterov":
            parts = [trace(spec.constant("momentum"), nesterov=True)]
        case "adagrad":
            parts = [scale_by_root_sum_of_squares(spec.constant("epsilon"))]
        case "rmsprop":
            parts = [scale_by_root_mean_square(spec.constant("decay"), spec.constant("epsilon"))]
        case "adam" | "adamw":
            parts = [scale_by_adam(spec.constant("beta1"), spec.constant("beta2"), spec.constant("epsilon"))]
    if spec.name == "adamw":
        parts.append(add_decayed_weights(spec.constant("weight_decay")))
    return chain(*parts, scale_by_learning_rate())


def chain(*parts: Transform) -> Transform:
    """Return a transform that applies `parts` in turn. Their states must have different names."""

    def init(weights: Floats) -> State:
        return {name: array for part in parts for name, array in part.init(weights).items()}

    def update(updates: Floats, state: State, weights: Floats, step: Step) -> tuple[Floats, State]:
        new: dict[str, Floats] = {}
        for part in parts:
            updates, changed = part.update(updates, state, weights, step)
            new.update(changed)
        return updates, new

    return Transform(init, update)


def stateless(function: Callable[[Floats, Floats, Step], Floats]) -> Transform:
    """Return a transform that keeps no state."""
    return Transform(lambda weights: {}, lambda updates, state, weights, step: (function(updates, weights, step), {}))


def scale_by_learning_rate() -> Transform:
    """-η u."""
    return stateless(lambda updates, weights, step: -step.learning_rate * updates)


def add_decayed_weights(decay: float) -> Transform:
    """U + λ w."""
    return stateless(lambda updates, weights, step: updates + decay * weights)


def trace(momentum: float, *, nesterov: bool) -> Transform:
    """M ← μ m + u; gives m, or u + μ m for Nesterov's."""

    def update(updates: Floats, state: State, weights: Floats, step: Step) -> tuple[Floats, State]:
        velocity = momentum * state["momentum"] + updates
        return (updates + momentum * velocity if nesterov else velocity), {"momentum": velocity}

    return Transform(lambda weights: {"momentum": np.zeros_like(weights)}, update)


def scale_by_root_sum_of_squares(epsilon: float) -> Transform:
    """S ← s + u²; gives u / (√s + ε)."""

    def update(updates: Floats, state: State, weights: Floats, step: Step) -> tuple[Floats, State]:
        squares = state["squares"] + updates * updates
        return updates / (np.sqrt(squares) + epsilon), {"squares": squares}

    return Transform(lambda weights: {"squares": np.zeros_like(weights)}, update)


def scale_by_root_mean_square(decay: float, epsilon: float) -> Transform:
    """V ← α v + (1 - α) u²; gives u / (√v + ε)."""

    def update(updates: Floats, state: State, weights: Floats, step: Step) -> tuple[Floats, State]:
        squares = decay * state["squares"] + (1.0 - decay) * (updates * updates)
        return updates / (np.sqrt(squares) + epsilon), {"squares": squares}

    return Transform(lambda weights: {"squares": np.zeros_like(weights)}, update)


def scale_by_adam(beta1: float, beta2: float, epsilon: float) -> Transform:
    """M ← β₁ m + (1 - β₁) u, v ← β₂ v + (1 - β₂) u²; gives m̂ / (√v̂ + ε) with both corrected for their start at 0."""

    def update(updates: Floats, state: State, weights: Floats, step: Step) -> tuple[Floats, State]:
        mean = beta1 * state["mean"] + (1.0 - beta1) * updates
        squares = beta2 * state["squares"] + (1.0 - beta2) * (updates * updates)
        root = np.sqrt(squares) / sqrt(1.0 - beta2**step.number) + epsilon
        return mean / (1.0 - beta1**step.number) / root, {"mean": mean, "squares": squares}

    return Transform(lambda weights: {"mean": np.zeros_like(weights), "squares": np.zeros_like(weights)}, update)
