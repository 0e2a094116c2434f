from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from worker.order import ShardOrder
from worker.sharding import ShardPlan, Window


@st.composite
def plans(draw: st.DrawFn) -> ShardPlan:
    """Draws plans with a window, and pieces cut anywhere."""
    training, held_out = draw(st.integers(1, 200)), draw(st.one_of(st.just(0), st.integers(0, 100)))
    rows = training + held_out
    return ShardPlan(
        rows=rows,
        validation_rows=held_out,
        shards=draw(st.integers(1, min(training, 9))),
        batch_size=draw(st.integers(1, 50)),
        seed=draw(st.integers(0, 2**63)),
        window=Window(draw(st.integers(1, 60)), tuple(sorted(draw(st.sets(st.integers(1, rows), max_size=12))))),
    )


def ranks(order: ShardOrder, epoch: int) -> list[int]:
    return [rank for window in range(order.windows) for rank in order.ranks(epoch, window).tolist()]


def pieces_of(plan: ShardPlan, shard: int) -> list[set[int]]:
    """Returns the ranks of each piece's training rows, by counting them one by one."""
    start, stop = plan.shard_range(shard)
    training = plan.holdout(shard).split()[0].tolist()
    assert plan.window is not None
    bounds = [start, *(cut for cut in plan.window.cuts if start < cut < stop), stop]
    return [{rank for rank, row in enumerate(training) if first <= start + row < last} for first, last in pairwise(bounds)]


@given(plan=plans(), epoch=st.integers(0, 5))
def test_every_training_row_is_used_exactly_once_an_epoch(plan: ShardPlan, epoch: int) -> None:
    for shard in range(plan.shards):
        order = ShardOrder(plan, shard)

        assert order.rows == plan.shard_training_rows(shard)
        assert sorted(ranks(order, epoch)) == list(range(order.rows))


@given(plan=plans(), epoch=st.integers(0, 3), data=st.data())
def test_windows_are_shuffled_parts_of_the_pieces_put_in_a_row(plan: ShardPlan, epoch: int, data: st.DataObject) -> None:
    shard = data.draw(st.integers(0, plan.shards - 1))
    order = ShardOrder(plan, shard)
    in_a_row = [rank for begin, end in order.ranges(epoch, 0) for rank in range(begin, end)]
    pieces = [piece for piece in pieces_of(plan, shard) if piece]

    assert sorted(map(min, pieces)) == sorted(begin for begin, _ in order.ranges(epoch, 0))
    assert all(set(range(begin, end)) in pieces for begin, end in order.ranges(epoch, 0))
    for window in range(order.windows):
        first, last = order.window_range(window)
        found = order.ranks(epoch, window).tolist()
        assert last - first == order.window_rows or window == order.windows - 1
        assert sorted(found) == sorted(in_a_row[first:last])
        assert found == np.array(in_a_row[first:last])[order.shuffled(epoch, window)].tolist()


@given(plan=plans(), epoch=st.integers(0, 3), data=st.data())
def test_reading_may_begin_anywhere(plan: ShardPlan, epoch: int, data: st.DataObject) -> None:
    order = ShardOrder(plan, data.draw(st.integers(0, plan.shards - 1)))
    first = data.draw(st.integers(0, order.rows))

    in_a_row, rest = ([rank for begin, end in order.ranges(epoch, start) for rank in range(begin, end)] for start in (0, first))

    assert rest == in_a_row[first:]


@given(plan=plans(), data=st.data())
def test_the_parts_of_a_slice_are_its_places_window_by_window(plan: ShardPlan, data: st.DataObject) -> None:
    order = ShardOrder(plan, data.draw(st.integers(0, plan.shards - 1)))
    first = data.draw(st.integers(0, order.rows))
    last = data.draw(st.integers(first, order.rows))

    parts = list(order.parts(first, last))

    assert [part.window * order.window_rows + place for part in parts for place in range(part.first, part.last)] == list(
        range(first, last)
    )
    assert all(0 <= part.first < part.last <= order.window_rows for part in parts)


@given(plan=plans(), epoch=st.integers(0, 3))
def test_one_window_of_one_piece_is_the_full_shuffle(plan: ShardPlan, epoch: int) -> None:
    for shard in range(plan.shards):
        whole = ShardOrder(replace(plan, window=Window(plan.rows, ())), shard)
        full = ShardOrder(replace(plan, window=None), shard)

        assert full.windows == whole.windows == 1
        assert ranks(whole, epoch) == ranks(full, epoch)


def test_pieces_and_windows_are_shuffled_anew_by_seed_epoch_and_shard() -> None:
    plan = ShardPlan(rows=400, validation_rows=0, shards=2, batch_size=8, seed=1, window=Window(40, tuple(range(20, 400, 20))))
    orders = [
        ranks(ShardOrder(replace(plan, seed=seed), shard), epoch) for seed in (1, 2) for shard in (0, 1) for epoch in (0, 1)
    ]
    windows = [ShardOrder(plan, 0).shuffled(0, window).tolist() for window in range(5)]

    assert len(set(map(tuple, orders))) == len(orders)
    assert len(set(map(tuple, windows))) == len(windows)
    # Pieces that are far apart in the data meet in a window.
    assert any(np.ptp(ShardOrder(plan, 0).ranks(0, window)) > 60 for window in range(5))
