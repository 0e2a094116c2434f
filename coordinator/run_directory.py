"""The directory of one run: the resolved job, a line an epoch, checkpoints, the summary and the model."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from coordinator.model_files import write_atomically
from coordinator.records import EpochRecord, Summary
from worker.errors import UserError

_RECORD = TypeAdapter(EpochRecord)


class RunDirectoryError(UserError):
    """The run directory can't be used."""


class RunDirectory:
    """A run's files. Each is whole at any moment: written aside and renamed, or appended a line at a time."""

    def __init__(self, path: Path) -> None:
        """Take a directory that `create` or `resume` made sure of."""
        self.path = path

    @classmethod
    def create(cls, path: Path, job: str) -> "RunDirectory":
        """Make the directory and put the resolved job (TOML) into it. Raises RunDirectoryError as `check` does."""
        check(path)
        try:
            with writable(path):
                path.mkdir(parents=True, exist_ok=True)
                # Exclusive creation: of two runs that race for a directory, one gets it.
                with (path / "job.toml").open("x", encoding="utf-8") as file:
                    file.write(job)
        except FileExistsError as error:
            raise _in_use(path) from error
        return cls(path)

    @classmethod
    def resume(cls, path: Path, job: str, history_lines: int) -> "RunDirectory":
        """Take up a run: its job is replaced, and its history cut to the lines that its checkpoint knows of.

        Raises:
            RunDirectoryError: the directory can't be written.
        """
        directory = cls(path)
        with writable(path):
            write_atomically(path / "job.toml", job.encode())
            lines = directory.history.read_bytes().splitlines(keepends=True) if directory.history.exists() else []
            write_atomically(directory.history, b"".join(lines[:history_lines]))
            (path / "summary.json").unlink(missing_ok=True)
            (path / "report.html").unlink(missing_ok=True)
        return directory

    @property
    def history(self) -> Path:
        """The file with a line an epoch."""
        return self.path / "history.jsonl"

    @property
    def model(self) -> Path:
        """The folder for the model."""
        return self.path / "model"

    def records(self) -> tuple[EpochRecord, ...]:
        """Return the lines of history.jsonl, those of a run that is taken up.

        Raises:
            RunDirectoryError: they can't be read.
        """
        with writable(self.path):
            lines = self.history.read_bytes().splitlines() if self.history.exists() else []
        try:
            return tuple(_RECORD.validate_json(line) for line in lines)
        except ValidationError as error:
            raise RunDirectoryError(f"{self.history}: is damaged: {error.errors()[0]['msg']}; begin a new run") from error

    def append(self, record: EpochRecord) -> None:
        """Add a line to history.jsonl."""
        with writable(self.path), self.history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record), allow_nan=False) + "\n")

    def write_report(self, page: bytes) -> None:
        """Write report.html: the run's curves, to be read in a browser."""
        with writable(self.path):
            write_atomically(self.path / "report.html", page)

    def finish(self, summary: Summary) -> None:
        """Write summary.json, the last file of a run."""
        content = json.dumps(asdict(summary), indent=2, allow_nan=False, ensure_ascii=False)
        with writable(self.path):
            write_atomically(self.path / "summary.json", content.encode() + b"\n")


def checkpoints(path: Path) -> Path:
    """Return the folder for a run's checkpoints."""
    return path / "checkpoints"


def holds_run(path: Path) -> bool:
    """Return whether a run was begun in the directory. Raises RunDirectoryError where that can't be told."""
    with writable(path):
        return (path / "job.toml").exists() or (path / "summary.json").exists()


def check(path: Path) -> None:
    """Raise RunDirectoryError if `path` holds a run or can't be made."""
    if holds_run(path):
        raise _in_use(path)
    with writable(path):
        nearest = next(place for place in (path, *path.parents) if place.exists())
        if not nearest.is_dir():
            raise _unwritable(path, f"{nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise _unwritable(path, f"no permission to write in {nearest}")


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn what the operating system says against writing a run's files into a RunDirectoryError."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _unwritable(path, error.strerror) from error


def _in_use(path: Path) -> RunDirectoryError:
    return RunDirectoryError(
        f"--run-dir: {path} holds a run already; give a directory that is new or empty, or --resume to go on with that run"
    )


def _unwritable(path: Path, reason: str | None) -> RunDirectoryError:
    return RunDirectoryError(f"--run-dir: {path} can't be written: {reason}; give a directory that can")
