"""The directory of one run: the resolved job, a line an epoch, checkpoints, the summary and the model."""

import json
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from time import monotonic
from typing import Final

from coordinator.folders import Folder, reason
from coordinator.history import HISTORY, History
from coordinator.records import EpochRecord, Noticed, Summary
from worker.errors import UserError

JOB: Final = "job.toml"
SUMMARY: Final = "summary.json"
REPORT: Final = "report.html"


ASKED_SECONDS: Final = 10.0
"""How long a user who asks for it waits for a run that another process still has: so long it may take to end."""

UNATTENDED_SECONDS: Final = 120.0
"""How long a run that is started again by itself waits: an NFS server keeps the locks of a lost machine for up to 90 s."""

POLL_SECONDS: Final = 0.2
_PAUSE: Final = threading.Event()


class RunDirectoryError(UserError):
    """The run directory can't be used."""


class RunDirectory:
    """A run's files, each whole at any moment."""

    def __init__(self, folder: Folder, history: History) -> None:
        """Take a folder that `create` or `resume` made sure of."""
        self._folder, self._history = folder, history

    @classmethod
    def create(cls, folder: Folder, job: str) -> "RunDirectory":
        """Make the directory and put the resolved job (TOML) into it. Raises RunDirectoryError as `check` does."""
        check(folder)
        try:
            with writable(folder):
                folder.claim(JOB, job.encode())  # of two runs that race for a directory, one gets it
        except FileExistsError as error:
            raise _taken(folder) from error
        return cls(folder, History(folder))

    @classmethod
    def resume(cls, folder: Folder, job: str, history_lines: int) -> "RunDirectory":
        """Take up a run: its job is replaced, and its history cut to the lines that its checkpoint knows of.

        Raises:
            RunDirectoryError: the directory can't be written.
        """
        with writable(folder):
            folder.write(JOB, job.encode())
            history = History.resume(folder, history_lines)
            folder.delete(SUMMARY)
            folder.delete(REPORT)
        return cls(folder, history)

    @property
    def checkpoints(self) -> Folder:
        """The folder for checkpoints."""
        return checkpoints(self._folder)

    @property
    def model(self) -> Folder:
        """The folder for the model."""
        return self._folder.folder("model")

    def records(self) -> tuple[EpochRecord, ...]:
        """Return the lines of history.jsonl, those of a run that is taken up. Raises UserError where they are damaged."""
        return self._history.records()

    def append(self, record: EpochRecord) -> bool:
        """Add a line to history.jsonl, and return whether it is there already; if not, `write_history` brings it."""
        return self._history.add(record)

    def write_history(self) -> None:
        """Bring history.jsonl up to date. Raises OSError where that can't be; another thread may call it."""
        self._history.write()

    def finish(self, page: bytes, summary: Summary) -> None:
        """Write what tells of the whole run: history.jsonl, report.html, and last of all summary.json.

        Raises:
            OSError: one of them can't be written.
        """
        self._history.write()
        self._folder.write(REPORT, page)
        content = json.dumps(asdict(summary), indent=2, allow_nan=False, ensure_ascii=False)
        self._folder.write(SUMMARY, content.encode() + b"\n")


def checkpoints(folder: Folder) -> Folder:
    """Return the folder for a run's checkpoints."""
    return folder.folder("checkpoints")


def holds_run(folder: Folder) -> bool:
    """Return whether a run was begun in the directory. Raises RunDirectoryError where that can't be told."""
    with writable(folder):
        return any(folder.exists(name) for name in (JOB, SUMMARY, HISTORY))


def check(folder: Folder) -> None:
    """Raise RunDirectoryError if the directory holds a run or can't be made."""
    if holds_run(folder):
        raise _taken(folder)
    with writable(folder):
        folder.check()


def hold(folder: Folder, held: ExitStack, patience: float, interrupted: Callable[[], bool]) -> Generator[Noticed, None, None]:
    """Keep other processes from going on with the run, until `held` is closed; yield what the user should know.

    Raises:
        RunDirectoryError: another process has the run, and did not let go of it within `patience` seconds.
    """
    until, told = monotonic() + patience, False
    while True:
        try:
            with writable(folder):
                locks = held.enter_context(folder.hold())
            break
        except BlockingIOError as error:
            holder = error.strerror
        if monotonic() >= until or interrupted():
            raise RunDirectoryError(
                f"--run-dir: {folder.address} is in use by another run ({holder}); wait until that has ended, "
                "or give another directory"
            )
        if not told:
            yield Noticed(message=f"waiting until another run ({holder}) lets go of {folder.address}")
            told = True
        _PAUSE.wait(POLL_SECONDS)
    if not locks:
        yield Noticed(message=f"{folder.address} is on a file system without locks: nothing keeps a second run out of it")


@contextmanager
def writable(folder: Folder) -> Iterator[None]:
    """Turn what keeps a run from using its directory, before it begins, into a RunDirectoryError."""
    try:
        yield
    except (FileExistsError, BlockingIOError):
        raise
    except OSError as error:
        told = f"--run-dir: {folder.address} can't be written: {reason(error)}; give a directory that can"
        raise RunDirectoryError(told) from error


@contextmanager
def ending(folder: Folder) -> Iterator[None]:
    """Turn what keeps a run from leaving its results behind into a RunDirectoryError."""
    try:
        yield
    except OSError as error:
        told = f"--run-dir: {folder.address} could not be written: {reason(error)}; when it can, --resume goes on from the "
        raise RunDirectoryError(told + "last checkpoint") from error


def _taken(folder: Folder) -> RunDirectoryError:
    return RunDirectoryError(
        f"--run-dir: {folder.address} holds a run already; give a directory that is new or empty, or --resume to go on with "
        "that run"
    )
