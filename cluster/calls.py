"""Calls of Ray actors under way, to be waited for together with sockets; and what Ray's errors come to in a line."""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

from ray.exceptions import ActorUnavailableError, ActorUnschedulableError, ObjectLostError, RayActorError

from worker.errors import first_line

_CAUSES: Final = {
    "NODE_OUT_OF_MEMORY": "Ray ended it, since its node had hardly any memory left",
    "low on memory": "Ray ended it, since its node had hardly any memory left",
    "node has died": "its node is gone",
    "worker process has died": "its process died",
    "killed by `ray.kill`": "it was ended by `ray.kill`",
}
"""What Ray's paragraphs about an actor's death come to, by words that are found in them; the first that is."""


class Calls:
    """Calls of actors under way. Whoever made one is told its result, or exception, where `deal_with_done` is called."""

    def __init__(self) -> None:
        """Begin without any."""
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._done: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        """Return the descriptor that is readable when calls are done."""
        return self._wake

    def add(self, reference: Any, then: Callable[[Any], None]) -> None:
        """Have `then` called with the call's result once it is there."""

        def done(future: Future[Any]) -> None:
            self._done.append((then, future.exception() or future.result()))
            with self._lock:  # once it is closed, the number may stand for another file
                if not self._closed:
                    os.eventfd_write(self._wake, 1)

        reference.future().add_done_callback(done)

    def deal_with_done(self) -> None:
        """Tell of the calls that are done. Raises what those who are told raise."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._done:
            then, result = self._done.popleft()
            then(result)

    def close(self) -> None:
        """Tell of no more."""
        with self._lock:
            self._closed = True
            os.close(self._wake)


def death_cause(error: BaseException) -> str:
    """Return why an actor is lost, in a few words in place of the paragraphs that Ray has about it."""
    text = str(error)
    if isinstance(error, ActorUnavailableError):
        return "it can't be reached"
    if isinstance(error, ActorUnschedulableError):
        return "its node is gone"
    if isinstance(error, ObjectLostError):
        return "what it had computed is gone"
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return text.strip().splitlines()[-1]
    for words, cause in _CAUSES.items():
        if words in text:
            return cause
    return first_line(error)
