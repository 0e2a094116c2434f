"""Decoded rows that workers of one node have, for others of that node that are to hold them next.

The coordinator keeps the memory of its own node's workers open, so that it outlives them; on other nodes it is there as long as
the worker is.
"""

import os
from collections.abc import Iterable, Mapping

from worker.messages import Holding, Holdings
from worker.segments import Handle, borrow


class Shelf:
    """What each node's workers have, as they told last."""

    def __init__(self, here: str) -> None:
        """Know of nothing yet. `here` is this process's node."""
        self._here = here
        self._known: dict[tuple[str, Holding], Handle] = {}
        self._told: dict[int, tuple[str, Holdings]] = {}

    def tell(self, worker: int, node: str, holdings: Holdings) -> None:
        """Take note of all rows that a worker now has in memory."""
        _, before = self._told.get(worker, (node, {}))
        self._told[worker] = node, holdings
        for holding, handle in holdings.items():
            self._put((node, holding), handle)
        for holding in before.keys() - holdings.keys():
            if not any(place == node and holding in others for place, others in self._told.values()):
                self._drop((node, holding))

    def forget(self, worker: int) -> None:
        """Take note of a worker's death. What it had stays until another one has it, or lets go of it."""
        self._told.pop(worker, None)

    def found(self, node: str, shards: Iterable[int]) -> Mapping[Holding, Handle]:
        """Return where rows of some shards are to be found on a node."""
        wanted = set(shards)
        return {holding: handle for (place, holding), handle in self._known.items() if place == node and holding[0] in wanted}

    def close(self) -> None:
        """Let go of everything."""
        for key in list(self._known):
            self._drop(key)

    def _put(self, key: tuple[str, Holding], handle: Handle) -> None:
        known = self._known.get(key)
        if known is not None and known.inode == handle.inode and key[0] == self._here:
            return  # it is open already
        kept = borrow(handle) if key[0] == self._here else handle
        self._drop(key)
        if kept is not None:
            self._known[key] = kept

    def _drop(self, key: tuple[str, Holding]) -> None:
        handle = self._known.pop(key, None)
        if handle is not None and key[0] == self._here:
            os.close(handle.descriptor)
