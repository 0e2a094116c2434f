"""Which shards go to whom: pure functions over numbers of shards and shares."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise

from worker.tree import Node, cover, members, without_last


def deal_out(shards: int, sizes: Sequence[int]) -> list[range]:
    """Return a contiguous part of S shards for each worker, those of a node next to each other.

    No part is longer than if all were equal to within one. Within that, a node's parts together are to be few nodes of the
    reduction tree, since a node sends a gradient sum for each: it begins and ends where large nodes do.

    Args:
        shards: S.
        sizes: how many workers each node has; where they are more than S, some have nothing.
    """
    workers = sum(sizes)
    longest, least = -(-shards // workers), min(1, shards // workers)
    bounds = [0]
    for size, done in zip(sizes[:-1], accumulate(sizes), strict=False):
        low = max(bounds[-1] + size * least, shards - (workers - done) * longest)
        high = min(bounds[-1] + size * longest, shards - (workers - done) * least)
        # How many nodes of the tree begin at a shard is a matter of its last binary digits.
        even = done * shards // workers
        bounds.append(max(range(low, high + 1), key=lambda shard: (shard & -shard, -abs(shard - even))))
    return [
        part for (first, last), size in zip(pairwise([*bounds, shards]), sizes, strict=True) for part in parts(first, last, size)
    ]


def parts(first: int, last: int, count: int) -> list[range]:
    """Cut the shards from `first` up to `last` into contiguous parts, sizes equal to within one."""
    bounds = [first + place * (last - first) // count for place in range(count + 1)]
    return [range(start, end) for start, end in pairwise(bounds)]


def fill(sizes: Sequence[int], count: int) -> list[int]:
    """Return how many of `count` shards to add to shares of these sizes, so that they become as even as can be."""
    filled = list(sizes)
    for _ in range(count):
        filled[filled.index(min(filled))] += 1
    return [after - before for before, after in zip(sizes, filled, strict=True)]


def relieve(shares: Mapping[int, set[int]], newcomer: int, shards: int) -> set[int]:
    """Return which of S shards a newcomer should take over: from the largest shares, as few as make it even.

    Of a share it takes what leaves the fewest partial sums: what came from a lost worker, and lies apart, before the rest.
    """
    sizes = {worker: len(share) for worker, share in shares.items() if worker != newcomer}
    giving = {worker: _giving(shares[worker], shards) for worker in sizes}
    taken: set[int] = set()
    while sizes:
        worker = max(sizes, key=lambda number: (sizes[number], number))
        if sizes[worker] - 1 <= len(taken):
            break
        taken.add(next(giving[worker]))
        sizes[worker] -= 1
    return taken


def _giving(share: Collection[int], shards: int) -> Iterator[int]:
    """Yield the shards of a share, each the one whose loss leaves the fewest partial sums then; of several, the last."""

    def entry(node: Node) -> tuple[int, int, list[Node]]:
        left = without_last(node, shards)
        return len(left), -members(node, shards)[-1], left

    nodes = [entry(node) for node in cover(share, shards)]
    heapify(nodes)
    while nodes:
        _, shard, left = heappop(nodes)
        yield -shard
        for node in left:
            heappush(nodes, entry(node))
