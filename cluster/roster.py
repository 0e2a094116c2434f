"""The worker actors of a run: started where they are to be, and ended so that nothing of them is left."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import ray
from ray.util.placement_group import PlacementGroup

from cluster.actors import Place, end_process
from cluster.calls import Calls, death_cause
from cluster.exchange import Link
from cluster.placement import among, beside
from coordinator.dispatch import PoolError
from coordinator.pool import WorkersSpec

END_SECONDS: Final = 10.0
"""How long a killed process may take to be gone."""

MOST_FAILED_STARTS: Final = 5
"""How often in a row a worker and its replacements may die before they are up. All that start on a node die with it, once."""


@dataclass
class Member:
    """A worker: on its way until it has a place, on the coordinator's node linked once it has connected.

    `failed_starts` of those that it replaces came before it.
    """

    handle: Any
    in_group: bool
    failed_starts: int
    place: Place | None = None
    link: Link | None = None


class Roster:
    """The workers by their numbers, which are never used again.

    Attributes:
        members: they; on their way or up.
        node: where this process is.
    """

    def __init__(
        self, actor: type, spec: WorkersSpec, group: PlacementGroup | None, calls: Calls, up: Callable[[int, Place], None]
    ) -> None:
        """Begin without any.

        Args:
            actor: what a worker is.
            spec: how many there are to be.
            group: places for those that a run begins with; without them, workers go wherever Ray puts them.
            calls: calls of actors, to wait for.
            up: told of every worker that is up.
        """
        self._actor: Any = ray.remote(actor)
        self._spec, self._group, self._calls, self._up = spec, group, calls, up
        self._numbers = 0
        self.members: dict[int, Member] = {}
        self.node: str = ray.get_runtime_context().get_node_id()

    def start_one(self, failed_starts: int = 0) -> None:
        """Have the cluster start one worker more, after so many in its place that did not come up."""
        number = self._numbers
        self._numbers += 1
        in_group = self._group is not None and sum(member.in_group for member in self.members.values()) < self._spec.first
        where = among(self._group) if in_group else beside(self._spec.placement)
        options = {"num_cpus": self._spec.cpus, "max_restarts": 0, "max_concurrency": 3, "scheduling_strategy": where}
        handle = self._actor.options(**options).remote(self._spec.cpus, self._spec.most)
        member = self.members[number] = Member(handle, in_group, failed_starts)
        self._calls.add(member.handle.place.remote(), partial(self._started, number))

    def place(self, worker: int) -> Place:
        """Return where a worker is that is up."""
        place = self.members[worker].place
        assert place is not None, "it has joined"
        return place

    def is_here(self, member: Member) -> bool:
        """Return whether a worker is up on this node."""
        return member.place is not None and member.place.node == self.node

    def end(self, worker: int) -> None:
        """End a worker. Once this returns, nothing of it writes to the shared memory any more.

        Raises:
            PoolError: its process can't be ended.
        """
        member = self.members.pop(worker)
        ray.kill(member.handle)
        if member.place is not None:
            end_process(member.place)
        if member.link is not None:
            if not member.link.await_end(END_SECONDS):
                raise PoolError(f"the process of worker {worker} could not be ended within {END_SECONDS:g} s")
            member.link.close()

    def _started(self, number: int, place: Place | BaseException) -> None:
        if isinstance(place, BaseException):
            self._failed_to_start(number, place)
            return
        self.members[number].place = place
        self._up(number, place)

    def _failed_to_start(self, number: int, error: BaseException) -> None:
        failed_starts = self.members.pop(number).failed_starts + 1
        if failed_starts >= MOST_FAILED_STARTS:
            raise PoolError(
                f"a worker died while starting, and so did those in its place, {failed_starts} in a row, the last one: "
                f"{death_cause(error)}"
            ) from error
        self.start_one(failed_starts)
