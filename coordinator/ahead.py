"""Rounds that workers run by themselves: how many at a time, and what they come to.

The coordinator's part of a round is small, but to be woken for it can take longer than a round of a small network. Workers that
share memory therefore add up, update and go on without it: for some rounds of one epoch, with the same arithmetic. Whatever is
out of the ordinary ends that, and the coordinator goes on from the last round that all of them completed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.crew import Shards
from worker.network import ErrorSums
from worker.tree import Node

MOST_ROUNDS: Final = 256
"""Rounds at a time, at most."""

SECONDS: Final = 0.05
"""About how long the coordinator lets them: it looks for interrupts and limits in between, and tells of the rounds."""


@dataclass(frozen=True)
class Ahead:
    """Rounds to be run.

    Attributes:
        first: number of the first one, from 0.
        learning_rates: of each.
        place: which of the two places of parameters it begins with.
        shares: the shards that each worker computes, by its number; all of them together.
    """

    first: int
    learning_rates: tuple[float, ...]
    place: int
    shares: Mapping[int, Shards]


@dataclass(frozen=True)
class RoundRun:
    """What a round came to that workers have completed.

    Attributes:
        parts: the error sums of the nodes of the reduction tree that had rows.
        gradient_norm: of the mean gradient.
        timestamp: when it was completed, in seconds since the epoch.
        seconds: how long each worker computed, by its number.
        reduce_seconds: what adding up took one of them.
        update_seconds: likewise.
        duration: since the round before, by the same one's clock.
    """

    parts: Mapping[Node, ErrorSums]
    gradient_norm: float
    timestamp: float
    seconds: Mapping[int, float]
    reduce_seconds: float
    update_seconds: float
    duration: float


def rounds_ahead(*, left_in_epoch: int, left: int | None, round_seconds: float | None) -> int:
    """Return how many rounds to let workers run by themselves.

    Args:
        left_in_epoch: rounds until it is to be evaluated and recorded.
        left: rounds until the run's end; None where nothing limits them.
        round_seconds: how long a round takes; None where that is not known yet.
    """
    by_time = 1 if round_seconds is None else max(1, int(SECONDS / max(round_seconds, 1e-9)))
    return min(left_in_epoch, by_time, MOST_ROUNDS, *([] if left is None else [left]))
