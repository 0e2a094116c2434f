from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.order import ShardOrder
from worker.sharding import ShardPlan, part_range


@st.composite
def plans(draw: st.DrawFn) -> ShardPlan:
    training = draw(st.integers(1, 400))
    held_out = draw(st.one_of(st.just(0), st.integers(0, 200)))
    return ShardPlan(
        rows=training + held_out,
        validation_rows=held_out,
        shards=draw(st.integers(1, min(training, 40))),
        batch_size=draw(st.one_of(st.just(1), st.integers(1, 500))),
        seed=draw(st.integers(0, 2**63)),
    )


def order(plan: ShardPlan, epoch: int, shard: int) -> list[int]:
    """Returns the shard's training rows in the order in which they are used."""
    of_shard = ShardOrder(plan, shard)
    return [rank for window in range(of_shard.windows) for rank in of_shard.ranks(epoch, window).tolist()]


def slice_sizes(plan: ShardPlan) -> list[list[int]]:
    """Returns the rows of each slice, by round and shard."""
    ranges = [[plan.slice_range(t, shard) for shard in range(plan.shards)] for t in range(plan.rounds_per_epoch)]
    return [[last - first for first, last in of_round] for of_round in ranges]


@given(plan=plans(), epoch=st.integers(0, 5))
def test_every_training_row_is_used_exactly_once_an_epoch(plan: ShardPlan, epoch: int) -> None:
    for shard in range(plan.shards):
        places = order(plan, epoch, shard)
        used = [row for t in range(plan.rounds_per_epoch) for row in places[slice(*plan.slice_range(t, shard))]]

        assert sorted(used) == list(range(plan.shard_training_rows(shard)))


@given(plan=plans())
def test_rounds_and_slices_are_even_and_no_round_is_empty_or_too_large(plan: ShardPlan) -> None:
    sizes = slice_sizes(plan)
    rounds = [sum(of_round) for of_round in sizes]

    assert len(rounds) == -(-plan.training_rows // plan.batch_size)
    assert sum(rounds) == plan.training_rows
    assert min(rounds) >= 1 and max(rounds) <= plan.batch_size
    assert max(rounds) - min(rounds) <= 1
    assert all(max(of_round) - min(of_round) <= 1 for of_round in sizes)


@given(plan=plans())
def test_row_j_of_shard_s_has_place_j_times_the_shards_plus_s(plan: ShardPlan) -> None:
    places = np.arange(plan.training_rows)
    bounds = [t * plan.training_rows // plan.rounds_per_epoch for t in range(plan.rounds_per_epoch + 1)]

    expected = [np.bincount(places[first:last] % plan.shards, minlength=plan.shards).tolist() for first, last in pairwise(bounds)]

    assert slice_sizes(plan) == expected


@given(plan=plans(), rounds=st.integers(0, 1000))
def test_the_rows_before_a_round_are_those_of_the_rounds_before_it(plan: ShardPlan, rounds: int) -> None:
    sizes = [sum(of_round) for of_round in slice_sizes(plan)]

    assert plan.rows_before(rounds) == sum(sizes[t % len(sizes)] for t in range(rounds))


@given(rows=st.integers(0, 10**6), parts=st.integers(1, 300))
def test_parts_are_equal_to_within_one_row_with_the_longer_ones_first(rows: int, parts: int) -> None:
    ranges = [part_range(rows, parts, part) for part in range(parts)]
    sizes = [last - first for first, last in ranges]

    assert [bound for found in ranges for bound in found] == [0, *(last for _, last in ranges[:-1] for _ in range(2)), rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@given(plan=plans())
def test_shards_are_contiguous_and_cover_the_dataset(plan: ShardPlan) -> None:
    ranges = [plan.shard_range(shard) for shard in range(plan.shards)]

    assert [row for first, last in ranges for row in range(first, last)] == list(range(plan.rows))


@given(plan=plans())
def test_a_validation_share_comes_out_of_every_shard_and_leaves_equal_parts_to_train_on(plan: ShardPlan) -> None:
    kept, held_out = zip(*(plan.holdout(shard).split() for shard in range(plan.shards)), strict=True)

    for shard in range(plan.shards):
        first, last = plan.shard_range(shard)
        assert np.array_equal(np.sort(np.concatenate([kept[shard], held_out[shard]])), np.arange(last - first))
        assert (np.diff(kept[shard]) > 0).all() and (np.diff(held_out[shard]) > 0).all()
        assert len(kept[shard]) == plan.shard_training_rows(shard)
    assert sorted(map(len, kept), reverse=True) == list(map(len, kept)) and len(kept[0]) - len(kept[-1]) <= 1
    assert sum(map(len, held_out)) == plan.validation_rows


@pytest.mark.parametrize(("rows", "held_out", "batch_size"), [(100, 20, 7), (101, 30, 64)])
def test_what_is_drawn_depends_on_seed_epoch_and_shard_alone(rows: int, held_out: int, batch_size: int) -> None:
    def plan(seed: int, batch_size: int = batch_size) -> ShardPlan:
        return ShardPlan(rows=rows, validation_rows=held_out, shards=4, batch_size=batch_size, seed=seed)

    once, again, other = plan(7), plan(7, batch_size=1), plan(8)
    orders = {(epoch, shard): order(once, epoch, shard) for epoch in range(3) for shard in range(4)}

    for epoch, shard in reversed(orders):  # asked for in another order
        assert order(again, epoch, shard) == orders[epoch, shard]
        assert order(other, epoch, shard) != orders[epoch, shard]
    assert len(set(map(tuple, orders.values()))) == len(orders)
    for shard in range(4):
        assert all(map(np.array_equal, once.holdout(shard).split(), again.holdout(shard).split()))
        assert not np.array_equal(once.holdout(shard).split()[1], other.holdout(shard).split()[1])
    assert len({once.holdout(shard).split()[1].tobytes() for shard in range(4)}) == 4
