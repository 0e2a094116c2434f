from collections.abc import Iterator

import numpy as np
import pytest

from coordinator.optimizers import DEFAULTS, OptimizerSpec, Step, make_optimizer
from coordinator.update import BLOCK, Refused, Updated, Updater, clip_factor, gradient_norm
from worker.arrays import Floats
from worker.model import Layout, ModelSpec

MODEL = ModelSpec(task="regression", hidden=(3,), dtype="float64")
LAYOUT = Layout((4, 3, 2), bias=True)
SGD = OptimizerSpec(name="sgd")
STEP = Step(1, 1.0)


def new_weights(updater: Updater, weights_P: Floats, gradient_sum_P: Floats, rows: int) -> Floats:
    updated = updater.update(updater.start(weights_P), gradient_sum_P, rows, STEP)
    assert isinstance(updated, Updated)
    return updated.parameters.weights_P


def long_vectors(count: int, dtype: str) -> Iterator[Floats]:
    """Vectors that fill two blocks and a part of a third, which is no multiple of any vector register."""
    draws = np.random.default_rng(3)
    return (draws.normal(size=2 * BLOCK + 1237).astype(dtype) for _ in range(count))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", DEFAULTS)
def test_an_update_in_blocks_has_the_bits_of_one_of_the_whole_vector(name: str, dtype: str) -> None:
    spec = OptimizerSpec(name=name, learning_rate=0.05)
    weights, *gradients = long_vectors(5, dtype)
    updater = Updater(spec, ModelSpec(task="regression", dtype=dtype), Layout((len(weights), 1), bias=False))
    transform, parameters = make_optimizer(spec), updater.start(weights)
    state = transform.init(weights)

    for number, gradient in enumerate(gradients, 1):
        updated = updater.update(parameters, gradient * 8, 8, Step(number, 0.05))
        updates, state = transform.update(gradient, state, weights, Step(number, 0.05))
        weights = weights + updates
        assert isinstance(updated, Updated)
        parameters = updated.parameters
        np.testing.assert_array_equal(parameters.weights_P, weights, strict=True)
        assert parameters.optimizer.keys() == state.keys()
        for key, array in state.items():
            np.testing.assert_array_equal(parameters.optimizer[key], array, strict=True)


def test_an_update_replaces_parameters_and_changes_none() -> None:
    updater = Updater(OptimizerSpec(name="adam", clip_norm=0.1), ModelSpec(task="regression", l2=0.5), LAYOUT)
    parameters = updater.start(np.ones(LAYOUT.size, "float32"))
    gradient_sum_P = np.ones(LAYOUT.size, "float32")
    for array in (parameters.weights_P, gradient_sum_P, *parameters.optimizer.values()):
        array.setflags(write=False)

    assert isinstance(updater.update(parameters, gradient_sum_P, 2, STEP), Updated)


def test_the_gradient_sum_is_divided_by_the_rows() -> None:
    weights_P, gradient_P = np.arange(LAYOUT.size, dtype=float), np.linspace(-1, 1, LAYOUT.size)

    found = new_weights(Updater(SGD, MODEL, LAYOUT), weights_P, gradient_P * 7, 7)

    np.testing.assert_allclose(found, weights_P - gradient_P, rtol=0, atol=1e-14)


def test_l2_pulls_at_weights_and_leaves_biases_alone() -> None:
    weights_P = np.arange(1.0, LAYOUT.size + 1)
    model = ModelSpec(task="regression", hidden=(3,), dtype="float64", l2=0.25)

    found = LAYOUT.views(new_weights(Updater(SGD, model, LAYOUT), weights_P, np.zeros(LAYOUT.size), 5))

    for name, before in LAYOUT.views(weights_P).items():
        np.testing.assert_array_equal(found[name], before * 0.75 if name.endswith("weight") else before)


def test_a_gradient_below_the_norm_is_not_clipped_and_one_above_has_that_norm() -> None:
    assert clip_factor(1.0, None) == clip_factor(1.0, 2.0) == clip_factor(0.0, 2.0) == 1.0
    assert 8.0 * clip_factor(8.0, 2.0) == pytest.approx(2.0, rel=1e-6)


def test_the_penalty_is_clipped_along_with_the_gradient() -> None:
    model = ModelSpec(task="regression", hidden=(3,), dtype="float64", l2=1.0)
    weights_P = np.full(LAYOUT.size, 100.0)

    found = new_weights(Updater(OptimizerSpec(clip_norm=2.0), model, LAYOUT), weights_P, np.zeros(LAYOUT.size), 1)

    assert np.linalg.norm(found - weights_P) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_gradient_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    gradient_P = np.zeros(LAYOUT.size)
    gradient_P[-1] = bad
    updater = Updater(OptimizerSpec(name=name, clip_norm=1.0), MODEL, LAYOUT)

    assert updater.update(updater.start(np.zeros(LAYOUT.size)), gradient_P, 3, STEP) == Refused("the gradient is not finite")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_that_would_overflow_are_refused(dtype: str) -> None:
    layout = Layout((4, 3), bias=True)
    updater = Updater(SGD, ModelSpec(task="regression", dtype=dtype), layout)
    start = updater.start(np.zeros(layout.size, dtype))
    step = Step(1, float(np.finfo(dtype).max))

    refused = updater.update(start, np.full(layout.size, 2.0, dtype), 1, step)

    assert refused == Refused("the updated weights are not finite")


def test_the_norm_of_a_long_gradient_is_that_of_all_its_blocks() -> None:
    (gradient_P,) = long_vectors(1, "float64")

    assert gradient_norm(gradient_P) == pytest.approx(float(np.linalg.norm(gradient_P)), rel=1e-13)


def test_a_large_but_finite_float32_gradient_is_clipped_and_not_refused() -> None:
    layout = Layout((2, 1), bias=False)
    updater = Updater(OptimizerSpec(clip_norm=1.0), ModelSpec(task="regression"), layout)

    updated = updater.update(updater.start(np.zeros(2, "float32")), np.array([3e20, -4e20], "float32"), 1, STEP)

    assert isinstance(updated, Updated)
    assert updated.gradient_norm == pytest.approx(5e20)
    np.testing.assert_allclose(updated.parameters.weights_P, [-0.6, 0.8], rtol=1e-6)
