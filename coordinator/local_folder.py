"""A folder of this machine, its own or mounted."""

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from coordinator.locks import locked

Pieces = Iterable[bytes | memoryview]


class LocalFolder:
    """A folder on this machine; see `Folder`."""

    def __init__(self, path: Path) -> None:
        """Name the folder."""
        self._path = path

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def address(self) -> str:
        return str(self._path)

    def at(self, name: str) -> str:
        return str(self._path / name)

    def folder(self, name: str) -> "LocalFolder":
        return LocalFolder(self._path / name)

    def make(self) -> None:
        self._path.mkdir(exist_ok=True)

    def check(self) -> None:
        nearest = next(place for place in (self._path, *self._path.parents) if place.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{nearest} is a file")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no permission to write in {nearest}")

    def claim(self, name: str, content: bytes) -> None:
        self._path.mkdir(parents=True, exist_ok=True)
        with (self._path / name).open("xb") as file:  # exclusive creation
            file.write(content)

    def hold(self) -> AbstractContextManager[bool]:
        return locked(self._path / ".lock")

    def names(self) -> list[str]:
        return [path.name for path in self._path.iterdir() if path.is_file()] if self._path.is_dir() else []

    def exists(self, name: str) -> bool:
        return (self._path / name).exists()

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        yield self._path / name

    def write(self, name: str, content: bytes | Pieces) -> None:
        write_atomically(self._path / name, content)

    def replacing(self, name: str) -> AbstractContextManager[IO[bytes]]:
        return replacing(self._path / name)

    def append(self, name: str, line: bytes) -> bool:
        with (self._path / name).open("ab") as file:
            file.write(line)
        return True

    def delete(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | Pieces) -> None:
    """Write a file: readers see the old one or the new, never a part."""
    with replacing(path) as file:
        file.writelines([content] if isinstance(content, bytes) else content)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write under a temporary name; it is synced and renamed when the `with` block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
