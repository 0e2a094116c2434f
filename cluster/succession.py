"""What the successor of a coordinator that is lost is to do, and when there is none. No I/O."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from coordinator.dispatch import PoolError
from coordinator.order import Order
from coordinator.records import Checkpointed, Event, Noticed, Started

MOST_IN_A_ROW: Final = 6
"""Coordinators that may be lost without a checkpoint of a later round in between."""


class Succession:
    """One coordinator after the other.

    Attributes:
        order: what the next one is to carry out.
    """

    def __init__(self, order: Order) -> None:
        """Begin with the first one, which carries out `order`."""
        self.order = order
        self._round = self._in_a_row = 0
        self._checkpointed = self._begun = False

    def heard(self, event: Event) -> Iterator[Noticed]:
        """Take note of what a coordinator tells, and yield what the user should know beside it."""
        match event:
            case Checkpointed(round=reached):
                self._checkpointed = True
                if reached > self._round:
                    self._round, self._in_a_row = reached, 0
            case Started(rounds_done=reached):
                if reached:
                    self._checkpointed, self._round = True, max(self._round, reached)
                elif self._begun:
                    yield Noticed(message="there was no checkpoint yet, so the run begins anew")
                self._begun = True

    def lost(self, cause: str) -> Noticed:
        """Make the order that of a successor, and return what the user should know of that.

        Raises:
            PoolError: one coordinator after the other is lost, and the run comes no further.
        """
        self._in_a_row += 1
        if self._in_a_row >= MOST_IN_A_ROW:
            raise PoolError(
                f"the coordinator was lost {self._in_a_row} times without a new checkpoint in between, the last time: {cause}; "
                "--resume goes on with what the run directory holds"
            )
        # One that has not begun may not have looked yet whose run the directory holds, which may be another.
        goes_on = self.order.resume_if_begun or (self._begun and not self.order.resume)
        self.order = replace(self.order, resume_if_begun=goes_on, restarted=True, checkpointed=self._checkpointed)
        return Noticed(message=f"the coordinator was lost: {cause}; a new one is started")
