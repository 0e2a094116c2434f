"""Rounds that linked workers run by themselves, as the coordinator sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from cluster.arena import Arena
from cluster.exchange import Link
from cluster.rounds import RunRounds, completed_rounds
from coordinator.ahead import Ahead, RoundRun


@dataclass
class _Run:
    """Rounds that were asked for, of whom, who is still at them, and when they began."""

    rounds: Ahead
    ticket: int
    ranks: list[int]
    running: set[int]
    began: float


class RunningAhead:
    """One run of rounds after the other."""

    def __init__(self, arena: Arena) -> None:
        """Begin without any, over this memory."""
        self._arena = arena
        self._run: _Run | None = None
        self._ticket = 1
        self._ended: float | None = None

    @property
    def under_way(self) -> bool:
        """Whether there are rounds that have yet to be told of."""
        return self._run is not None

    @property
    def back(self) -> bool:
        """Whether there are, and no worker is at them any more."""
        return self._run is not None and not self._run.running

    def begin(self, rounds: Ahead, links: Sequence[Link]) -> None:
        """Have workers run rounds, over their links, which are in the order of the shares."""
        count, workers = len(rounds.learning_rates), list(rounds.shares)
        self._arena.board.rates[:count] = rounds.learning_rates
        # Where one run of rounds follows the other, the time between them belongs to the first round.
        self._run = _Run(rounds, self._ticket, workers, set(workers), self._ended or perf_counter())
        # Above all flags that these rounds can raise.
        self._ticket += 2 * count + 2
        shares = tuple(rounds.shares.values())
        for rank, link in enumerate(links):
            link.run_rounds(RunRounds(self._run.ticket, rounds.first, count, rounds.place, rank, shares))

    def break_off(self) -> None:
        """Take note that something else is done after the last rounds."""
        self._ended = None

    def stop(self) -> None:
        """Have the workers stop where they are."""
        if self._run is not None:
            self._arena.board.stop(self._run.ticket)

    def answered(self, worker: int) -> bool:
        """Return whether it is these rounds that a worker is back from, and take note of it."""
        if self._run is None or worker not in self._run.running:
            return False
        self._run.running.remove(worker)
        return True

    def leave(self, worker: int) -> set[int]:
        """Have the others stop whom a worker leaves in the middle of these rounds, and return who they are."""
        if not self.answered(worker):
            return set()
        self.stop()
        assert self._run is not None
        return self._run.running

    def take(self) -> list[RoundRun]:
        """Return the rounds that were completed, once all workers are back."""
        if self._run is None:
            return []
        run, self._run = self._run, None
        completed = completed_rounds(self._arena, run.ticket, run.rounds, run.began)
        self._ended = run.began + sum(one.duration for one in completed)
        return completed

    def held_up(self) -> set[int]:
        """Return the workers that are further than the one that holds them up."""
        if self._run is None:
            return set()
        flags = {worker: self._arena.board.flag(rank) for rank, worker in enumerate(self._run.ranks)}
        last = min((flags[worker] for worker in self._run.running), default=0)
        return {worker for worker in self._run.running if flags[worker] > last}
