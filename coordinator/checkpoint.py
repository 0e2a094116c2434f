"""The `[checkpoint]` section, and snapshots of a run on disk: whole or not there at all, and nothing in them that could run."""

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, time
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from coordinator.folders import Folder, reason
from coordinator.model_files import safetensors_pieces
from coordinator.records import Checkpointed, Noticed
from coordinator.snapshot import Progress, Snapshot
from coordinator.update import Parameters
from worker.arrays import Floats
from worker.errors import UserError, require

FORMAT: Final = 2
NAME: Final = re.compile(r"round-(\d{12})\.safetensors")
STATE_PREFIX: Final = "optimizer."


@dataclass(frozen=True, kw_only=True)
class CheckpointSpec:
    """When the state of a run is written, so that it can be taken up again.

    Attributes:
        every_epochs: epochs between two checkpoints; one is also written when a run ends or is interrupted.
        keep: newest checkpoints that are kept; that of the best epoch is kept beside them.
    """

    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid"}

    every_epochs: int = 1
    keep: int = 3

    def __post_init__(self) -> None:
        require(self.every_epochs >= 1, "checkpoint.every_epochs", f"must be at least 1, got {self.every_epochs}")
        require(self.keep >= 1, "checkpoint.keep", f"must be at least 1, got {self.keep}")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a checkpoint belongs to.

    Attributes:
        job: the keys of the job that change the result, with their values.
        rows: rows of the training dataset.
        parameters: weights and biases.
        fingerprint: of the machine that computed it.
        pieces: SHA-256 of where the dataset's pieces begin, where the order of rows depends on it; else empty.
        content: SHA-256 of what is known of the training rows.
        files: SHA-256 of what tells a dataset's files from others, wherever they lie; by the key of their path.
    """

    job: dict[str, Any]
    rows: int
    parameters: int
    fingerprint: dict[str, str]
    pieces: str = ""
    content: str = ""
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Header:
    format: int
    origin: Origin
    progress: Progress


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot read back."""

    origin: Origin
    snapshot: Snapshot


class CheckpointError(Exception):
    """A checkpoint is damaged, or not one of ours."""


_HEADER = TypeAdapter(_Header)


def encode(origin: Origin, snapshot: Snapshot) -> Iterator[bytes | memoryview]:
    """Return a snapshot as the pieces of a safetensors file, with a checksum over all that it says."""
    arrays = {"weights": snapshot.parameters.weights_P}
    arrays |= {STATE_PREFIX + name: array for name, array in snapshot.parameters.optimizer.items()}
    if snapshot.kept_P is not snapshot.parameters.weights_P:
        arrays["kept"] = snapshot.kept_P
    header = _HEADER.dump_json(_Header(format=FORMAT, origin=origin, progress=snapshot.progress)).decode()
    return safetensors_pieces(arrays, {"isograd": header, "sha256": _checksum(header, arrays)})


