from itertools import combinations
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.arrays import Floats
from worker.tree import Node, add_up, additions, children, cover, finish, first_member, members, root, tree_sum, without_last

Leaves = dict[int, Floats | None]


@st.composite
def holders(draw: st.DrawFn) -> list[list[int]]:
    """Draws a number of shards and which worker holds which of them: any subsets."""
    workers = draw(st.lists(st.integers(0, 8), min_size=1, max_size=70))
    return [[shard for shard, held_by in enumerate(workers) if held_by == worker] for worker in sorted(set(workers))]


def random_leaves(shards: int, seed: int) -> Leaves:
    """Returns values of very different sizes, so that the order of additions shows; every fifth shard or so has none."""
    draws = np.random.default_rng(seed)
    return {
        shard: None if draws.random() < 0.2 else (10.0 ** draws.uniform(-4, 4, 5) * draws.normal(size=5)).astype(np.float32)
        for shard in range(shards)
    }


def add(left: Floats, right: Floats) -> Floats:
    return left + right


def partial_sums(held: list[int], shards: int, leaves: Leaves) -> dict[Node, Floats | None]:
    return {
        node: tree_sum(node, shards, lambda leaf: leaves[leaf[1]], add, lambda found: found[0] == 0)
        for node in cover(held, shards)
    }


def bits(value: Floats | None) -> bytes | None:
    return None if value is None else value.tobytes()


def halves(values: list[Floats | None]) -> Floats | None:
    """Adds the values as the tree's definition says, without its code: cut at the largest power of two below the length."""
    if len(values) <= 1:
        return values[0]
    middle = 1 << (len(values) - 1).bit_length() - 1
    parts = [part for part in (halves(values[:middle]), halves(values[middle:])) if part is not None]
    return None if not parts else parts[0] if len(parts) == 1 else parts[0] + parts[1]


@given(held=holders(), seed=st.integers(0, 10**6))
def test_the_sum_has_the_same_bits_however_the_shards_are_spread_over_workers(held: list[list[int]], seed: int) -> None:
    shards = sum(map(len, held))
    leaves = random_leaves(shards, seed)
    partials = {node: value for of_worker in held for node, value in partial_sums(of_worker, shards, leaves).items()}

    total = finish(partials, shards, add)

    assert bits(total) == bits(halves(list(leaves.values())))
    assert bits(total) == bits(finish(partial_sums(list(range(shards)), shards, leaves), shards, add))


def test_the_order_of_additions_shows_in_the_bits() -> None:
    leaves = [value for value in random_leaves(33, 1).values() if value is not None]
    in_a_row = leaves[0]
    for value in leaves[1:]:
        in_a_row = in_a_row + value

    assert bits(halves(list(leaves))) != bits(in_a_row)


@given(held=holders())
def test_a_cover_is_aligned_disjoint_complete_and_maximal(held: list[list[int]]) -> None:
    shards = sum(map(len, held))
    for of_worker in held:
        nodes = cover(of_worker, shards)

        assert [shard for node in nodes for shard in members(node, shards)] == of_worker
        for level, index in nodes:
            assert members((level, index), shards)[0] == index << level
            parent = level + 1, index >> 1
            assert (level, index) == root(shards) or not set(members(parent, shards)) <= set(of_worker)


@pytest.mark.parametrize("shards", range(1, 34))
def test_a_contiguous_range_makes_at_most_twice_log2_of_the_shards_nodes(shards: int) -> None:
    for first, last in combinations(range(shards + 1), 2):
        assert len(cover(range(first, last), shards)) <= max(1, 2 * log2(shards))


@pytest.mark.parametrize("shards", range(1, 34))
def test_the_root_covers_all_shards_and_children_divide_their_parents(shards: int) -> None:
    def below(node: Node) -> list[int]:
        found = children(node, shards)
        assert found or members(node, shards) == range(node[1], node[1] + 1)
        assert [shard for child in found for shard in members(child, shards)] == list(members(node, shards) if found else [])
        return [node[1]] if not found else [leaf for child in found for leaf in below(child)]

    assert below(root(shards)) == list(range(shards))


@given(st.integers(1, 70).flatmap(lambda shards: st.tuples(st.just(shards), st.integers(0, shards - 1))))
def test_what_is_left_of_a_node_without_its_last_shard_is_a_cover(drawn: tuple[int, int]) -> None:
    shards, shard = drawn
    for node in cover(range(shard + 1), shards):
        below = members(node, shards)
        left = {last: cover(set(below) - {last}, shards) for last in below}
        assert without_last(node, shards) == left[below[-1]]
        assert len(left[below[-1]]) == min(map(len, left.values()))


def test_one_shard_is_its_own_tree() -> None:
    assert root(1) == (0, 0)
    assert cover([0], 1) == [(0, 0)]
    assert finish({(0, 0): "its sum"}, 1, lambda left, right: left + right) == "its sum"


def test_shards_with_nothing_to_add_are_left_out() -> None:
    assert finish({(0, 0): None, (0, 1): "b", (1, 1): None, (0, 4): "e"}, 5, lambda left, right: left + right) == "be"
    assert finish({(3, 0): None}, 5, lambda left, right: left + right) is None


def test_a_sum_may_reuse_the_memory_of_its_left_side_only() -> None:
    leaves = random_leaves(11, 2)
    kept = {shard: bits(value) for shard, value in leaves.items()}
    copies = {(0, shard): None if value is None else value.copy() for shard, value in leaves.items()}

    def add_in_place(left: Floats, right: Floats) -> Floats:
        left += right
        return left

    assert bits(finish(copies, 11, add_in_place)) == bits(halves(list(leaves.values())))
    assert {shard: bits(value) for shard, value in leaves.items()} == kept


@given(held=holders(), groups=st.integers(1, 4), seed=st.integers(0, 9))
def test_parts_may_be_added_up_in_groups_first(held: list[list[int]], groups: int, seed: int) -> None:
    shards = sum(map(len, held))
    leaves = random_leaves(shards, seed)
    parts: list[dict[Node, Floats | None]] = [{} for _ in range(groups)]
    for place, share in enumerate(held):
        parts[place % groups] |= add_up({(0, shard): leaves[shard] for shard in share}, shards, np.add)

    together: dict[Node, Floats | None] = {}
    for group, some in enumerate(parts):
        total = add_up(some, shards, np.add)
        assert list(total) == cover([shard for share in held[group::groups] for shard in share], shards)
        together |= total

    assert bits(finish(together, shards, np.add)) == bits(halves([leaves[shard] for shard in range(shards)]))


@given(held=holders(), seed=st.integers(0, 9))
def test_additions_over_a_list_have_the_bits_of_the_tree(held: list[list[int]], seed: int) -> None:
    shards = sum(map(len, held))
    leaves = random_leaves(shards, seed)
    parts = {
        node: tree_sum(node, shards, lambda found: leaves[found[1]], np.add, lambda found: found[0] == 0)
        for share in held
        for node in cover(share, shards)
    }
    present = sorted((node for node, part in parts.items() if part is not None), key=first_member)
    values = [parts[node] for node in present]

    for left, right in additions(root(shards), shards, {node: place for place, node in enumerate(present)}):
        values[left] = values[left] + values[right]  # type: ignore[operator]

    expected = finish(parts, shards, np.add)
    assert (values[0] is None if expected is None else values[0].tobytes() == expected.tobytes()) if values else expected is None
