"""history.jsonl: a line an epoch."""

import json
import threading
from dataclasses import asdict
from typing import Final

from pydantic import TypeAdapter, ValidationError

from coordinator.folders import Folder
from coordinator.records import EpochRecord
from worker.errors import UserError

HISTORY: Final = "history.jsonl"
_RECORD = TypeAdapter(EpochRecord)


class History:
    """The lines of a run's epochs, in a file as soon as can be.

    Where a folder takes single lines, each is there at once. Else, and where that failed, `write` brings all: another thread
    may call it, beside `add`.
    """

    def __init__(self, folder: Folder) -> None:
        """Begin without a line."""
        self._folder, self._lines, self._written = folder, list[bytes](), 0
        self._lock = threading.Lock()

    @classmethod
    def resume(cls, folder: Folder, lines: int) -> "History":
        """Take up the history in a folder, cut to its first lines. Raises OSError where it can't be read or cut."""
        history = cls(folder)
        found = folder.read(HISTORY).splitlines(keepends=True) if folder.exists(HISTORY) else []
        history._lines = found[:lines]
        folder.write(HISTORY, b"".join(history._lines))
        history._written = len(history._lines)
        return history

    def add(self, record: EpochRecord) -> bool:
        """Add a line, and return whether it is in the file already."""
        line = json.dumps(asdict(record), allow_nan=False).encode() + b"\n"
        with self._lock:  # so that `write` does not bring the line while it is being appended
            up_to_date = self._written == len(self._lines)
            self._lines.append(line)
            if not up_to_date or not self._append(line):
                return False
            self._written += 1
            return True

    def _append(self, line: bytes) -> bool:
        try:
            return self._folder.append(HISTORY, line)
        except OSError:
            return False  # a part of it may be there

    def write(self) -> None:
        """Write the lines that are not in the file yet. Raises OSError where that can't be."""
        with self._lock:
            count = len(self._lines)
            if self._written == count:
                return
        # As long as lines are missing, none is appended, so that training need not wait for this.
        self._folder.write(HISTORY, b"".join(self._lines[:count]))
        self._written = count

    def records(self) -> tuple[EpochRecord, ...]:
        """Return what the lines say. Raises UserError where they are damaged."""
        try:
            return tuple(_RECORD.validate_json(line) for line in self._lines)
        except ValidationError as error:
            where = self._folder.at(HISTORY)
            raise UserError(f"{where}: is damaged: {error.errors()[0]['msg']}; begin a new run") from error
