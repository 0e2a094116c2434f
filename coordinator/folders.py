"""Folders whose files are whole at any moment: on this machine, or in a store behind a URI."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Final, Protocol

from coordinator.local_folder import LocalFolder
from coordinator.stored_folder import StoredFolder
from worker.errors import first_line, require
from worker.stores import StorageSpec, check_address, is_remote, local_path, locate

Address = Path | str
"""Where a folder or file is: a path on this machine, or as text the URI of a store."""

Pieces = Iterable[bytes | memoryview]

WRITABLE: Final = ("s3", "gs", "hdfs")
"""Stores that show a file only when it is whole; what is written to Azure's can be seen in part."""


class Folder(Protocol):
    """Files, by name. What goes wrong is an OSError; where a file is not there, a FileNotFoundError.

    One that was held, and that another process has taken over since, is not written: that is a TakenOverError.
    """

    @property
    def name(self) -> str:
        """The folder's own name."""

    @property
    def address(self) -> str:
        """Where it is, for people."""

    def at(self, name: str) -> str:
        """Return where a file of it is, for people."""

    def folder(self, name: str) -> "Folder":
        """Return a folder in this one, which `make` may have to make."""

    def make(self) -> None:
        """Make the folder, if it is not there; what it lies in must be there."""

    def check(self) -> None:
        """Raise an OSError where the folder can't be made or written."""

    def claim(self, name: str, content: bytes) -> None:
        """Make the folder, and in it a file that is not there yet: of several who try, at most one succeeds.

        Raises:
            FileExistsError: it is there, or another is about to write it.
        """

    def hold(self) -> AbstractContextManager[bool]:
        """Hold the folder, and those in it, for the length of a `with` block: one process at a time writes there.

        Where there are locks, others can't hold it meanwhile; else they can, and this one finds itself taken over. Enters with
        False where there would have to be locks, but are none.

        Raises:
            BlockingIOError: another holds it; `strerror` says who.
        """

    def names(self) -> list[str]:
        """Return the names of its files; none where there is no such folder."""

    def exists(self, name: str) -> bool:
        """Return whether a file is there."""

    def read(self, name: str) -> bytes:
        """Return what a file holds."""

    def local(self, name: str) -> AbstractContextManager[Path]:
        """Give the path on this machine of a file, or of a copy of it, for the length of a `with` block."""

    def write(self, name: str, content: bytes | Pieces) -> None:
        """Write a file: readers see the old one or the new, never a part."""

    def replacing(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Give a file to write for the length of a `with` block; it takes its place whole when that ends without an error."""

    def append(self, name: str, line: bytes) -> bool:
        """Add a line to a file and return True, or return False where files can only be written whole."""

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""


def parse_address(text: str, key: str, *, to_write: bool) -> Address:
    """Return the address in a text, a path or a URI.

    Raises:
        JobError: at `key`, where it is none, or none where files can be written if that is what it is for.
    """
    check_address(text, key)
    if not is_remote(text):
        return Path(local_path(text)).absolute()
    scheme, accepted = text.partition("://")[0], ", ".join(f"{name}://" for name in WRITABLE)
    require(
        scheme in WRITABLE or not to_write,
        key,
        f"nothing can be written to {scheme}://; accepted are a local path, file://, {accepted}",
    )
    return text.rstrip("/")


def open_folder(address: Address, storage: StorageSpec) -> Folder:
    """Return the folder at an address, which need not be there. Raises UserError where its store can't be reached."""
    return LocalFolder(address) if isinstance(address, Path) else StoredFolder(locate(address, storage))


def open_parent(address: Address, storage: StorageSpec) -> tuple[Folder, str]:
    """Return the folder that a file is in, and the file's name. Raises UserError as `open_folder` does."""
    if isinstance(address, Path):
        return LocalFolder(address.parent), address.name
    parent, _, name = address.rpartition("/")
    return open_folder(parent, storage), name


def name_of(address: Address) -> str:
    """Return the last part of an address."""
    return address.name if isinstance(address, Path) else address.rpartition("/")[2]


def reason(error: OSError) -> str:
    """Return why, in one line."""
    return (error.strerror or first_line(error)).rstrip(".")
