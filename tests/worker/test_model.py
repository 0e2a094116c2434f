from typing import Any

import numpy as np
import pytest

from worker.errors import JobError
from worker.model import Layout, ModelSpec


def test_parameters_are_named_shaped_and_ordered_like_a_sequential_of_linear_layers() -> None:
    layout = Layout((5, 7, 3), bias=True)

    assert [(slot.name, slot.shape, slot.is_weight) for slot in layout.slots] == [
        ("layers.0.weight", (7, 5), True),
        ("layers.0.bias", (7,), False),
        ("layers.1.weight", (3, 7), True),
        ("layers.1.bias", (3,), False),
    ]
    assert layout.size == 7 * 5 + 7 + 3 * 7 + 3


@pytest.mark.parametrize("bias", [True, False])
def test_views_share_the_flat_vectors_memory_and_cover_it_once(bias: bool) -> None:
    layout = Layout((4, 3, 2, 1), bias=bias)
    flat_P = np.zeros(layout.size)
    for view in layout.views(flat_P).values():
        view += 1

    assert (flat_P == 1).all()
    assert [name for name in layout.views(flat_P) if name.endswith("bias")] == (
        ["layers.0.bias", "layers.1.bias", "layers.2.bias"] if bias else []
    )


@pytest.mark.parametrize(
    ("task", "output", "loss"),
    [
        ("classification", "softmax", "cross_entropy"),
        ("binary", "sigmoid", "binary_cross_entropy"),
        ("regression", "identity", "squared_error"),
    ],
)
def test_output_and_loss_are_the_tasks_unless_given(task: Any, output: str, loss: str) -> None:
    assert (ModelSpec(task=task).output_name, ModelSpec(task=task).loss_name) == (output, loss)
    given = ModelSpec(task=task, output="sigmoid", loss="huber")
    assert (given.output_name, given.loss_name) == ("sigmoid", "huber")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"hidden": (3, 0)}, "model.hidden[1]"),
        ({"huber_delta": 0.0}, "model.huber_delta"),
        ({"huber_delta": float("nan")}, "model.huber_delta"),
        ({"huber_delta": float("inf")}, "model.huber_delta"),
        ({"l2": -0.1}, "model.l2"),
        ({"l2": float("nan")}, "model.l2"),
        ({"hidden": (3,), "dropout": 1.0}, "model.dropout"),
        ({"hidden": (3,), "dropout": -0.1}, "model.dropout"),
        ({"hidden": (3,), "dropout": float("nan")}, "model.dropout"),
        ({"dropout": 0.5}, "model.dropout"),
        ({"initial_weights": "glorot"}, "model.initial_weights"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(options: dict[str, Any], key: str) -> None:
    with pytest.raises(JobError) as caught:
        ModelSpec(task="regression", **options)

    assert caught.value.key == key


def test_initial_weights_are_a_rule_or_a_file() -> None:
    assert ModelSpec(task="regression", initial_weights="before.safetensors").reads_initial_weights
    assert not ModelSpec(task="regression", initial_weights="he").reads_initial_weights
    assert not ModelSpec(task="regression").reads_initial_weights
