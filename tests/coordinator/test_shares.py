"""Which shards go to whom."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.shares import deal_out, fill, parts, relieve
from worker.data import MOST_SHARDS
from worker.tree import cover

KINDS = st.lists(st.integers(1, 4), min_size=1, max_size=6)


@pytest.mark.parametrize(("shards", "count", "expected"), [(8, 3, [2, 3, 3]), (3, 4, [0, 1, 1, 1]), (0, 2, [0, 0])])
def test_parts_are_contiguous_and_even(shards: int, count: int, expected: list[int]) -> None:
    found = parts(5, 5 + shards, count)
    assert sorted(len(part) for part in found) == expected
    assert [shard for part in found for shard in part] == list(range(5, 5 + shards))


@given(shards=st.integers(1, 70), sizes=KINDS)
def test_shards_are_dealt_out_once_in_order_and_nobody_gets_more_than_if_all_got_the_same(shards: int, sizes: list[int]) -> None:
    found = deal_out(shards, sizes)
    assert [shard for part in found for shard in part] == list(range(shards))
    assert len(found) == sum(sizes)
    assert max(len(part) for part in found) == -(-shards // sum(sizes))
    assert sum(sizes) > shards or min(len(part) for part in found) >= 1


@given(shards=st.integers(1, 70), workers=st.integers(1, 6))
def test_workers_of_one_node_get_even_parts(shards: int, workers: int) -> None:
    assert deal_out(shards, [workers]) == parts(0, shards, workers)


def sums_sent(shards: int, parts: list[range], sizes: list[int]) -> list[int]:
    """How many sums each node sends: its parts are next to each other, and what can be added up there is."""
    ends = [0, *accumulate(sizes)]
    return [len(cover([shard for part in parts[first:last] for shard in part], shards)) for first, last in pairwise(ends)]


@pytest.mark.parametrize(
    ("shards", "sizes", "expected"),
    [
        (8, [2, 2, 2], [1, 1, 1]),  # cut evenly, the second and third would send two each
        (6, [2, 2, 2], [1, 1, 1]),
        (16, [1, 1, 1], [1, 2, 2]),  # none may hold more than six
        (64, [8, 8, 8], [1, 2, 2]),
        (12, [1, 1], [2, 2]),
    ],
)
def test_nodes_send_few_sums(shards: int, sizes: list[int], expected: list[int]) -> None:
    assert sums_sent(shards, deal_out(shards, sizes), sizes) == expected


def test_nodes_send_fewer_sums_than_with_even_parts() -> None:
    ways = [(shards, [size] * nodes) for nodes in range(2, 9) for size in (1, 2, 4) for shards in range(nodes * size, 65)]
    even = [sum(sums_sent(shards, parts(0, shards, sum(sizes)), sizes)) for shards, sizes in ways]
    dealt = [sum(sums_sent(shards, deal_out(shards, sizes), sizes)) for shards, sizes in ways]
    assert sum(dealt) < 0.7 * sum(even)


@pytest.mark.parametrize(
    ("sizes", "count", "expected"), [([2, 2, 2], 2, [1, 1, 0]), ([3, 0, 2], 2, [0, 2, 0]), ([0], 4, [4]), ([1, 2], 0, [0, 0])]
)
def test_what_is_left_goes_to_those_who_have_least(sizes: list[int], count: int, expected: list[int]) -> None:
    assert fill(sizes, count) == expected


@given(st.lists(st.integers(0, 8), min_size=1, max_size=6))
def test_a_newcomer_makes_the_shares_even_with_as_few_moves_as_possible(sizes: list[int]) -> None:
    shards = iter(range(sum(sizes)))
    shares = {worker: {next(shards) for _ in range(size)} for worker, size in enumerate(sizes)}
    taken = relieve(shares | {99: set()}, 99, sum(sizes) or 1)
    after = [len(share - taken) for share in shares.values()]
    assert max(after) - len(taken) <= 1
    assert all(left >= len(taken) or left == len(share) for left, share in zip(after, shares.values(), strict=True))


@given(st.integers(1, 40).flatmap(lambda shards: st.tuples(st.just(shards), st.sets(st.integers(0, shards - 1), min_size=1))))
def test_a_share_gives_first_what_leaves_the_fewest_partial_sums(drawn: tuple[int, set[int]]) -> None:
    shards, share = drawn
    left, expected = set(share), set()
    while len(left) - 1 > len(expected):
        given_away = min(left, key=lambda shard: (len(cover(left - {shard}, shards)), -shard))
        left.remove(given_away)
        expected.add(given_away)
    assert relieve({0: share, 1: set()}, 1, shards) == expected


def test_as_many_shards_as_there_can_be_are_shared_with_a_newcomer() -> None:
    taken = relieve({worker: set(range(worker, MOST_SHARDS, 3)) for worker in range(3)} | {3: set()}, 3, MOST_SHARDS)
    assert len(taken) == MOST_SHARDS // 4
