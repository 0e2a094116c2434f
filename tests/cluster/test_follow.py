"""How a coordinator is asked for news: again where a connection breaks, and not forever."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from cluster.follow import Untold, _ask
from coordinator.dispatch import PoolError
from coordinator.records import Noticed

pytestmark = pytest.mark.usefixtures("local_ray")


def nothing() -> None:
    """Of what the cluster has no place for."""


def asked(*outcomes: Exception | int) -> tuple[Iterator[Exception | int], Any]:
    """What a method answers, call by call, and the method."""
    left = iter(outcomes)

    def call() -> Any:
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return ray.put(outcome)

    return left, call


def test_events_are_kept_until_they_are_seen() -> None:
    untold = Untold()
    first, second, third = (Noticed(message=text) for text in ("first", "second", "third"))
    assert untold.after(0) == []
    untold.append(first)
    untold.append(second)
    assert untold.after(0) == [first, second]
    assert untold.after(0) == [first, second], "the answer did not arrive"
    untold.append(third)
    assert untold.after(1) == [second, third]
    assert untold.after(3) == []
    untold.append(first)
    untold.after(0)
    assert untold.after(3) == [first]
    assert untold.after(4) == []
    assert untold._events == []


def test_a_coordinator_is_asked_again_where_the_connection_breaks() -> None:
    left, call = asked(ActorUnavailableError("RpcError", None), ActorUnavailableError("RpcError", None), 7, 8)
    assert _ask(call, 600.0) == 7
    assert next(left) == 8


def test_a_coordinator_that_is_lost_is_not_asked_again() -> None:
    left, call = asked(RayActorError(), 7)
    with pytest.raises(RayActorError):
        _ask(call, 600.0)
    assert next(left) == 7


def test_a_coordinator_that_can_not_be_reached_or_does_not_answer_is_given_up() -> None:
    _, unreachable = asked(*[ActorUnavailableError("RpcError", None)] * 100)
    with pytest.raises(PoolError, match=r"has not answered for 0\.1 s, or has found no place in the cluster; --resume goes on"):
        _ask(unreachable, 0.1)

    never: Any = ray.remote(num_cpus=10_000)(nothing).remote()
    with pytest.raises(PoolError, match="has not answered"):
        _ask(lambda: never, 0.1)
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted before the coordinator had a place;"):
        _ask(lambda: never, 600.0, lambda: True)
    ray.cancel(never)
