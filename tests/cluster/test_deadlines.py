"""When workers are asked whether they are alive, and when they have taken too long: without Ray, and without time passing."""

from math import inf

import pytest

from cluster.deadlines import Deadlines


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def deadlines(clock: Clock) -> Deadlines:
    return Deadlines(10.0, clock)


def test_nobody_is_waited_for_at_first(deadlines: Deadlines) -> None:
    assert deadlines.next_check() == inf
    assert deadlines.to_ping() == deadlines.overdue() == []


def test_a_task_with_patience_is_overdue_after_it(deadlines: Deadlines, clock: Clock) -> None:
    deadlines.begin(3, 25.0)
    assert (3 in deadlines, deadlines.given(3), deadlines.next_check()) == (True, 25.0, 125.0)
    clock.now = 124.9
    assert deadlines.to_ping() == deadlines.overdue() == []
    clock.now = 125.0
    assert (deadlines.to_ping(), deadlines.overdue(), deadlines.overdue({3})) == ([], [3], [])
    deadlines.end(3)
    assert (3 in deadlines, deadlines.overdue(), deadlines.next_check()) == (False, [], inf)


def test_a_task_without_patience_may_take_any_time_while_its_worker_answers(deadlines: Deadlines, clock: Clock) -> None:
    deadlines.begin(0, None)
    for _ in range(5):
        assert deadlines.next_check() == clock.now + 5.0
        clock.now += 5.0
        assert deadlines.to_ping() == [0]
        assert deadlines.to_ping() == []
        assert deadlines.next_check() == clock.now + 5.0
        clock.now += 4.0
        deadlines.renew(0)  # it has answered
    clock.now += 5.0
    assert deadlines.to_ping() == [0]
    clock.now += 5.0
    assert (deadlines.overdue(), deadlines.given(0)) == ([0], 10.0)


def test_a_worker_that_waits_for_others_is_blamed_for_nothing_until_it_goes_on(deadlines: Deadlines, clock: Clock) -> None:
    deadlines.begin(1, 20.0)
    deadlines.suspend(1)
    assert deadlines.next_check() == inf
    clock.now += 1000.0
    assert deadlines.overdue() == []
    deadlines.renew(1)
    assert deadlines.next_check() == clock.now + 20.0


def test_whoever_has_no_task_needs_no_more_time(deadlines: Deadlines) -> None:
    deadlines.renew(7)
    deadlines.end(7)
    assert 7 not in deadlines
