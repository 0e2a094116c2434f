"""All that lets others watch a run: its events go in; metrics, page and report come out."""

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final

from coordinator.endpoint import METRICS, Content, Endpoint
from coordinator.export import CONTENT_TYPE, MetricsSpec, expose, push, registry
from coordinator.folders import Address, name_of
from coordinator.metrics import Metrics
from coordinator.records import Event, Noticed
from coordinator.report import Board, policy

MOST_WAITING: Final = 64
"""Events that wait until somebody looks. Taken in together they cost less than one by one, and no round much."""

PAGE_SECONDS: Final = 2.0
"""An open page asks every second: one that asked within this time is served as long after the end, so that it learns of it."""

PAGE: Final = "/"
STATE: Final = "/state.json"


class Watch:
    """Takes note of a run's events and shows them: at an endpoint if the job asks for one, and in the report."""

    def __init__(self, spec: MetricsSpec | None, directory: Address) -> None:
        """Start the endpoint of the run in `directory`. Raises JobError as `Endpoint` does."""
        self._spec, self._run = spec, name_of(directory)
        self._metrics, self._board = Metrics(self._run), Board(self._run)
        self._waiting: deque[Event] = deque()
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._endpoint = Endpoint(spec, directory, self._contents(spec)) if spec is not None else None

    @property
    def metrics_url(self) -> str | None:
        """Where the metrics are, if anywhere."""
        return self._endpoint.url + METRICS if self._endpoint is not None else None

    @property
    def dashboard_url(self) -> str | None:
        """Where the live page is, if anywhere."""
        return self._endpoint.url + PAGE if self._endpoint is not None and self._spec and self._spec.dashboard else None

    def report(self, event: Event) -> Event:
        """Take note of an event, and return it."""
        self._waiting.append(event)
        # Where the lock is taken, somebody is looking, and takes in what waits sooner or later.
        if len(self._waiting) >= MOST_WAITING and self._lock.acquire(blocking=False):
            try:
                self._take_in()
            finally:
                self._lock.release()
        return event

    def fail(self) -> None:
        """Take note that the run broke off, without an event that would say how it ended."""
        with self._lock:
            self._take_in()
            self._metrics.fail()

    def push(self) -> list[Noticed]:
        """Send the final errors to the job's Pushgateway, if it names one; return what went wrong."""
        if self._spec is None or self._spec.pushgateway is None:
            return []
        with self._lock:
            self._take_in()
            families = registry(self._metrics.final())
        problem = push(families, self._spec.pushgateway, self._run)
        return [Noticed(message=problem)] if problem is not None else []

    def page(self) -> bytes:
        """Return the page as it is now, to be read without the run."""
        return self._page(live=False)

    def linger(self, interrupted: Callable[[], bool]) -> None:
        """Go on showing the final values for as long as the job asks, or until `interrupted` says so."""
        if self._endpoint is not None and self._spec is not None:
            self._endpoint.linger(self._spec.linger_seconds, self._spec.linger_scrapes, interrupted)
            if monotonic() - self._looked_at < PAGE_SECONDS:
                self._endpoint.linger(PAGE_SECONDS, 0, lambda: False)

    def close(self) -> None:
        """Stop the endpoint."""
        if self._endpoint is not None:
            self._endpoint.stop()

    def _contents(self, spec: MetricsSpec) -> dict[str, Content]:
        contents = {METRICS: Content(CONTENT_TYPE, self._expose)}
        if spec.dashboard:
            headers = (("Content-Security-Policy", policy() + "; frame-ancestors 'none'"), ("Referrer-Policy", "no-referrer"))
            contents[PAGE] = Content("text/html; charset=utf-8", lambda: self._page(live=True), headers)
            contents[STATE] = Content("application/json", self._state)
        return contents

    def _expose(self) -> bytes:
        with self._lock:
            self._take_in()
            families = tuple(self._metrics.collect())
        return expose(iter(families))

    def _page(self, *, live: bool) -> bytes:
        with self._lock:
            self._take_in()
            self._looked_at = monotonic() if live else self._looked_at
            return self._board.page(self._metrics.compute_means, live=live)

    def _state(self) -> bytes:
        with self._lock:
            self._take_in()
            self._looked_at = monotonic()
            return self._board.state(self._metrics.compute_means)

    def _take_in(self) -> None:
        while self._waiting:
            event = self._waiting.popleft()
            self._metrics.observe(event)
            self._board.observe(event)
