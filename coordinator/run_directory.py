"""The directory of one run: the resolved job, a line an epoch, the summary and the model."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from coordinator.model_files import write_atomically
from coordinator.records import EpochRecord, Summary
from worker.errors import UserError


class RunDirectoryError(UserError):
    """The run directory can't be used."""


class RunDirectory:
    """A run's files. Each is whole at any moment: written aside and renamed, or appended a line at a time."""

    def __init__(self, path: Path, job: str) -> None:
        """Make the directory and put the resolved job (TOML) into it. Raises RunDirectoryError as `check` does."""
        check(path)
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Exclusive creation: of two runs that race for a directory, one gets it.
            with (path / "job.toml").open("x", encoding="utf-8") as file:
                file.write(job)
        except FileExistsError as error:
            raise _in_use(path) from error
        except OSError as error:
            raise _unwritable(path, error.strerror) from error

    @property
    def model(self) -> Path:
        """The folder for the model."""
        return self.path / "model"

    def append(self, record: EpochRecord) -> None:
        """Add a line to history.jsonl."""
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record), allow_nan=False) + "\n")

    def finish(self, summary: Summary) -> None:
        """Write summary.json, the last file of a run."""
        content = json.dumps(asdict(summary), indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(self.path / "summary.json", content.encode() + b"\n")


def check(path: Path) -> None:
    """Raise RunDirectoryError if `path` holds a run or can't be made."""
    try:
        if (path / "job.toml").exists() or (path / "summary.json").exists():
            raise _in_use(path)
        nearest = next(place for place in (path, *path.parents) if place.exists())
        if not nearest.is_dir():
            raise _unwritable(path, f"{nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise _unwritable(path, f"no permission to write in {nearest}")
    except OSError as error:
        raise _unwritable(path, error.strerror) from error


def _in_use(path: Path) -> RunDirectoryError:
    return RunDirectoryError(f"--run-dir: {path} holds a run already; give a directory that is new or empty")


def _unwritable(path: Path, reason: str | None) -> RunDirectoryError:
    return RunDirectoryError(f"--run-dir: {path} can't be written: {reason}; give a directory that can")
