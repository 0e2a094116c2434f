from collections.abc import Iterator

import numpy as np
import pytest

from coordinator.optimizers import DEFAULTS, OptimizerSpec, Step, make_optimizer
from coordinator.update import BLOCK, Parameters, PartialSums, Refused, Updated, Updater, clip_factor, deal, norm_of
from worker.arrays import Floats
from worker.model import Layout, ModelSpec

MODEL = ModelSpec(task="regression", hidden=(3,), dtype="float64")
LAYOUT = Layout((4, 3, 2), bias=True)
SGD = OptimizerSpec(name="sgd")
STEP = Step(1, 1.0)


def update(updater: Updater, parameters: Parameters, gradient_sum_P: Floats, rows: int, step: Step = STEP) -> Updated | Refused:
    new = Parameters(np.full_like(parameters.weights_P, np.nan), parameters.optimizer)
    return updater.update(parameters, PartialSums([gradient_sum_P]), rows, step, new)


def new_weights(updater: Updater, weights_P: Floats, gradient_sum_P: Floats, rows: int) -> Floats:
    updated = update(updater, updater.start(weights_P), gradient_sum_P, rows)
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
        updated = update(updater, parameters, gradient * 8, 8, Step(number, 0.05))
        updates, state = transform.update(gradient, state, weights, Step(number, 0.05))
        weights = weights + updates
        assert isinstance(updated, Updated)
        parameters = updated.parameters
        np.testing.assert_array_equal(parameters.weights_P, weights, strict=True)
        assert parameters.optimizer.keys() == state.keys()
        for key, array in state.items():
            np.testing.assert_array_equal(parameters.optimizer[key], array, strict=True)


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_an_update_changes_neither_the_weights_before_nor_the_sums(clip_norm: float | None) -> None:
    updater = Updater(OptimizerSpec(name="adam", clip_norm=clip_norm), ModelSpec(task="regression", l2=0.5), LAYOUT)
    parameters = updater.start(np.ones(LAYOUT.size, "float32"))
    sums = PartialSums([np.ones(LAYOUT.size, "float32"), np.ones(LAYOUT.size, "float32")], ((0, 1),))
    for array in (parameters.weights_P, *sums.arrays):
        array.setflags(write=False)
    new_P = np.empty(LAYOUT.size, "float32")

    updated = updater.update(parameters, sums, 2, STEP, Parameters(new_P, parameters.optimizer))

    assert isinstance(updated, Updated)
    assert updated.parameters.weights_P is new_P
    assert updated.parameters.optimizer is parameters.optimizer


def test_partial_sums_are_added_in_their_order() -> None:
    parts = [np.full(LAYOUT.size, value) for value in (1e16, 1.0, -1e16, 1.0)]
    updater = Updater(SGD, MODEL, LAYOUT)
    parameters = updater.start(np.zeros(LAYOUT.size))

    found = [
        updater.update(parameters, PartialSums(parts, additions), 1, STEP, Parameters(np.empty(LAYOUT.size), {}))
        for additions in (((0, 2), (1, 3), (0, 1)), ((0, 1), (2, 3), (0, 2)))
    ]

    assert all(isinstance(updated, Updated) for updated in found)
    assert [updated.parameters.weights_P[0] for updated in found if isinstance(updated, Updated)] == [-2.0, 0.0]


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_threads_change_no_bit(clip_norm: float | None) -> None:
    layout = Layout((5 * BLOCK + 77, 1), bias=False)
    spec, model = OptimizerSpec(name="adam", clip_norm=clip_norm), ModelSpec(task="regression", l2=0.1)
    draws = np.random.default_rng(3)
    weights_P, gradient_P = (draws.normal(size=layout.size).astype("float32") for _ in range(2))

    one, two = (Updater(spec, model, layout, threads) for threads in (1, 2))
    found, expected = (update(updater, updater.start(weights_P), gradient_P, 3) for updater in (two, one))

    assert isinstance(found, Updated) and isinstance(expected, Updated)
    assert found.gradient_norm == expected.gradient_norm
    np.testing.assert_array_equal(found.parameters.weights_P, expected.parameters.weights_P)
    for name, array in expected.parameters.optimizer.items():
        np.testing.assert_array_equal(found.parameters.optimizer[name], array)


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

    parameters = updater.start(np.zeros(LAYOUT.size))

    assert update(updater, parameters, gradient_P, 3) == Refused("the gradient is not finite")
    assert all((array == 0).all() for array in parameters.optimizer.values())


def test_a_refusal_tells_whether_the_optimizer_remembers_what_was_refused() -> None:
    updater = Updater(OptimizerSpec(name="momentum"), MODEL, LAYOUT)

    assert update(updater, updater.start(np.zeros(LAYOUT.size)), np.full(LAYOUT.size, np.nan), 3) == Refused(
        "the gradient is not finite", state_lost=True
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_that_would_overflow_are_refused(dtype: str) -> None:
    layout = Layout((4, 3), bias=True)
    updater = Updater(SGD, ModelSpec(task="regression", dtype=dtype), layout)
    start = updater.start(np.zeros(layout.size, dtype))
    step = Step(1, float(np.finfo(dtype).max))

    refused = update(updater, start, np.full(layout.size, 2.0, dtype), 1, step)

    assert refused == Refused("the updated weights are not finite")
    assert not start.weights_P.any()


@pytest.mark.parametrize(("dtype", "scale"), [("float64", 1.0), ("float32", 1e25), ("float32", 1e-30)])
def test_the_norm_of_a_long_gradient_is_that_of_all_its_blocks(dtype: str, scale: float) -> None:
    (gradient_P,) = long_vectors(1, dtype)
    gradient_P *= np.dtype(dtype).type(scale)
    updater = Updater(SGD, ModelSpec(task="regression", dtype=dtype), Layout((len(gradient_P), 1), bias=False))

    updated = update(updater, updater.start(np.zeros_like(gradient_P)), gradient_P, 1)

    assert isinstance(updated, Updated)
    expected = float(np.linalg.norm(gradient_P.astype("float64")))
    assert updated.gradient_norm == pytest.approx(expected, rel=1e-13 if dtype == "float64" else 1e-6)


def test_a_large_but_finite_float32_gradient_is_clipped_and_not_refused() -> None:
    layout = Layout((2, 1), bias=False)
    updater = Updater(OptimizerSpec(clip_norm=1.0), ModelSpec(task="regression"), layout)

    updated = update(updater, updater.start(np.zeros(2, "float32")), np.array([3e20, -4e20], "float32"), 1)

    assert isinstance(updated, Updated)
    assert updated.gradient_norm == pytest.approx(5e20)
    np.testing.assert_allclose(updated.parameters.weights_P, [-0.6, 0.8], rtol=1e-6)


def test_squares_that_are_finite_one_by_one_only_have_no_norm() -> None:
    assert norm_of([1e308, 1e308]) == float("inf")
    assert norm_of([9.0, 16.0]) == 5.0


@pytest.mark.parametrize(("blocks", "hands"), [(1, 1), (1, 3), (7, 2), (8, 3), (5, 5)])
def test_blocks_are_dealt_out_evenly_and_the_first_has_one(blocks: int, hands: int) -> None:
    found = deal(blocks, hands)
    assert [block for part in found for block in part] == list(range(blocks))
    assert len(found) == hands
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert len(found[0]) == max(map(len, found))
