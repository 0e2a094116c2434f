"""Workers that die before they are up, without Ray: no actor is started, and each is told to have failed."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from ray.exceptions import RayActorError

from cluster.actors import WorkerActor
from cluster.roster import MOST_FAILED_STARTS, Roster
from coordinator.dispatch import PoolError
from coordinator.pool import WorkersSpec

WORKERS = MOST_FAILED_STARTS + 3


class Failing:
    """Calls of actors, none of which comes to anything."""

    def __init__(self) -> None:
        self._waiting: list[Any] = []

    def add(self, _: Any, then: Any) -> None:
        self._waiting.append(then)

    def fail(self, count: int) -> None:
        for _ in range(count):
            self._waiting.pop(0)(RayActorError())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Failing:
    monkeypatch.setattr("cluster.roster.ray", SimpleNamespace(remote=MagicMock(), get_runtime_context=MagicMock()))
    return Failing()


def start(calls: Failing, count: int) -> Roster:
    roster = Roster(WorkerActor, WorkersSpec(count=count), None, calls, lambda *_: None)  # type: ignore[arg-type]
    for _ in range(count):
        roster.start_one()
    return roster


def test_any_number_of_workers_may_be_lost_together_with_the_node_that_they_start_on(calls: Failing) -> None:
    roster = start(calls, WORKERS)
    for _ in range(MOST_FAILED_STARTS - 1):
        calls.fail(WORKERS)
        assert len(roster.members) == WORKERS


def test_a_worker_that_never_comes_up_ends_the_run(calls: Failing) -> None:
    start(calls, 1)
    calls.fail(MOST_FAILED_STARTS - 1)
    told = r"^a worker died while starting, and so did those in its place, 5 in a row, the last one: "
    with pytest.raises(PoolError, match=told):
        calls.fail(1)
