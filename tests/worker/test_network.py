import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from worker.arrays import Floats
from worker.errors import JobError
from worker.model import HiddenActivation, LossName, ModelSpec, OutputActivation, Task
from worker.network import ErrorSums, Network
from worker.streams import Purpose, stream

ORACLE = np.load(Path(__file__).parents[1] / "data" / "gradients.npz")
CASES = sorted({key.partition("/")[0] for key in ORACLE})
HIDDEN = get_args(HiddenActivation)


def allowed(task: Task, output: OutputActivation, loss: LossName) -> bool:
    """Whether loss, output and task make sense together: logarithms need probabilities, cross-entropy needs several classes."""
    if loss == "cross_entropy":
        return task == "classification" and output in ("softmax", "sigmoid")
    if task == "binary" and output == "softmax":
        return False
    return loss != "binary_cross_entropy" or output in ("softmax", "sigmoid")


PAIRINGS = [
    (task, output, loss) for task in get_args(Task) for output in get_args(OutputActivation) for loss in get_args(LossName)
]


def central_differences(loss: Callable[[Floats], float], weights_P: Floats, step: float = 1e-5) -> Floats:
    slopes = []
    for place in range(len(weights_P)):
        bumped_P = weights_P.copy()
        bumped_P[place] = weights_P[place] + step
        above = loss(bumped_P)
        bumped_P[place] = weights_P[place] - step
        slopes.append((above - loss(bumped_P)) / (2 * step))
    return np.array(slopes)


def slopes_of_the_loss(network: Network, weights_P: Floats, x_BI: Floats, t_BO: Floats) -> Floats:
    return central_differences(lambda bumped_P: network.errors(bumped_P, x_BI, t_BO).loss, weights_P)


def relative_error(found: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def random_targets(spec: ModelSpec, rows: int, outputs: int, draws: np.random.Generator) -> Floats:
    if spec.task == "classification":
        return np.eye(outputs, dtype=spec.dtype)[np.arange(rows) % outputs]
    if spec.task == "binary":
        return (np.arange(rows)[:, None] % 2).astype(spec.dtype)
    values_BO = (
        draws.uniform(size=(rows, outputs)) if spec.loss_name == "binary_cross_entropy" else draws.normal(size=(rows, outputs))
    )
    return values_BO.astype(spec.dtype)


def random_rows(network: Network, rows: int, seed: int = 3) -> tuple[Floats, Floats, Floats]:
    """Returns weights (P,), inputs (B, I) and targets (B, O)."""
    draws, dtype = np.random.default_rng(seed), network.spec.dtype
    weights_P = draws.normal(0, 0.7, network.layout.size).astype(dtype)
    x_BI = draws.normal(size=(rows, network.inputs)).astype(dtype)
    return weights_P, x_BI, random_targets(network.spec, rows, network.outputs, draws)


def gradient_of(network: Network, weights_P: Floats, x_BI: Floats, t_BO: Floats, **options: Any) -> tuple[Floats, ErrorSums]:
    gradient_P = np.full_like(weights_P, np.nan)
    errors = network.gradient_sum(weights_P, x_BI, t_BO, gradient_P, **options)
    return gradient_P, errors


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize(("task", "output", "loss"), [pairing for pairing in PAIRINGS if allowed(*pairing)])
def test_the_gradient_of_every_pairing_is_that_of_central_differences(
    task: Task, output: OutputActivation, loss: LossName, hidden: HiddenActivation
) -> None:
    for bias in (True, False):
        spec = ModelSpec(
            task=task, hidden=(4, 3), activation=hidden, output=output, loss=loss, huber_delta=0.4, bias=bias, dtype="float64"
        )
        network = Network(spec, 3, 1 if task == "binary" else 3)
        weights_P, x_BI, t_BO = random_rows(network, 6)

        gradient_P, errors = gradient_of(network, weights_P, x_BI, t_BO)

        assert relative_error(gradient_P, slopes_of_the_loss(network, weights_P, x_BI, t_BO)) < 1e-6
        assert errors == network.errors(weights_P, x_BI, t_BO)


ROW_WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0, 3.25, 1e-3])


@pytest.mark.parametrize(("task", "output", "loss"), [pairing for pairing in PAIRINGS if allowed(*pairing)])
def test_the_gradient_of_weighted_rows_is_that_of_central_differences(
    task: Task, output: OutputActivation, loss: LossName
) -> None:
    spec = ModelSpec(task=task, hidden=(4, 3), activation="tanh", output=output, loss=loss, huber_delta=0.4, dtype="float64")
    network = Network(spec, 3, 1 if task == "binary" else 3, weighted=True)
    weights_P, x_BI, t_BO = random_rows(network, 6)

    gradient_P, errors = gradient_of(network, weights_P, x_BI, t_BO, w_B=ROW_WEIGHTS)
    slopes_P = central_differences(lambda bumped_P: network.errors(bumped_P, x_BI, t_BO, ROW_WEIGHTS).loss, weights_P)

    assert relative_error(gradient_P, slopes_P) < 1e-6
    assert (errors.rows, errors.weight) == (6, ROW_WEIGHTS.sum())


