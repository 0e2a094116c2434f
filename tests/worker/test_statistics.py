from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worker.arrays import Floats
from worker.statistics import Counts, Spread, Statistics

TABLES = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=30),
    elements=st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))),
)
TINY = 1e-300  # below it, float64 has fewer digits than are asked for
CUTS = st.lists(st.integers(1, 29), unique=True).map(sorted)


def parts_of(values: Floats, cuts: list[int]) -> list[Floats]:
    return np.split(values, [cut for cut in cuts if cut < len(values)])


@given(values=TABLES, cuts=CUTS)
def test_statistics_of_parts_add_up_to_those_of_all_rows(values: Floats, cuts: list[int]) -> None:
    merged = reduce(Statistics.__add__, [Statistics.of(part) for part in parts_of(values, cuts)])

    assert merged.rows == len(values)
    for place, column in enumerate(values.T):
        present = column[~np.isnan(column)]
        assert merged.count_V[place] == len(present)
        if not len(present):
            assert (merged.low_V[place], merged.high_V[place]) == (np.inf, -np.inf)
            continue
        assert (merged.low_V[place], merged.high_V[place]) == (present.min(), present.max())
        size = np.abs(present).max()
        np.testing.assert_allclose(merged.mean_V[place], present.mean(), rtol=1e-12, atol=1e-12 * size + TINY)
        np.testing.assert_allclose(merged.squares_V[place], present.var() * len(present), rtol=1e-9, atol=1e-12 * size**2 + TINY)


def test_statistics_far_from_0_keep_their_precision() -> None:
    values = 1e8 + np.random.default_rng(1).normal(size=(900, 1))

    merged = reduce(Statistics.__add__, [Statistics.of(part) for part in np.split(values, 9)])

    assert merged.squares_V / 900 == pytest.approx(values.var(axis=0), rel=1e-6)


@pytest.mark.parametrize("values", [np.array([[3, 200], [1, 0]], np.uint8), np.array([[True, False], [True, True]])])
def test_whole_numbers_and_booleans_count_as_numbers(values: np.ndarray) -> None:
    found = Statistics.of(values)

    assert found.mean_V.tolist() == values.astype(float).mean(axis=0).tolist()
    assert found.squares_V.tolist() == (values.astype(float).var(axis=0) * 2).tolist()


@given(values=hnp.arrays(np.float64, st.integers(1, 60), elements=st.integers(-8192, 8192).map(float)), cuts=CUTS)
def test_the_median_of_whole_numbers_is_exact_however_they_are_cut(values: Floats, cuts: list[int]) -> None:
    spreads = [Spread.of(part) for part in parts_of(values, cuts)]

    assert reduce(Spread.__add__, spreads).median == np.median(values)
    assert reduce(Spread.__add__, reversed(spreads)).median == np.median(values)


@given(values=hnp.arrays(np.float64, st.integers(0, 40).map(lambda half: 2 * half + 1), elements=st.floats(1e-9, 1e12)))
def test_the_median_of_any_numbers_is_right_to_0_013_percent(values: Floats) -> None:
    assert Spread.of(values).median == pytest.approx(np.median(values), rel=0.5**13)
    assert Spread.of(-values).median == -Spread.of(values).median


@given(values=TABLES, cuts=CUTS)
def test_medians_leave_out_what_is_missing(values: Floats, cuts: list[int]) -> None:
    merged = reduce(Statistics.__add__, [Statistics.of(part, median=True) for part in parts_of(values, cuts)])

    assert merged.spread is not None
    assert [spread.counts.sum() for spread in merged.spread] == merged.count_V.tolist()


def test_counts_add_up_and_rank_the_frequent_before_the_first_in_order() -> None:
    counts = Counts({"b": 2, "a": 1}, 1) + Counts({"c": 1, "b": 1, "d": 2})

    assert counts == Counts({"b": 3, "a": 1, "c": 1, "d": 2}, 1)
    assert (counts.rows, counts.labels) == (8, ("a", "b", "c", "d"))
    assert [counts.most_frequent(most) for most in (1, 2, 3, 9)] == [("b",), ("b", "d"), ("a", "b", "d"), ("a", "b", "c", "d")]
