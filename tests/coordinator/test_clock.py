from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.clock import Clock
from coordinator.records import CrewStatus, Percentiles, RoundDone, Seconds

PLAN: Any = SimpleNamespace(training_rows=100, rounds_per_epoch=2)


def round_done(number: int, seconds: float) -> RoundDone:
    return RoundDone(
        round=number, timestamp=0.0, rows=50, loss=1.0, gradient_norm=1.0, learning_rate=0.1, seconds=seconds, phases={},
        crew=CrewStatus(),
    )  # fmt: skip


def after(*seconds: float, done: int = 0) -> Clock:
    """The clock of a run that has done rounds of so many seconds, after those from before it was taken up."""
    clock = Clock(0.0, PLAN, done, lambda: 0.0)
    for number, spent in enumerate(seconds, done + 1):
        clock.observe(round_done(number, spent))
    return clock


def test_a_run_starts_until_the_clock_is_made_and_trains_from_then_on() -> None:
    now = iter([107.0, 110.5])

    assert Clock(100.0, PLAN, 0, lambda: next(now)).seconds == Seconds(startup=7.0, training=3.5, total=10.5)


@pytest.mark.parametrize(
    ("seconds", "speed"),
    [
        ((), 0.0),
        ((0.5,), 100.0),
        ((0.5, 1.5), 50.0),
        ((0.5, 1.5, 1.0), 150 / 3.0),
        ((0.5, 1.5, 1.0, 0.25), 100 / 1.25),
    ],
)
def test_the_first_epoch_counts_for_the_speed_only_where_there_is_no_other(seconds: tuple[float, ...], speed: float) -> None:
    assert after(*seconds).rows_per_second == speed


def test_the_first_epoch_is_the_first_since_a_run_was_taken_up() -> None:
    assert after(9.0, 9.0, 1.0, 1.0, done=40).rows_per_second == 50.0


def test_rounds_are_told_by_their_median_and_the_slowest_in_a_hundred() -> None:
    assert after().round_seconds == Percentiles(p50=0.0, p99=0.0)
    assert after(*range(101)).round_seconds == Percentiles(p50=50.0, p99=99.0)
