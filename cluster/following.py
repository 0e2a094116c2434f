"""Following the log of a job to its end, through streams that break off."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic
from typing import Final, Protocol

import aiohttp

from cluster.job_reports import JobReport
from coordinator.dispatch import PoolError

SILENCE_SECONDS: Final = 120.0
"""The other end of a stream that is silent for so long may be gone: it is opened anew, which has it send all once more."""

PATIENCE_SECONDS: Final = 300.0
"""For how long a dashboard may be out of reach until it is given up."""

PAUSE_SECONDS: Final = 1.0


class Source(Protocol):
    """Where a job's log and its state come from."""

    def report(self, job: str) -> JobReport:
        """Return how a job fares. Raises PoolError where nothing answers."""

    def log(self, job: str) -> str:
        """Return what a job has printed so far."""

    def stream(self, job: str) -> AsyncIterator[str]:
        """Yield what a job prints, from its beginning on, until it has ended or the stream breaks off."""


class Follower:
    """Writes what jobs print, each character once."""

    def __init__(
        self,
        source: Source,
        write: Callable[[str], None],
        notice: Callable[[str], None],
        *,
        clock: Callable[[], float] = monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        """Follow jobs of a source.

        Args:
            source: of logs.
            write: takes what is printed.
            notice: takes sentences for the user.
            clock: gives seconds.
            pause: waits for so many seconds.
            silence: in seconds, after which a stream is opened anew.
        """
        self._source, self._write, self._notice = source, write, notice
        self._clock, self._pause, self._silence = clock, pause, silence
        self._written = 0

    async def follow(self, job: str) -> JobReport:
        """Write what a job prints until it has ended, and return how it did.

        Raises:
            UserError: there is no such job.
            PoolError: the dashboard is out of reach for too long.
        """
        self._written = 0
        reached, told = self._clock(), False
        while True:
            before = self._written
            silent = await self._stream(job)
            told = told and self._written == before
            try:
                report = self._source.report(job)
                if report.over:
                    self._take(self._source.log(job), 0)  # a stream may end before the log does
                    return report
                reached = self._clock()
            except PoolError as error:
                if self._clock() - reached > PATIENCE_SECONDS:
                    raise PoolError(f"{error}; the job may go on: isograd logs {job} --follow takes it up again") from error
            if not silent and not told:
                self._notice("the stream of the log broke off; taking it up again")
                told = True
            await self._pause(PAUSE_SECONDS)

    async def _stream(self, job: str) -> bool:
        """Write what a stream has beyond what is written, until it ends; return whether it is only silent."""
        position, stream = 0, self._source.stream(job)
        while True:
            try:
                async with asyncio.timeout(self._silence):
                    text = await anext(stream)
            except TimeoutError:
                return True
            except (StopAsyncIteration, RuntimeError, aiohttp.ClientError, OSError):
                return False
            # Apart from the reading: where nobody takes what is written any more, following is at its end.
            self._take(text, position)
            position += len(text)

    def _take(self, text: str, position: int) -> None:
        fresh = text[max(self._written - position, 0) :]
        if fresh:
            self._write(fresh)
            self._written = position + len(text)
