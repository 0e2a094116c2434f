"""Whether a coordinator that is lost has a successor, and what that one is to do, without Ray."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.succession import MOST_IN_A_ROW, Succession
from coordinator.dispatch import PoolError
from coordinator.job import JobSpec
from coordinator.order import Order
from coordinator.records import Checkpointed, CrewStatus, Event, Noticed, Started

ANEW = Noticed(message="there was no checkpoint yet, so the run begins anew")


@pytest.fixture
def order(small_job: Callable[..., JobSpec]) -> Order:
    return Order(small_job({}), Path("run"), 0.0)


def started(rounds_done: int = 0) -> Event:
    return Started(
        run="run",
        directory="run",
        job="",
        timestamp=0.0,
        rows=300,
        validation_rows=0,
        inputs=4,
        outputs=3,
        parameters=67,
        shards=6,
        crew=CrewStatus(),
        most_workers=2,
        rounds_per_epoch=5,
        rounds_done=rounds_done,
        most_rounds=None,
        history=(),
        host="host",
        metrics_url=None,
        dashboard_url=None,
    )


def checkpointed(reached: int) -> Event:
    return Checkpointed(round=reached, seconds=0.1, timestamp=0.0)


def test_a_successor_goes_on_or_begins_anew_where_there_was_no_checkpoint(order: Order) -> None:
    succession = Succession(order)
    assert succession.order == order
    assert list(succession.heard(started())) == []

    assert succession.lost("its process died").message == "the coordinator was lost: its process died; a new one is started"
    assert succession.order == replace(order, resume_if_begun=True, restarted=True)
    assert list(succession.heard(started())) == [ANEW]

    assert list(succession.heard(checkpointed(5))) == []
    succession.lost("its process died")
    assert succession.order == replace(order, resume_if_begun=True, restarted=True, checkpointed=True)
    assert list(succession.heard(started(5))) == []


def test_one_that_was_lost_before_it_began_has_a_successor_that_takes_up_no_run_unasked(order: Order) -> None:
    succession = Succession(order)
    succession.lost("its node is gone")
    assert succession.order == replace(order, restarted=True)
    assert list(succession.heard(started())) == []
    succession.lost("its node is gone")
    assert succession.order == replace(order, resume_if_begun=True, restarted=True)

    asked = replace(order, resume_if_begun=True)
    succession = Succession(asked)
    succession.lost("its node is gone")
    assert succession.order == replace(asked, restarted=True)


def test_a_run_that_was_taken_up_has_a_checkpoint(order: Order) -> None:
    succession = Succession(replace(order, resume=True))
    assert list(succession.heard(started(5))) == []
    succession.lost("its node is gone")
    assert succession.order == replace(order, resume=True, restarted=True, checkpointed=True)


def test_a_run_that_comes_further_may_lose_any_number_of_coordinators(order: Order) -> None:
    succession = Succession(order)
    for reached in range(5, 500, 5):
        assert list(succession.heard(checkpointed(reached))) == []
        for _ in range(MOST_IN_A_ROW - 1):
            succession.lost("its process died")


def test_coordinators_that_come_no_further_are_given_up(order: Order) -> None:
    succession = Succession(order)
    for _ in range(MOST_IN_A_ROW - 1):
        succession.lost("its process died")
        list(succession.heard(started(5)))
        list(succession.heard(checkpointed(5)))  # written anew, but of the round that it began with
    with pytest.raises(PoolError, match="was lost 6 times without a new checkpoint in between, the last time: its node is gone;"):
        succession.lost("its node is gone")
