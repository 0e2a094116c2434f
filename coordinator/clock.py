"""How long a run takes: until it trains, in all, and from round to round."""

from collections import deque
from collections.abc import Callable
from time import time
from typing import Final

import numpy as np

from coordinator.records import Event, Percentiles, RoundDone, Seconds
from worker.sharding import ShardPlan

ROUNDS_TIMED: Final = 100_000
"""Rounds whose durations are kept for the percentiles."""


class Clock:
    """Times a run from its events on; made when it is ready for its first round."""

    def __init__(self, began: float, plan: ShardPlan, rounds_done: int, now: Callable[[], float] = time) -> None:
        """Begin.

        Args:
            began: when the user asked for the run, in seconds since the epoch.
            plan: tells how many rows and rounds an epoch has.
            rounds_done: rounds that were done before the run was taken up.
            now: gives seconds since the epoch.
        """
        self._began, self._plan, self._now = began, plan, now
        self._ready = now()
        self._filled = rounds_done + plan.rounds_per_epoch
        self._rounds: deque[float] = deque(maxlen=ROUNDS_TIMED)
        self._rows, self._spent = 0, 0.0
        self._first_epoch = 0, 0.0

    def observe(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, RoundDone):
            self._rounds.append(event.seconds)
            self._rows += event.rows
            self._spent += event.seconds
            if event.round == self._filled:
                self._first_epoch = self._rows, self._spent

    @property
    def seconds(self) -> Seconds:
        """How long the run has taken until now."""
        now = self._now()
        return Seconds(startup=self._ready - self._began, training=now - self._ready, total=now - self._began)

    @property
    def rows_per_second(self) -> float:
        """How fast rounds were, without what lies between them; 0 before the first one.

        The first epoch is left out where there are several: it fills caches and buffers.
        """
        several = self._rows > 1.5 * self._plan.training_rows
        rows, spent = self._first_epoch if several else (0, 0.0)
        return (self._rows - rows) / (self._spent - spent) if self._spent > spent else 0.0

    @property
    def round_seconds(self) -> Percentiles:
        """How long rounds took; 0 before the first one."""
        p50, p99 = np.percentile(np.asarray(self._rounds or [0.0]), [50, 99])
        return Percentiles(p50=float(p50), p99=float(p99))