@pytest.mark.parametrize(("task", "output", "loss"), [pairing for pairing in PAIRINGS if allowed(*pairing)])
def test_a_row_of_weight_2_counts_like_two_rows_and_one_of_weight_0_like_none(
    task: Task, output: OutputActivation, loss: LossName
) -> None:
    spec = ModelSpec(task=task, hidden=(4,), output=output, loss=loss, dtype="float64")
    outputs = 1 if task == "binary" else 3
    plain, weighted = Network(spec, 3, outputs), Network(spec, 3, outputs, weighted=True)
    weights_P, x_BI, t_BO = random_rows(plain, 4)
    repeated = [0, 1, 1, 3, 3, 3]

    gradient_P, errors = gradient_of(weighted, weights_P, x_BI, t_BO, w_B=np.array([1.0, 2.0, 0.0, 3.0]))
    expected_P, expected = gradient_of(plain, weights_P, x_BI[repeated], t_BO[repeated])

    np.testing.assert_allclose(gradient_P, expected_P, rtol=1e-12, atol=1e-14)
    assert (errors.rows, errors.weight) == (4, expected.weight)
    for found, wanted in zip(asdict(errors).values(), asdict(replace(expected, rows=4)).values(), strict=True):
        assert found is wanted is None or found == pytest.approx(wanted, rel=1e-12)


def test_errors_are_in_the_units_of_the_targets_and_the_loss_is_not() -> None:
    spec = ModelSpec(task="regression", hidden=(4,), dtype="float64")
    plain, scaled = Network(spec, 3, 2), Network(spec, 3, 2, [10.0, 0.5])
    weights_P, x_BI, t_BO = random_rows(plain, 6)
    error_BO = np.abs(plain.predict(weights_P, x_BI) - t_BO) * [10.0, 0.5]

    errors = scaled.errors(weights_P, x_BI, t_BO)

    assert errors.loss == plain.errors(weights_P, x_BI, t_BO).loss
    assert (errors.absolute, errors.squared) == pytest.approx((error_BO.sum(), np.square(error_BO).sum()))
    assert np.array_equal(gradient_of(scaled, weights_P, x_BI, t_BO)[0], gradient_of(plain, weights_P, x_BI, t_BO)[0])


@pytest.mark.parametrize(("task", "output", "loss"), [pairing for pairing in PAIRINGS if not allowed(*pairing)])
def test_a_pairing_that_can_mean_nothing_is_refused(task: Task, output: OutputActivation, loss: LossName) -> None:
    with pytest.raises(JobError, match=r"^model\.(output|loss): .*use ") as caught:
        ModelSpec(task=task, output=output, loss=loss)

    assert caught.value.key in ("model.output", "model.loss")


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber", "binary_cross_entropy"])
def test_softmax_over_one_output_is_refused(loss: LossName) -> None:
    with pytest.raises(JobError, match=r"^model\.output: softmax over one output is always 1"):
        Network(ModelSpec(task="regression", output="softmax", loss=loss), 3, 1)


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_gradient_of_a_linear_model_is_that_of_central_differences(outputs: int) -> None:
    network = Network(ModelSpec(task="regression", dtype="float64"), 4, outputs)
    weights_P, x_BI, t_BO = random_rows(network, 6)

    gradient_P, _ = gradient_of(network, weights_P, x_BI, t_BO)

    assert relative_error(gradient_P, slopes_of_the_loss(network, weights_P, x_BI, t_BO)) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_outputs_losses_and_gradients_are_those_of_the_oracle(case: str) -> None:
    hidden, output, loss = case.split("-")
    task = {"cross_entropy": "classification", "binary_cross_entropy": "binary"}.get(loss, "regression")
    spec = ModelSpec(task=task, hidden=(7, 6), activation=hidden, output=output, loss=loss, dtype="float64")
    known = {key.removeprefix(f"{case}/"): ORACLE[key] for key in ORACLE if key.startswith(f"{case}/")}
    outputs = known["outputs"].shape[1]
    network = Network(spec, 5, outputs)
    weights_P = np.concatenate([known[slot.name].ravel() for slot in network.layout.slots])
    t_BO = np.eye(outputs)[known["targets"].astype(int)] if task == "classification" else known["targets"].reshape(11, outputs)

    gradient_P, errors = gradient_of(network, weights_P, known["inputs"], t_BO)

    expected_P = np.concatenate([known[f"grad/{slot.name}"].ravel() for slot in network.layout.slots])
    assert relative_error(gradient_P, expected_P) < 1e-12
    assert relative_error(network.predict(weights_P, known["inputs"]), known["outputs"]) < 1e-12
    assert errors.loss == pytest.approx(float(known["loss_sum"]), rel=1e-12)


def test_the_oracle_has_every_hidden_activation_and_loss() -> None:
    hidden, _, losses = (set(names) for names in zip(*(case.split("-") for case in CASES), strict=True))

    assert (len(CASES), hidden, losses) == (66, set(HIDDEN), set(get_args(LossName)))


