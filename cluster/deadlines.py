"""Until when a worker's answer is waited for, and when to ask whether it is alive. No I/O; the clock is passed in."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

Clock = Callable[[], float]
"""Returns seconds that only ever grow."""


@dataclass
class _Pending:
    """A task that was given. Without patience, its worker counts as alive while it answers pings."""

    patience: float | None
    due: float
    pinged: bool = False


class Deadlines:
    """The workers that have a task, and how long each may take for it."""

    def __init__(self, least: float, clock: Clock) -> None:
        """Begin without any.

        Args:
            least: seconds in which a worker that was given a task without patience must give a sign of life.
            clock: tells the time.
        """
        self._least, self._clock = least, clock
        self._pending: dict[int, _Pending] = {}

    def __contains__(self, worker: int) -> bool:
        """Return whether a worker has a task."""
        return worker in self._pending

    def begin(self, worker: int, patience: float | None) -> None:
        """Take note that a worker is given a task, and how many seconds it has."""
        self._pending[worker] = _Pending(patience, self._clock() + (patience or self._least))

    def end(self, worker: int) -> None:
        """Take note that a worker has no task any more, if it had one."""
        self._pending.pop(worker, None)

    def renew(self, worker: int) -> None:
        """Give a worker that has a task as long as at first, from now on."""
        if worker in self._pending:
            self.begin(worker, self._pending[worker].patience)

    def suspend(self, worker: int) -> None:
        """Wait for others than this worker, which has a task."""
        self._pending[worker].due = float("inf")

    def given(self, worker: int) -> float:
        """Return how many seconds a worker was given."""
        return self._pending[worker].patience or self._least

    def next_check(self) -> float:
        """Return when a worker is to be pinged or is overdue, even if nothing happens."""
        return min((self._check_at(pending) for pending in self._pending.values()), default=float("inf"))

    def to_ping(self) -> list[int]:
        """Return the workers that are to be asked now whether they are alive; each is named once, until it is renewed."""
        now = self._clock()
        chosen = [
            worker
            for worker, pending in self._pending.items()
            if pending.patience is None and not pending.pinged and now >= self._check_at(pending)
        ]
        for worker in chosen:
            self._pending[worker].pinged = True
        return chosen

    def overdue(self, excused: Collection[int] = ()) -> list[int]:
        """Return the workers that have taken too long, but for those whom nobody blames."""
        now = self._clock()
        return [worker for worker, pending in self._pending.items() if now >= pending.due and worker not in excused]

    def _check_at(self, pending: _Pending) -> float:
        return pending.due - self._least / 2 if pending.patience is None and not pending.pinged else pending.due
