from itertools import product
from math import copysign, exp, fsum, inf, isfinite, log, log1p

import numpy as np
import pytest

from worker.model import LossName, ModelSpec, OutputActivation, Task
from worker.network import Network

FAR = 1e4


def log_softmax(z: tuple[float, ...]) -> list[float]:
    top = max(z)
    return [value - top - log(fsum(exp(other - top) for other in z)) for value in z]


def log_sigmoid(z: float) -> float:
    return min(z, 0.0) - log1p(exp(-abs(z)))


def exact_loss(output: OutputActivation, loss: LossName, z: tuple[float, ...], t: tuple[float, ...]) -> float:
    if output == "softmax":
        ones = log_softmax(z)
        zeros = [log1p(-exp(value)) if value < 0 else -inf for value in ones]
        if loss == "binary_cross_entropy":  # taken from rounded probabilities, so each logarithm is held at -100
            ones, zeros = ([max(value, -100.0) for value in logarithms] for logarithms in (ones, zeros))
    else:
        ones, zeros = [log_sigmoid(value) for value in z], [log_sigmoid(-value) for value in z]
    loss_of_ones = -fsum(target * value for target, value in zip(t, ones, strict=True) if target)
    if loss == "cross_entropy":
        return loss_of_ones
    return loss_of_ones - fsum((1 - target) * value for target, value in zip(t, zeros, strict=True) if target < 1)


def exact_delta(output: OutputActivation, loss: LossName, z: tuple[float, ...], t: tuple[float, ...]) -> list[float]:
    """Returns dloss/dz where it does not depend on how logarithms are held."""
    logarithms = log_softmax(z) if output == "softmax" else [log_sigmoid(value) for value in z]
    a = [exp(value) for value in logarithms]
    if (output, loss) == ("sigmoid", "cross_entropy"):
        return [target * (value - 1) for value, target in zip(a, t, strict=True)]
    return [value - target for value, target in zip(a, t, strict=True)]


def float32_results(
    task: Task, output: OutputActivation, loss: LossName, z: tuple[float, ...], t: tuple[float, ...]
) -> tuple[float, list[float]]:
    """Returns loss and dloss/dz of a network whose only layer passes its input on."""
    network = Network(ModelSpec(task=task, output=output, loss=loss), len(z), len(z))
    weights_P = np.concatenate([np.eye(len(z)).ravel(), np.zeros(len(z))]).astype(np.float32)
    gradient_P = np.full_like(weights_P, np.nan)
    errors = network.gradient_sum(weights_P, np.array([z], np.float32), np.array([t], np.float32), gradient_P)
    return errors.loss, network.layout.views(gradient_P)["layers.0.bias"].tolist()


CLASSES = [tuple(row) for row in np.eye(3).tolist()]
EXTREMES = [
    *(
        ("classification", output, loss, 3, CLASSES)
        for output in ("softmax", "sigmoid")
        for loss in ("cross_entropy", "binary_cross_entropy")
    ),
    ("binary", "sigmoid", "binary_cross_entropy", 1, [(0.0,), (1.0,)]),
    ("regression", "sigmoid", "binary_cross_entropy", 2, [(0.0, 0.25), (1.0, 0.5)]),
    ("regression", "softmax", "binary_cross_entropy", 2, [(0.0, 0.25), (1.0, 0.5)]),
]


@pytest.mark.parametrize(("task", "output", "loss", "width", "targets"), EXTREMES)
def test_no_logit_is_too_large(
    task: Task, output: OutputActivation, loss: LossName, width: int, targets: list[tuple[float, ...]]
) -> None:
    for z, t in product(product((-FAR, -1.0, 0.0, 2.0, FAR), repeat=width), targets):
        found_loss, found_delta = float32_results(task, output, loss, z, t)

        assert found_loss == pytest.approx(exact_loss(output, loss, z, t), rel=1e-5, abs=1e-6)
        assert copysign(1.0, found_loss) == 1.0  # for what is printed as -0 looks like an error
        if (output, loss) == ("softmax", "binary_cross_entropy"):
            assert all(map(isfinite, found_delta))
        else:
            assert found_delta == pytest.approx(exact_delta(output, loss, z, t), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "loss", "t"), [("binary", "binary_cross_entropy", (1.0,)), ("classification", "cross_entropy", (1.0, 0.0))]
)
def test_a_loss_near_0_keeps_its_digits(task: Task, loss: LossName, t: tuple[float, ...]) -> None:
    found, _ = float32_results(task, "sigmoid", loss, (20.0,) * len(t), t)

    assert found == pytest.approx(log1p(exp(-20.0)), rel=1e-5)


@pytest.mark.parametrize("error", [-3.0, -0.7, -0.5, 0.0, 0.2, 0.5, 4.0])
def test_the_huber_loss_turns_from_squared_to_linear_at_its_delta(error: float) -> None:
    network = Network(ModelSpec(task="regression", loss="huber", huber_delta=0.5, bias=False, dtype="float64"), 1, 1)
    gradient_P = np.empty(1)

    errors = network.gradient_sum(np.ones(1), np.array([[1.0]]), np.array([[1.0 - error]]), gradient_P)

    inside = abs(error) <= 0.5
    assert errors.loss == pytest.approx(error**2 / 2 if inside else 0.5 * (abs(error) - 0.25))
    assert gradient_P[0] == pytest.approx(error if inside else np.copysign(0.5, error))


def test_an_absolute_error_of_0_has_no_slope() -> None:
    network = Network(ModelSpec(task="regression", loss="absolute_error", bias=False, dtype="float64"), 1, 1)
    gradient_P = np.empty(1)

    errors = network.gradient_sum(np.ones(1), np.array([[2.0], [2.0]]), np.array([[2.0], [5.0]]), gradient_P)

    assert (errors.loss, gradient_P[0]) == (3.0, -2.0)
