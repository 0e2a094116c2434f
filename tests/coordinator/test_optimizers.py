from pathlib import Path

import numpy as np
import pytest

from coordinator.optimizers import (
    DEFAULTS,
    OptimizerSpec,
    Step,
    Transform,
    add_decayed_weights,
    chain,
    make_optimizer,
    scale_by_learning_rate,
)
from coordinator.update import Parameters, PartialSums, Updated, Updater
from worker.arrays import Floats
from worker.errors import JobError
from worker.model import Layout, ModelSpec

ORACLE = np.load(Path(__file__).parents[1] / "data" / "optimizers.npz")
TRANSFORMS = {name: make_optimizer(OptimizerSpec(name=name, learning_rate=0.05)) for name in DEFAULTS} | {
    "sgd_weight_decay": chain(add_decayed_weights(0.01), scale_by_learning_rate())
}
CONSTANTS = sorted({key for defaults in DEFAULTS.values() for key in defaults})


def trajectory(transform: Transform, weights: Floats, gradients: Floats) -> Floats:
    state, visited = transform.init(weights), []
    for number, gradient in enumerate(gradients, 1):
        updates, state = transform.update(gradient, state, weights, Step(number, 0.05))
        weights = weights + updates
        visited.append(weights)
    return np.array(visited)


def test_the_oracle_covers_every_optimizer() -> None:
    assert set(TRANSFORMS) == set(ORACLE) - {"initial", "gradients"} - {key for key in ORACLE if key.startswith("clip/")}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_step_is_where_the_oracle_is(name: str) -> None:
    found = trajectory(TRANSFORMS[name], ORACLE["initial"], ORACLE["gradients"])

    np.testing.assert_allclose(found, ORACLE[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_changes_none_of_its_arguments(name: str) -> None:
    transform, weights, gradient = TRANSFORMS[name], ORACLE["initial"], ORACLE["gradients"][0]
    _, state = transform.update(gradient, transform.init(weights), weights, Step(1, 0.05))
    for array in (weights, gradient, *state.values()):
        array.setflags(write=False)

    transform.update(gradient, state, weights, Step(2, 0.05))


def test_clipping_scales_all_arrays_by_their_global_norm() -> None:
    before, after = (np.concatenate([ORACLE[f"clip/{when}.{i}"].ravel() for i in (0, 1)]) for when in ("before", "after"))
    spec = OptimizerSpec(name="sgd", learning_rate=1.0, clip_norm=1.5)
    updater = Updater(spec, ModelSpec(task="regression", dtype="float64"), Layout((10, 1), bias=False))

    updated = updater.update(
        updater.start(np.zeros(10)), PartialSums([4 * before]), 4, Step(1, 1.0), Parameters(np.empty(10), {})
    )

    assert isinstance(updated, Updated)
    np.testing.assert_allclose(-updated.parameters.weights_P, after, rtol=0, atol=1e-12)
    assert updated.gradient_norm == pytest.approx(float(np.linalg.norm(before)), rel=1e-14)


@pytest.mark.parametrize("key", CONSTANTS)
@pytest.mark.parametrize("name", DEFAULTS)
def test_a_constant_is_taken_by_the_optimizers_that_use_it_and_refused_by_the_others(name: str, key: str) -> None:
    if key in DEFAULTS[name]:
        assert OptimizerSpec(name=name, **{key: 0.25}).constant(key) == 0.25
        assert OptimizerSpec(name=name).constant(key) == DEFAULTS[name][key]
    else:
        with pytest.raises(JobError, match=f"^optimizer.{key}: {name} has no {key}; .* use .+$"):
            OptimizerSpec(name=name, **{key: 0.25})


def test_a_constant_of_zero_is_not_taken_for_none() -> None:
    assert OptimizerSpec(name="momentum", momentum=0.0).constant("momentum") == 0.0
