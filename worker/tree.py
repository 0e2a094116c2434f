"""The reduction tree: one fixed binary tree over shard numbers, so that sums have the same bits for any workers.

A node (level, index) stands for the shards index·2^level … (index+1)·2^level - 1, cut off at S. Its sum is the
left child's sum plus the right child's; a child beyond S, or one with nothing to add, is left out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

Node = tuple[int, int]
Additions = Sequence[tuple[int, int]]
"""Pairs (left, right) of places in a list: what is at `right` is added to what is at `left`, in this order."""
T = TypeVar("T")


def root(shards: int) -> Node:
    """Return the node that covers every shard."""
    return (shards - 1).bit_length(), 0


def members(node: Node, shards: int) -> range:
    """Return the shard numbers below a node."""
    level, index = node
    return range(index << level, min((index + 1) << level, shards))


def first_member(node: Node) -> int:
    """Return the first shard number below a node."""
    level, index = node
    return index << level


def children(node: Node, shards: int) -> list[Node]:
    """Return a node's children, left first: none for a leaf, one where the right child lies beyond S."""
    level, index = node
    if level == 0:
        return []
    return [child for child in ((level - 1, 2 * index), (level - 1, 2 * index + 1)) if members(child, shards)]


def cover(held: Iterable[int], shards: int) -> list[Node]:
    """Return the maximal nodes whose shards are all in `held`: what a worker with these shards can add alone.

    A contiguous range yields at most 2·log2(S) nodes.
    """
    kept = frozenset(held)

    def visit(node: Node) -> list[Node]:
        if kept.issuperset(members(node, shards)):
            return [node]
        return [found for child in children(node, shards) for found in visit(child)]

    return visit(root(shards))


def without_last(node: Node, shards: int) -> list[Node]:
    """Return the maximal nodes that are left of a node without its last shard. Without any other, no fewer would be left."""
    left: list[Node] = []
    while below := children(node, shards):
        *others, node = below
        left += others
    return left


def tree_sum(
    node: Node,
    shards: int,
    known: Callable[[Node], T | None],
    add: Callable[[T, T], T],
    given: Callable[[Node], bool],
) -> T | None:
    """Return the sum at `node`, adding children left to right down to the nodes that are `given`.

    Args:
        node: where the sum is wanted.
        shards: S.
        known: the value of a given node; None where it has nothing to add.
        add: adds two values; it may reuse the left one's memory.
        given: whether a node's value is known. Every leaf below `node` must have a given node above or at it.
    """
    if given(node):
        return known(node)
    result: T | None = None
    for child in children(node, shards):
        value = tree_sum(child, shards, known, add, given)
        if value is not None:
            result = value if result is None else add(result, value)
    return result


def finish(partials: Mapping[Node, T | None], shards: int, add: Callable[[T, T], T]) -> T | None:
    """Return the root's sum from partial sums that together cover every shard."""
    return tree_sum(root(shards), shards, partials.__getitem__, add, partials.__contains__)


def add_up(partials: Mapping[Node, T | None], shards: int, add: Callable[[T, T], T]) -> dict[Node, T | None]:
    """Return the sums of the maximal nodes that partial sums make up together."""
    held = [shard for node in partials for shard in members(node, shards)]
    return {node: tree_sum(node, shards, partials.__getitem__, add, partials.__contains__) for node in cover(held, shards)}


def additions(node: Node, shards: int, places: Mapping[Node, int]) -> Additions:
    """Return how to add up what a list holds of the nodes in `places`, each at its place; the sum ends up at the leftmost's.

    Args:
        node: where the sum is wanted; every leaf below must have one of the nodes above or at it, unless it has nothing to add.
        shards: S.
        places: of each node in the list.
    """
    pairs: list[tuple[int, int]] = []

    def add(left: int, right: int) -> int:
        pairs.append((left, right))
        return left

    tree_sum(node, shards, places.get, add, lambda found: found in places or found[0] == 0)
    return tuple(pairs)
