"""Slices that are worked on together have the bits of slices worked on one by one."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.arrays import Floats, totals, totals_and_squares
from worker.batch import Batch
from worker.blas import one_thread
from worker.gradients import chunks
from worker.model import Layout, ModelSpec
from worker.network import ErrorSums, Network
from worker.tree import Additions, additions, finish, root


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def in_tree(slices: int) -> Additions:
    return additions(root(slices), slices, {(0, place): place for place in range(slices)})


def fill(batch: Batch, x_RI: Floats, t_RO: Floats) -> Batch:
    np.copyto(batch.x_RI, x_RI)
    for target, (first, last) in zip(batch.targets, pairwise(batch.bounds), strict=True):
        np.copyto(target.t_OB, t_RO[first:last].T)
    return batch


def one_by_one(
    network: Network, weights_P: Floats, x_RI: Floats, t_RO: Floats, bounds: tuple[int, ...]
) -> tuple[Floats, ErrorSums]:
    parts: dict[tuple[int, int], tuple[Floats, ErrorSums]] = {}
    for place, (first, last) in enumerate(pairwise(bounds)):
        gradient_P = np.empty_like(weights_P)
        errors = network.gradient_sum(weights_P, x_RI[first:last], t_RO[first:last], gradient_P)
        parts[0, place] = gradient_P, errors
    summed = finish(parts, len(parts), lambda left, right: (left[0] + right[0], left[1] + right[1]))
    assert summed is not None
    return summed


MODELS: list[tuple[dict[str, Any], int, int]] = [
    ({"task": "classification", "hidden": (33, 7)}, 19, 5),
    ({"task": "classification", "hidden": (64,), "activation": "tanh", "bias": False}, 3, 2),
    ({"task": "classification", "hidden": (300,), "activation": "gelu", "output": "sigmoid"}, 28, 300),
    ({"task": "binary", "hidden": (1,), "activation": "sigmoid"}, 1, 1),
    ({"task": "regression", "hidden": (257, 129), "activation": "leaky_relu", "loss": "huber"}, 100, 2),
    ({"task": "regression", "output": "softmax", "loss": "squared_error", "dtype": "float64"}, 6, 4),
]


@pytest.mark.parametrize(("spec", "inputs", "outputs"), MODELS)
@pytest.mark.parametrize("sizes", [(1, 1), (16, 16, 16, 16), (63, 62, 62, 63), (2, 2, 1, 1, 1, 1, 2, 2), (128,), (50, 49)])
def test_slices_together_have_the_bits_of_slices_one_by_one(
    spec: dict[str, Any], inputs: int, outputs: int, sizes: tuple[int, ...]
) -> None:
    network = Network(ModelSpec(**spec), inputs, outputs)
    draws, rows, dtype = np.random.default_rng(4), sum(sizes), network.spec.dtype
    weights_P = draws.normal(0, 0.4, network.layout.size).astype(dtype)
    x_RI = draws.normal(size=(rows, inputs)).astype(dtype)
    t_RO = draws.integers(0, 2, (rows, outputs)).astype(dtype)
    batch = fill(network.batch(sizes), x_RI, t_RO)
    gradient_P = np.full_like(weights_P, np.nan)

    errors = network.gradient_sums(weights_P, batch, in_tree(len(sizes)), gradient_P)

    expected_P, expected = one_by_one(network, weights_P, x_RI, t_RO, batch.bounds)
    assert gradient_P.tobytes() == expected_P.tobytes()
    assert errors == expected


@pytest.mark.parametrize("block", [3, 4096, 4097])
def test_totals_of_a_block_do_not_depend_on_its_neighbours(block: int) -> None:
    values = np.random.default_rng(5).normal(size=(5, 1, block)).astype("float32")

    for sums in (totals, totals_and_squares):
        together, alone = sums(values), [sums(part[np.newaxis])[0].tolist() for part in values]
        assert together.tolist() == alone
    assert totals(values).dtype == np.float64


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5), bias=st.booleans(), most=st.integers(1, 900))
def test_chunks_cover_each_parameter_once_and_in_order(sizes: list[int], bias: bool, most: int) -> None:
    layout = Layout(tuple(sizes), bias=bias)

    found = chunks(layout, most)

    covered = np.zeros(layout.size, int)
    for chunk in found:
        assert chunk.stop - chunk.start <= max(most, max(sizes))
        for piece in chunk.pieces:
            slot = layout.slots[piece.layer * (2 if bias else 1) + (not piece.is_weight)]
            start = chunk.start + piece.start
            assert start == slot.offset + piece.outputs.start * slot.width
            assert piece.size == (piece.outputs.stop - piece.outputs.start) * slot.width
            covered[start : start + piece.size] += 1
    assert (covered == 1).all()
    assert [chunk.start for chunk in found[1:]] == [chunk.stop for chunk in found[:-1]]


def test_a_large_layer_is_computed_in_the_same_chunks_for_any_number_of_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.gradients.CHUNK", 1000)
    network = Network(ModelSpec(task="regression", hidden=(90, 70)), 50, 3)
    draws = np.random.default_rng(6)
    weights_P = draws.normal(0, 0.3, network.layout.size).astype("float32")
    x_RI, t_RO = draws.normal(size=(60, 50)).astype("float32"), draws.normal(size=(60, 3)).astype("float32")
    batch = fill(network.batch((20, 20, 20)), x_RI, t_RO)
    gradient_P = np.full_like(weights_P, np.nan)

    network.gradient_sums(weights_P, batch, in_tree(3), gradient_P)

    expected_P, _ = one_by_one(network, weights_P, x_RI, t_RO, batch.bounds)
    assert gradient_P.tobytes() == expected_P.tobytes()
