from collections.abc import Mapping
from math import sqrt
from typing import Any, get_args

import numpy as np
import pytest

from worker.arrays import Floats
from worker.initial import initial_weights
from worker.model import HiddenActivation, Layout, ModelSpec

SIZES = (200, 150, 60)


def drawn(seed: int = 7, sizes: tuple[int, ...] = SIZES, **options: Any) -> Mapping[str, Floats]:
    spec = ModelSpec(task="regression", hidden=sizes[1:-1], **options)
    layout = Layout(sizes, bias=True)
    return layout.views(initial_weights(spec, layout, seed))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("rule", ["small", "xavier"])
def test_uniform_rules_fill_their_range_evenly(rule: str, layer: int) -> None:
    bound = 0.05 if rule == "small" else sqrt(6 / (SIZES[layer] + SIZES[layer + 1]))

    found = drawn(initial_weights=rule, dtype="float64")[f"layers.{layer}.weight"] / bound

    assert found.shape == (SIZES[layer + 1], SIZES[layer])
    counts, _ = np.histogram(found, bins=10, range=(-1, 1))
    assert counts.sum() == found.size  # none lies outside
    assert counts == pytest.approx(found.size / 10, abs=5 * sqrt(found.size / 10))


@pytest.mark.parametrize("layer", [0, 1])
def test_he_draws_normal_weights_of_variance_2_by_inputs(layer: int) -> None:
    found = drawn(initial_weights="he", dtype="float64")[f"layers.{layer}.weight"] / sqrt(2 / SIZES[layer])

    assert found.mean() == pytest.approx(0, abs=5 / sqrt(found.size))
    assert found.var() == pytest.approx(1, abs=5 * sqrt(2 / found.size))
    assert (np.abs(found) < 1).mean() == pytest.approx(0.6827, abs=5 * 0.466 / sqrt(found.size))


@pytest.mark.parametrize("activation", get_args(HiddenActivation))
def test_the_rule_goes_by_the_activation_unless_given(activation: HiddenActivation) -> None:
    rule = "he" if activation in ("relu", "leaky_relu", "gelu") else "xavier"

    by_default, given = drawn(activation=activation), drawn(activation=activation, initial_weights=rule)

    assert all(np.array_equal(by_default[name], given[name]) for name in given)


def test_zeros_and_biases_are_0() -> None:
    assert not any(values.any() for values in drawn(initial_weights="zeros").values())
    for rule in ("small", "xavier", "he"):
        assert {name for name, values in drawn(initial_weights=rule).items() if not values.any()} == {
            "layers.0.bias",
            "layers.1.bias",
        }


@pytest.mark.parametrize("rule", ["small", "xavier", "he"])
def test_weights_are_a_function_of_seed_and_layer_rounded_to_the_models_precision(rule: str) -> None:
    single, double = drawn(initial_weights=rule), drawn(initial_weights=rule, dtype="float64")
    other = drawn(8, initial_weights=rule)
    without_the_last = drawn(sizes=(*SIZES[:2], 10), initial_weights="small")

    for name in ("layers.0.weight", "layers.1.weight"):
        assert single[name].dtype == np.float32
        assert np.array_equal(single[name], double[name].astype(np.float32))
        assert not np.array_equal(single[name], other[name])
    assert np.array_equal(without_the_last["layers.0.weight"], drawn(initial_weights="small")["layers.0.weight"])
    square = drawn(sizes=(20, 20, 20), initial_weights=rule)
    assert not np.array_equal(square["layers.0.weight"], square["layers.1.weight"])
