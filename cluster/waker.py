"""What wakes a coordinator that waits: calls that are done, workers that connect, and answers over links."""

import select
from collections.abc import Callable, Collection


class Waker:
    """Descriptors, and what is done when one of them can be read. Some wake only while they are awaited; hang-ups do always."""

    def __init__(self) -> None:
        """Begin without any."""
        self._epoll = select.epoll()
        self._then: dict[int, Callable[[], None]] = {}
        self._awaited: set[int] = set()

    def add(self, descriptor: int, then: Callable[[], None], *, always: bool) -> None:
        """Have `then` called when a descriptor can be read: always, or where it is awaited."""
        self._then[descriptor] = then
        self._epoll.register(descriptor, select.EPOLLIN if always else 0)

    def forget(self, descriptor: int) -> None:
        """Leave a descriptor out, before it is closed."""
        del self._then[descriptor]
        self._awaited.discard(descriptor)
        self._epoll.unregister(descriptor)

    def await_all(self, descriptors: Collection[int]) -> None:
        """Be woken by each of these and no others of those that do not always wake."""
        for descriptor in self._awaited.difference(descriptors):
            self._epoll.modify(descriptor, 0)
        for descriptor in set(descriptors) - self._awaited:
            self._epoll.modify(descriptor, select.EPOLLIN)
        self._awaited = set(descriptors)

    def await_one(self, descriptors: Collection[int]) -> None:
        """Be woken by one of these: who is woken takes a core from those that still compute."""
        if descriptors and self._awaited.isdisjoint(descriptors):
            self.await_all([next(iter(descriptors))])

    def wait(self, seconds: float) -> None:
        """Do what is to be done about descriptors that can be read, waiting so many seconds at most for one."""
        for descriptor, _ in self._epoll.poll(seconds):
            then = self._then.get(descriptor)  # unless another of them had it left out
            if then is not None:
                then()

    def close(self) -> None:
        """Wait for nothing any more."""
        self._epoll.close()
