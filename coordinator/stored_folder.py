"""A folder in a store that pyarrow reaches: objects that are whole or not there, without links, locks or appending."""

import errno
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile
from typing import IO, Final
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs

from coordinator.locks import this_process
from worker.errors import UserError
from worker.stores import Place

OBJECT_STORES: Final = frozenset({"s3", "gcs"})
"""What is written there is seen only when it is whole; elsewhere, it gets its name when it is."""

CLAIM: Final = ".claim-"
CLAIM_SECONDS: Final = 60.0
"""A claim this much older than another, or that another has waited for this long, was left behind by a process that died."""

OWNER: Final = ".owner"
"""The file that tells who has the folder."""

PAUSE_SECONDS: Final = 0.1

PIECE: Final = 2**22
"""Bytes that are copied at once."""


def _pause() -> None:
    threading.Event().wait(PAUSE_SECONDS)


class TakenOverError(UserError):
    """Another process has taken the folder over; this one is to write no more there."""


class StoredFolder:
    """A folder in a store; see `Folder`."""

    def __init__(self, place: Place, pause: Callable[[], None] = _pause, root: "StoredFolder | None" = None) -> None:
        """Name the folder; `pause` waits a little for others who claim it. What holds `root` holds this folder in it too."""
        self._place, self._files, self._pause = place, place.filesystem, pause
        self._root, self._mark = root or self, b""

    @property
    def name(self) -> str:
        return self._place.address.rpartition("/")[2]

    @property
    def address(self) -> str:
        return self._place.address

    def at(self, name: str) -> str:
        return self._place.below(name).address

    def folder(self, name: str) -> "StoredFolder":
        return StoredFolder(self._place.below(name), self._pause, self._root)

    def make(self) -> None:
        if self._files.type_name not in OBJECT_STORES:  # there, folders are but a part of names
            with _os_errors():
                self._files.create_dir(self._place.path)

    def check(self) -> None:
        probe = f".probe-{uuid4().hex}"
        self.make()
        self.write(probe, b"")
        self.delete(probe)

    def claim(self, name: str, content: bytes) -> None:
        """Make a file that is not there yet; see `Folder`.

        pyarrow has no exclusive creation. So each who tries puts down a mark, then looks for those of others: who sees none
        goes on, and of those who see each other the first by name, once the others have left. Stores show at once what was
        written, so of two that try at least one sees the other. Who goes on takes the mark away only when the file is there.
        """
        mark = f"{CLAIM}{uuid4().hex}"
        self.make()
        self.write(mark, b"")
        try:
            first = self._await_others(mark, name)
            if not first or self.exists(name):
                raise FileExistsError(errno.EEXIST, "another run has it", self.at(name))
            self.write(name, content)
        finally:
            with suppress(OSError):
                self.delete(mark)

    def _await_others(self, mark: str, name: str) -> bool:
        """Return whether a mark is the first; if so, only when there is the file or no other mark of a process that lives."""
        for _ in range(round(CLAIM_SECONDS / PAUSE_SECONDS)):
            others = self._other_claims(mark)
            if not others or self.exists(name):
                break
            if min(others) < mark:
                return False
            self._pause()
        return True

    def _other_claims(self, mark: str) -> list[str]:
        found = {info.base_name: info.mtime_ns or 0 for info in self._list() if info.base_name.startswith(CLAIM)}
        oldest = found.pop(mark, 0) - 1e9 * CLAIM_SECONDS
        return [name for name, written in found.items() if written > oldest]

    @contextmanager
    def hold(self) -> Iterator[bool]:
        """Take the folder over from whoever holds it; see `Folder`.

        Nobody can tell whether that one still lives, and it may be cut off from everything but the store. So it looks before it
        writes whether it still holds the folder. Should it stand still just between the two, what it writes is of the same run,
        which is a function of its job.
        """
        mark = f"{uuid4().hex} {this_process()}".encode()
        self.write(OWNER, mark)
        self._mark = mark
        try:
            yield True
        finally:
            self._mark = b""
            with suppress(OSError):
                if self.read(OWNER) == mark:
                    self.delete(OWNER)

    def _check_held(self) -> None:
        mark = self._root._mark
        if not mark:
            return
        try:
            found = self._root.read(OWNER)
        except FileNotFoundError:  # that one has ended since
            found = b""
        if found != mark:
            other = found.decode(errors="replace").partition(" ")[2] or "another process"
            raise TakenOverError(
                f"--run-dir: {other} has taken {self._root.address} over, and goes on with the run; this one stops"
            )

    def names(self) -> list[str]:
        return [info.base_name for info in self._list()]

    def _list(self) -> list[fs.FileInfo]:
        with _os_errors():
            found = self._files.get_file_info(fs.FileSelector(self._place.path, allow_not_found=True))
        return [info for info in found if info.type == fs.FileType.File]

    def exists(self, name: str) -> bool:
        with _os_errors():
            return bool(self._files.get_file_info(self._path(name)).type == fs.FileType.File)

    def read(self, name: str) -> bytes:
        with _os_errors(), self._files.open_input_stream(self._path(name)) as stream:
            content: bytes = stream.read()
        return content

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with NamedTemporaryFile(prefix="isograd-") as copy:
            with _os_errors(), self._files.open_input_stream(self._path(name)) as stream:
                shutil.copyfileobj(stream, copy, PIECE)
            copy.flush()
            yield Path(copy.name)

    def write(self, name: str, content: bytes | Iterable[bytes | memoryview]) -> None:
        self._check_held()
        with _os_errors():
            if self._files.type_name in OBJECT_STORES:
                self._stream(self._path(name), content)
            else:
                self._move_in(name, content)

    def _stream(self, path: str, content: bytes | Iterable[bytes | memoryview]) -> None:
        with self._files.open_output_stream(path) as stream:
            for piece in [content] if isinstance(content, bytes) else content:
                stream.write(piece)

    def _move_in(self, name: str, content: bytes | Iterable[bytes | memoryview]) -> None:
        temporary = self._path(f".{name}.{uuid4().hex}")
        try:
            self._stream(temporary, content)
            self.delete(name)  # HDFS does not rename to what is there
            self._files.move(temporary, self._path(name))
        except BaseException:
            with suppress(OSError, pa.ArrowException):
                self._files.delete_file(temporary)
            raise

    @contextmanager
    def replacing(self, name: str) -> Iterator[IO[bytes]]:
        # A stream to a store can't be taken back, so what may yet fail is put together here.
        with TemporaryFile(prefix="isograd-") as file:
            yield file
            file.seek(0)
            self.write(name, iter(lambda: file.read(PIECE), b""))

    def append(self, name: str, line: bytes) -> bool:
        return False

    def delete(self, name: str) -> None:
        self._check_held()
        with _os_errors(), suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return self._place.below(name).path


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turn what else pyarrow raises into an OSError."""
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