def decode(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError where it is not whole, or not a checkpoint."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays: dict[str, Floats] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = metadata["isograd"]
        if metadata["sha256"] != _checksum(header, arrays):
            raise CheckpointError("its checksum does not match its content")
        read = _HEADER.validate_json(header, strict=True)
        weights_P = arrays.pop("weights")
        kept_P = arrays.pop("kept", weights_P)
    except KeyError as error:
        raise CheckpointError(f"it lacks {error}") from error
    except (OSError, SafetensorError, ValidationError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(str(error).splitlines()[0]) from error
    if read.format != FORMAT:
        raise CheckpointError(f"it has format {read.format}, not {FORMAT}")
    shapes = {array.shape for array in (weights_P, kept_P, *arrays.values())}
    if shapes != {(read.origin.parameters,)}:
        raise CheckpointError("its arrays do not have the network's size")
    state = {name.removeprefix(STATE_PREFIX): array for name, array in arrays.items()}
    return Checkpoint(read.origin, Snapshot(read.progress, Parameters(weights_P, state), kept_P))


def _checksum(header: str, arrays: Mapping[str, Floats]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        digest.update(f"\0{name}\0{arrays[name].dtype.str}\0{arrays[name].shape}\0".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def newest(folder: Folder) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint of a folder, and a sentence for each newer one that was passed over.

    Raises:
        OSError: the folder can't be read.
    """
    passed_over: list[str] = []
    for _, name in sorted(_numbered(folder).items(), reverse=True):
        try:
            with folder.local(name) as path:
                return decode(path), passed_over
        except (CheckpointError, FileNotFoundError) as error:
            passed_over.append(f"{folder.at(name)} was passed over: {error}")
    return None, passed_over


def superfluous(rounds: Iterable[int], keep: int, best: int | None) -> list[int]:
    """Return which checkpoints, by their rounds, may go: all but the newest `keep` and that of the best epoch."""
    ordered = sorted(rounds)
    return [number for number in ordered[:-keep] if number != best]


def _numbered(folder: Folder) -> dict[int, str]:
    found = [(NAME.fullmatch(name), name) for name in folder.names()]
    return {int(match[1]): name for match, name in found if match is not None}


class CheckpointWriter:
    """Writes snapshots in a thread of its own, beside training. A snapshot that waits is replaced by a newer one."""

    def __init__(self, folder: Folder, spec: CheckpointSpec, origin: Origin, write_history: Callable[[], None]) -> None:
        """Get ready to write into `folder`, which is made when it is needed.

        `write_history` is called before each, so that no checkpoint knows of an epoch that the history lacks.
        """
        self._folder, self._spec, self._origin, self._write_history = folder, spec, origin, write_history
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._behind = False
        self._closed = False
        self._written: tuple[int, int] | None = None
        self._events: list[Checkpointed | Noticed] = []
        self._failure: UserError | None = None
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def offer(self, snapshot: Snapshot | None) -> None:
        """Have the history written, and the snapshot if there is one, as soon as the last one is."""
        with self._changed:
            self._waiting, self._behind = snapshot or self._waiting, True
            self._changed.notify_all()

    def close(self, last: Snapshot | None) -> None:
        """Write the last snapshot, if there is one, and end."""
        with self._changed:
            self._waiting = last or self._waiting
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def events(self) -> list[Checkpointed | Noticed]:
        """Return what was written, and what could not be, since the last time this was asked.

        Raises:
            UserError: nothing can be written any more, since another process has taken the run over.
        """
        if self._failure is not None:
            raise self._failure
        if not self._events:  # asked every round: no lock then
            return []
        with self._changed:
            told, self._events = self._events, []
        return told

    def _work(self) -> None:
        try:
            self._write_all()
        except UserError as error:
            self._failure = error

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._behind or self._closed)
                snapshot, self._waiting, self._behind = self._waiting, None, False
                if snapshot is None and self._closed:
                    return
            if snapshot is None:
                with suppress(OSError):  # the next checkpoint will tell
                    self._write_history()
                continue
            place = snapshot.progress.rounds, snapshot.progress.history_lines
            if place == self._written:
                continue
            event = self._write(snapshot)
            if isinstance(event, Checkpointed):
                self._written = place
            with self._changed:
                self._events.append(event)

    def _write(self, snapshot: Snapshot) -> Checkpointed | Noticed:
        began, rounds = perf_counter(), snapshot.progress.rounds
        try:
            self._replace(snapshot)
        except OSError as error:
            return Noticed(
                message=f"the checkpoint of round {rounds} could not be written: {reason(error)}; "
                "training goes on, and earlier checkpoints are whole"
            )
        return Checkpointed(round=rounds, seconds=perf_counter() - began, timestamp=time())

    def _replace(self, snapshot: Snapshot) -> None:
        self._write_history()
        self._folder.make()
        self._folder.write(f"round-{snapshot.progress.rounds:012d}.safetensors", encode(self._origin, snapshot))
        best = snapshot.progress.kept.round if snapshot.progress.kept else None
        names = _numbered(self._folder)
        for number in superfluous(names, self._spec.keep, best):
            self._folder.delete(names[number])
