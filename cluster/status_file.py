"""How a run fares, in a file that others read while it goes on."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, time
from types import TracebackType
from typing import Final, Literal, Self

from pydantic import TypeAdapter

from cluster.display import Display, Pace
from cluster.options import Exit, verdict
from coordinator.local_folder import write_atomically
from coordinator.records import EpochDone, Errors, Event, Finished, Noticed, RoundDone, Started, Status
from worker.errors import UserError

WRITE_SECONDS: Final = 1.0
"""What is written at most so often, but for the beginning and the end."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How a run fares, or ended.

    Attributes:
        state: "starting" until the first round, then "running", then how it ended.
        exit_code: the command's; None until it ends.
        error: the sentence that it ended with, if it did.
        notice: the latest that the user should know of.
        run: the run's name.
        run_directory: its path, on `host`.
        host: the machine that the coordinator is on.
        metrics_url: where Prometheus finds the metrics, if anywhere; an address of loopback is that of `host`.
        dashboard_url: where the live page is, likewise.
        epoch: the one under way, from 1.
        epochs: at most; None where nothing limits them.
        round: rounds done.
        rounds: at most, likewise.
        loss: over the rows of the latest whole epoch; before that, of the latest round. Once finished, of the weights kept.
        validation_loss: at the end of the latest whole epoch; once finished, of the weights kept.
        error_rate: share of the rows classified wrongly, of the validation where there is one.
        rows_per_second: trained.
        seconds_left: until `rounds` are done at this pace; None where that can't be told.
        workers: that take part.
        worker_failures: how many were lost so far.
        stop_reason: why it ended.
        weights_digest: SHA-256 of the weights kept.
        updated: when this was written, in seconds since the epoch.
    """

    state: Literal["starting", "running"] | Status = "starting"
    exit_code: int | None = None
    error: str | None = None
    notice: str | None = None
    run: str | None = None
    run_directory: str | None = None
    host: str | None = None
    metrics_url: str | None = None
    dashboard_url: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    round: int | None = None
    rounds: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    error_rate: float | None = None
    rows_per_second: float | None = None
    seconds_left: float | None = None
    workers: int | None = None
    worker_failures: int | None = None
    stop_reason: str | None = None
    weights_digest: str | None = None
    updated: float = 0.0


_ADAPTER = TypeAdapter(RunStatus)


def read_status(text: str | bytes) -> RunStatus:
    """Return what a status file holds. Raises ValueError where that is none."""
    return _ADAPTER.validate_json(text)


class StatusFile:
    """A display that keeps a status file; leaving its `with` block records how the command ends."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = monotonic) -> None:
        """Write to `path`, or nowhere if that is None; `clock` gives seconds, and paces the writing."""
        self._path, self._clock = path, clock
        self._status, self._written = RunStatus(), float("-inf")
        self._pace: Pace | None = None
        self._per_epoch = 1

    def __enter__(self) -> Self:
        """Begin the file. Raises UserError where it can't be written."""
        try:
            self._write()
        except OSError as error:
            raise UserError(
                f"--status-file: {self._path} can't be written: {error.strerror}; give a file in a folder of yours"
            ) from error
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        match error:
            case None:
                self._change(exit_code=int(Exit.COMPLETED))
            case SystemExit(code=int(code)):
                self._change(exit_code=code)
            case _:
                sentence, code = verdict(error)
                ended = self._status.state not in ("starting", "running")
                state = "interrupted" if code is Exit.INTERRUPTED else "failed"
                self._change(exit_code=int(code), error=sentence, state=self._status.state if ended else state)
        self._try_to_write()

    def show(self, event: Event) -> None:
        """Take note of an event, and write it down if it is time."""
        self._take_in(event)
        if isinstance(event, Started | Finished) or self._clock() - self._written >= WRITE_SECONDS:
            self._try_to_write()

    def close(self) -> None:
        """Do nothing; what ends a command is known when its `with` block is left."""

    def _take_in(self, event: Event) -> None:
        match event:
            case Started():
                self._start(event)
            case RoundDone():
                self._move(event.round)
                self._change(workers=event.crew.workers, worker_failures=event.crew.lost)
                if self._status.loss is None:
                    self._change(loss=event.loss)
            case EpochDone(record=record):
                self._move(record.round)
                self._errors(record.train, record.validation)
            case Noticed(message=message):
                self._change(notice=message)
            case Finished():
                self._finish(event)

    def _start(self, event: Started) -> None:
        self._pace, self._per_epoch = Pace(event), event.rounds_per_epoch
        self._status = RunStatus(
            state="running",
            run=event.run,
            run_directory=event.directory,
            host=event.host,
            metrics_url=event.metrics_url,
            dashboard_url=event.dashboard_url,
            epochs=None if event.most_rounds is None else -(-event.most_rounds // event.rounds_per_epoch),
            rounds=event.most_rounds,
            workers=event.crew.workers,
            worker_failures=event.crew.lost,
        )
        self._move(event.rounds_done)
        if event.history:
            self._errors(event.history[-1].train, event.history[-1].validation)

    def _move(self, rounds: int) -> None:
        assert self._pace is not None
        self._change(
            round=rounds,
            epoch=max(1, -(-rounds // self._per_epoch)),
            rows_per_second=self._pace.rows_per_second(rounds),
            seconds_left=self._pace.seconds_left(rounds),
        )

    def _finish(self, event: Finished) -> None:
        summary = event.summary
        self._change(
            state=summary.status,
            stop_reason=summary.stop_reason,
            weights_digest=summary.weights_digest,
            round=summary.rounds,
            rows_per_second=summary.rows_per_second,
            seconds_left=0.0,
            workers=event.crew.workers,
            worker_failures=event.crew.lost,
        )
        if summary.train is not None:
            self._errors(summary.train, summary.validation)

    def _errors(self, train: Errors, validation: Errors | None) -> None:
        self._change(
            loss=train.loss,
            validation_loss=None if validation is None else validation.loss,
            error_rate=(validation or train).error_rate,
        )

    def _change(self, **fields: object) -> None:
        self._status = replace(self._status, **fields)  # type: ignore[arg-type]

    def _try_to_write(self) -> None:
        with suppress(OSError):  # a disk that is full: no reason to end the run
            self._write()

    def _write(self) -> None:
        if self._path is not None:
            self._written = self._clock()
            self._change(updated=time())
            write_atomically(self._path, _ADAPTER.dump_json(self._status) + b"\n")


class Displays:
    """Several displays as one."""

    def __init__(self, *displays: Display) -> None:
        self._displays = displays

    def show(self, event: Event) -> None:
        for display in self._displays:
            display.show(event)

    def close(self) -> None:
        for display in self._displays:
            display.close()
