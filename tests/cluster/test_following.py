"""Following a log through streams that break off, without a cluster."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp
import pytest
from ray.job_submission import JobDetails

from cluster.following import PATIENCE_SECONDS, Follower
from cluster.job_reports import JobReport, describe
from coordinator.dispatch import PoolError
from worker.errors import UserError

LOG = "one\ntwo\nthree\n"
Piece = str | BaseException


def report(status: str) -> JobReport:
    return describe(JobDetails(type="SUBMISSION", submission_id="a", status=status, entrypoint="exec"), None)


class Scripted:
    """A source that goes by a script: what each stream yields or raises, and what is then said of the job."""

    def __init__(self, streams: Iterable[list[Piece]], states: Iterable[str | BaseException]) -> None:
        self.streams, self.states = iter(streams), iter(states)
        self.opened = 0

    async def stream(self, _: str) -> AsyncIterator[str]:
        self.opened += 1
        for piece in next(self.streams):
            if isinstance(piece, BaseException):
                raise piece
            if piece == "silence":
                await asyncio.Event().wait()
            yield piece

    def report(self, _: str) -> JobReport:
        state = next(self.states)
        if isinstance(state, BaseException):
            raise state
        return report(state)

    def log(self, _: str) -> str:
        return LOG


class Followed:
    """What came of following a source, on a clock that moves with each pause."""

    def __init__(self, source: Scripted) -> None:
        self.written, self.notices, self.now = "", list[str](), 0.0
        follower = Follower(source, self.write, self.notices.append, clock=lambda: self.now, pause=self.pause, silence=0.05)
        self.report = asyncio.run(follower.follow("a"))

    def write(self, text: str) -> None:
        self.written += text

    async def pause(self, seconds: float) -> None:
        self.now += seconds


def test_a_stream_that_lasts() -> None:
    followed = Followed(Scripted([["one\n", "two\nthree\n"]], ["SUCCEEDED"]))
    assert (followed.written, followed.notices, followed.report.exit_code) == (LOG, [], 0)


@pytest.mark.parametrize(
    "break_off",
    [[], [RuntimeError("WebSocket connection closed unexpectedly")], [aiohttp.ClientError()], [ConnectionResetError()]],
    ids=["quietly", "closed", "client", "reset"],
)
@pytest.mark.parametrize("first", [[], ["on"], ["one\n"], ["one\n", "tw"], ["one\n", "two\nthree\n"]])
def test_one_that_breaks_off_is_taken_up_where_it_ended(first: list[Piece], break_off: list[Piece]) -> None:
    source = Scripted([[*first, *break_off], ["one\ntwo", "\nthree\n"]], ["RUNNING", "FAILED"])
    followed = Followed(source)
    assert followed.written == LOG
    assert followed.notices == ["the stream of the log broke off; taking it up again"]
    assert followed.report.exit_code == 4


def test_following_ends_where_nobody_reads_what_is_written() -> None:
    class Gone(Followed):
        def write(self, text: str) -> None:
            raise BrokenPipeError

    source = Scripted([["one\n", "two\n"]] * 2, ["RUNNING"])
    with pytest.raises(BrokenPipeError):
        Gone(source)
    assert source.opened == 1


def test_what_a_stream_did_not_bring_any_more_is_fetched() -> None:
    followed = Followed(Scripted([["one\nt", RuntimeError()]], ["STOPPED"]))
    assert (followed.written, followed.notices, followed.report.exit_code) == (LOG, [], 130)


def test_a_silent_one_is_opened_anew_without_a_word() -> None:
    source = Scripted([["one\n", "silence"], ["silence"], ["one\n", "two\nthree\n"]], ["RUNNING", "RUNNING", "SUCCEEDED"])
    followed = Followed(source)
    assert (followed.written, followed.notices, source.opened) == (LOG, [], 3)


def test_a_dashboard_may_be_out_of_reach_for_a_while() -> None:
    times = int(PATIENCE_SECONDS) - 1
    source = Scripted(
        [["one\n"], *[[aiohttp.ClientError()]] * times, [LOG]], [*[PoolError("gone")] * times, "RUNNING", "SUCCEEDED"]
    )
    followed = Followed(source)
    assert followed.written == LOG
    assert followed.notices == ["the stream of the log broke off; taking it up again"]


def test_but_not_for_ever() -> None:
    source = Scripted([["one\n"]] * 1000, [PoolError("gone")] * 1000)
    with pytest.raises(PoolError, match=r"^gone; the job may go on: isograd logs a --follow takes it up again$"):
        Followed(source)
    assert source.opened == pytest.approx(PATIENCE_SECONDS, abs=2)


def test_a_job_that_is_not_there() -> None:
    def follow(error: Any) -> None:
        Followed(Scripted([[aiohttp.ClientError()]], [error]))

    with pytest.raises(UserError, match="no job a"):
        follow(UserError("no job a"))
