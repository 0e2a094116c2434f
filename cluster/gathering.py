"""Gradient sums on other nodes: which are computed but not yet fetched, and when those of a node are to be added up there."""

from collections import defaultdict
from typing import Generic, TypeVar

T = TypeVar("T")


class Gathering(Generic[T]):
    """The sums of each node's workers. They are ready once none of its workers computes any more.

    What stands for a worker's sum is up to whoever uses this.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self._computing: defaultdict[str, set[int]] = defaultdict(set)
        self._computed: defaultdict[str, dict[int, T]] = defaultdict(dict)

    def begin(self, node: str, worker: int) -> None:
        """Take note that a worker computes its sum."""
        self._computing[node].add(worker)

    def computed(self, node: str, worker: int, total: T) -> dict[int, T]:
        """Take note of a worker's sum, and return the node's by worker once there are no more to come."""
        self._computed[node][worker] = total
        return self._ready(node, worker)

    def left(self, node: str, worker: int) -> dict[int, T]:
        """Take note that a worker is lost, and return the node's sums if it was the last of them to compute.

        Its own is not among them: others compute those slices anew, and they are to count once.
        """
        self._computed[node].pop(worker, None)
        return self._ready(node, worker)

    def _ready(self, node: str, worker: int) -> dict[int, T]:
        self._computing[node].discard(worker)
        return self._computed.pop(node, {}) if not self._computing[node] else {}
