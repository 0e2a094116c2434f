"""Where workers go: places that the cluster sets aside for those that a run begins with, and a hint for those that join later."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from coordinator.dispatch import PoolError
from coordinator.pool import Placement, WorkersSpec
from coordinator.records import Noticed

WAIT_SECONDS: Final = 1
"""How long Ray waits at a time, in whole seconds."""

TOLD_AFTER_SECONDS: Final = 5.0
"""How long nobody is told that the cluster has no room yet."""

MEANINGS: Final[dict[Placement, str]] = {
    "pack": "on as few nodes as can be",
    "spread": "over as many nodes as can be",
    "strict_pack": "all on one node",
    "strict_spread": "each on a node of its own",
}


@contextmanager
def places(spec: WorkersSpec) -> Iterator[PlacementGroup]:
    """Ask the cluster to set places aside for the workers that a run begins with, all or none, for the length of a `with` block.

    Where a node is lost, Ray finds other places for those that were there, as soon as there is room.
    """
    group = placement_group([{"CPU": spec.cpus}] * spec.first, strategy=spec.placement.upper())
    try:
        yield group
    finally:
        remove_placement_group(group)


def await_places(group: PlacementGroup, spec: WorkersSpec, interrupted: Callable[[], bool]) -> Iterator[Noticed]:
    """Wait until the places are there, and say so if it takes a while.

    Raises:
        PoolError: the cluster has no room for them within `wait_seconds`.
        KeyboardInterrupt: `interrupted` said so.
    """
    began, told = monotonic(), False
    while not group.wait(WAIT_SECONDS):
        waited = monotonic() - began
        if interrupted():
            raise KeyboardInterrupt
        if waited >= spec.wait_seconds:
            raise PoolError(
                f"the cluster has no room for {_wanted(spec)}, after {spec.wait_seconds:g} s; "
                "ask for fewer or smaller workers, set another workers.placement, or raise workers.wait_seconds"
            )
        if waited >= TOLD_AFTER_SECONDS and not told:
            told = True
            yield Noticed(message=f"waiting until the cluster has room for {_wanted(spec)}")


def _wanted(spec: WorkersSpec) -> str:
    resources: Any = ray
    free, there = resources.available_resources().get("CPU", 0.0), resources.cluster_resources().get("CPU", 0.0)
    workers = f"{spec.first} workers" if spec.first > 1 else "1 worker"
    return f"{workers} of {spec.cpus:g} CPUs {MEANINGS[spec.placement]}: {free:g} of its {there:g} CPUs are free"


def among(group: PlacementGroup | None) -> Any:
    """Return the scheduling strategy for an actor at one of the places; without a group, wherever Ray puts it."""
    return PlacementGroupSchedulingStrategy(group) if group is not None else "DEFAULT"


def near(node: str, group: PlacementGroup) -> Any:
    """Return the scheduling strategy for an actor that goes where another was, if that node is still there, else to a place.

    A node that is lost meanwhile makes the actor unschedulable.
    """
    state: Any = ray
    there = node and any(found["NodeID"] == node and found["Alive"] for found in state.nodes())
    # A soft affinity is no use: of actors without CPUs, Ray heeds hard ones only.
    return NodeAffinitySchedulingStrategy(node, soft=False) if there else among(group)


def beside(placement: Placement) -> Any:
    """Return the scheduling strategy for workers beyond those that a run begins with; strict placements have none."""
    return "SPREAD" if placement == "spread" else "DEFAULT"
