"""Rows in memory that other processes of this machine can map too, so that a shard that moves need not be read again.

The memory has no name: it is opened through the descriptors of a process that has it, and gone when the last one ends.
"""

import mmap
import os
from dataclasses import dataclass, replace

import numpy as np

from worker.arrays import AnyArray


@dataclass(frozen=True)
class Handle:
    """Where a process of this machine has a segment: its id, its descriptor, and by which inode to make sure that it is this one.

    `raw` tells in which form the rows are kept, as `Keeping` does.
    """

    pid: int
    descriptor: int
    inode: int
    raw: str | None


class Segment:
    """Memory for rows: a part for inputs, then one for targets.

    Attributes:
        handle: how others get at it; None where they can't.
    """

    def __init__(self, descriptor: int, raw: str | None, size: int, *, writable: bool) -> None:
        """Map the memory that a descriptor stands for, -1 for new memory without one. The descriptor is closed with this."""
        self._descriptor = descriptor
        self.handle = None if descriptor < 0 else Handle(os.getpid(), descriptor, os.fstat(descriptor).st_ino, raw)
        self._memory = mmap.mmap(descriptor, size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)

    @classmethod
    def create(cls, size: int, raw: str | None, *, shared: bool = True) -> "Segment":
        """Make a segment of so many bytes, which others can get at if it is `shared`."""
        if not shared:
            return cls(-1, raw, size, writable=True)
        descriptor = os.memfd_create("isograd-rows", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        return cls(descriptor, raw, size, writable=True)

    @classmethod
    def attach(cls, handle: Handle, size: int) -> "Segment | None":
        """Map the segment of another process; None where that is gone, or has something else there by now."""
        found = borrow(handle)
        if found is None:
            return None
        if os.fstat(found.descriptor).st_size != size:
            os.close(found.descriptor)
            return None
        return cls(found.descriptor, handle.raw, size, writable=False)

    def array(self, shape: tuple[int, ...], dtype: "np.dtype[np.generic]", start: int) -> AnyArray:
        """Return an array over a part of the memory."""
        return np.frombuffer(self._memory, dtype, int(np.prod(shape)), start).reshape(shape)

    def __del__(self) -> None:
        """Let go of the descriptor; the arrays stay as long as anyone has them."""
        if self._descriptor >= 0:
            os.close(self._descriptor)


def borrow(handle: Handle) -> Handle | None:
    """Return a handle of this process's own for another one's segment, with a descriptor to be closed; None where it is gone."""
    try:
        descriptor = os.open(f"/proc/{handle.pid}/fd/{handle.descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    if os.fstat(descriptor).st_ino != handle.inode:
        os.close(descriptor)
        return None
    return replace(handle, pid=os.getpid(), descriptor=descriptor)
