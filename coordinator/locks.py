"""Advisory locks on files, which end with the process that holds them."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

MOST_SAID: Final = 1000
"""Bytes of a lock file that are read."""

NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""What a file system without locks answers."""


def this_process() -> str:
    """Return which process this is, for people."""
    return f"process {os.getpid()} on host {socket.gethostname()}"


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file, which is made for that and goes with it; enters with whether the file system has locks.

    Raises:
        BlockingIOError: another process holds it; `strerror` names it.
        OSError: the file can't be made.
    """
    descriptor, held = _acquire(path)
    try:
        with suppress(OSError):  # a full disk
            os.ftruncate(descriptor, 0)
            os.write(descriptor, this_process().encode())
        yield held
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held: who opens it from now on makes a new one
        os.close(descriptor)


def _acquire(path: Path) -> tuple[int, bool]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            held = _lock(descriptor)
            if not held or _is_at(descriptor, path):
                return descriptor, held
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # who held it deleted it meanwhile


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, MOST_SAID, 0).decode(errors="replace")
        raise BlockingIOError(errno.EWOULDBLOCK, holder or "a process that has not said which") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