@pytest.mark.parametrize(("task", "outputs"), [("classification", 3), ("binary", 1), ("regression", 2)])
def test_error_sums_are_plain_sums_over_rows_and_outputs(task: Task, outputs: int) -> None:
    network = Network(ModelSpec(task=task, hidden=(5,), dtype="float64"), 4, outputs)
    weights_P, x_BI, t_BO = random_rows(network, 40)
    a_BO = network.predict(weights_P, x_BI).copy()

    errors = network.errors(weights_P, x_BI, t_BO)

    halves = network.errors(weights_P, x_BI[:13], t_BO[:13]) + network.errors(weights_P, x_BI[13:], t_BO[13:])
    wrong = {
        "classification": int((a_BO.argmax(axis=1) != t_BO.argmax(axis=1)).sum()),
        "binary": int(((a_BO > 0.5) != (t_BO > 0.5)).sum()),
        "regression": None,
    }[task]
    for found in (errors, halves):
        assert (found.rows, found.outputs, found.wrong) == (40, outputs, wrong)
        assert found.absolute == pytest.approx(np.abs(a_BO - t_BO).sum())
        assert found.squared == pytest.approx(np.square(a_BO - t_BO).sum())
        assert found.loss == pytest.approx(errors.loss)
    assert wrong is None or 0 < wrong < 40


def test_sums_of_float32_errors_are_float64() -> None:
    network = Network(ModelSpec(task="regression", initial_weights="zeros"), 1, 1)
    errors = network.errors(np.zeros(2, np.float32), np.zeros((30_001, 1), np.float32), np.full((30_001, 1), 0.1, np.float32))

    assert errors.absolute == pytest.approx(30_001 * float(np.float32(0.1)), rel=1e-14)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_reused_buffers_carry_nothing_over_from_larger_or_smaller_slices(hidden: HiddenActivation, dropout: float) -> None:
    spec = ModelSpec(task="classification", hidden=(6, 5), activation=hidden, dropout=dropout)
    used = Network(spec, 4, 3)
    for number, rows in enumerate((7, 3, 11, 1, 7)):
        fresh = Network(spec, 4, 3)
        found, expected = (
            gradient_of(
                network,
                *random_rows(network, rows, seed=number),
                dropout=stream(1, Purpose.DROPOUT, number, 0) if dropout else None,
            )
            for network in (used, fresh)
        )
        assert found[0].tobytes() == expected[0].tobytes()
        assert found[1] == expected[1]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_slice_allocates_nothing_of_its_size_once_the_buffers_are_there(hidden: HiddenActivation, dropout: float) -> None:
    network = Network(ModelSpec(task="classification", hidden=(64, 64), activation=hidden, dropout=dropout), 64, 4)
    weights_P, x_BI, t_BO = random_rows(network, 4096)
    gradient_P = np.empty_like(weights_P)
    draws = stream(1, Purpose.DROPOUT, 0, 0) if dropout else None
    network.gradient_sum(weights_P, x_BI, t_BO, gradient_P, draws)
    tracemalloc.start()
    try:
        network.gradient_sum(weights_P, x_BI, t_BO, gradient_P, draws)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < x_BI.nbytes / 4


@pytest.mark.parametrize("hidden", HIDDEN)
def test_the_gradient_with_dropout_is_that_of_central_differences_with_the_same_units_dropped(hidden: HiddenActivation) -> None:
    spec = ModelSpec(task="regression", hidden=(5, 4), activation=hidden, dropout=0.4, dtype="float64")
    network = Network(spec, 3, 2)
    weights_P, x_BI, t_BO = random_rows(network, 6)

    def draws() -> np.random.Generator:
        return stream(3, Purpose.DROPOUT, 8, 2)

    gradient_P, _ = gradient_of(network, weights_P, x_BI, t_BO, dropout=draws())

    def loss(bumped_P: Floats) -> float:
        return network.gradient_sum(bumped_P, x_BI, t_BO, np.empty_like(bumped_P), draws()).loss

    assert relative_error(gradient_P, central_differences(loss, weights_P)) < 1e-6
    assert relative_error(gradient_P, gradient_of(network, weights_P, x_BI, t_BO)[0]) > 0.01


def test_dropout_drops_its_share_of_units_and_keeps_the_expected_output() -> None:
    # Each of 8 hidden units is 1, so the only output is the mean of the kept units' scaled values, and |a - 0| its size.
    share, rows = 0.25, 20_000
    network = Network(ModelSpec(task="regression", hidden=(8,), activation="identity", bias=False, dropout=share), 1, 1)
    weights_P = np.concatenate([np.ones(8), np.full(8, 1 / 8)]).astype(np.float32)
    x_BI, t_BO = np.ones((rows, 1), np.float32), np.zeros((rows, 1), np.float32)

    _, errors = gradient_of(network, weights_P, x_BI, t_BO, dropout=stream(1, Purpose.DROPOUT, 0, 0))

    variance = share / (1 - share) / 8
    spread = np.sqrt(variance / rows)
    assert errors.absolute / rows == pytest.approx(1.0, abs=5 * spread)
    assert errors.squared / rows - 1 == pytest.approx(variance, rel=0.1)
    assert network.errors(weights_P, x_BI, t_BO).absolute == rows
