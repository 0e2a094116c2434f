"""Arrays in memory that several processes map. It has no name anywhere, and is gone when the last process that has it ends."""

import mmap
import os

import numpy as np

from worker.arrays import Floats


class SharedArrays:
    """Equal arrays in one piece of memory, told to other processes by its file descriptor.

    Pages take memory from when they are first written to, so that arrays that are never used cost nothing.

    Attributes:
        arrays: they.
    """

    def __init__(self, descriptor: int, count: int, entries: int, dtype: str) -> None:
        """Map memory that a descriptor stands for. The descriptor is closed with this."""
        self._descriptor = descriptor
        size = count * _stride(entries, dtype)
        memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED)
        starts = range(0, size, _stride(entries, dtype))
        self.arrays: list[Floats] = [np.frombuffer(memory, dtype, entries, start) for start in starts]

    @classmethod
    def create(cls, count: int, entries: int, dtype: str) -> "SharedArrays":
        """Make so many arrays."""
        descriptor = os.memfd_create("isograd", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, count * _stride(entries, dtype))
        return cls(descriptor, count, entries, dtype)

    @property
    def descriptor(self) -> int:
        """What another process maps it by."""
        return self._descriptor

    def __del__(self) -> None:
        """Let go of the descriptor; the arrays stay as long as anyone has them."""
        os.close(self._descriptor)


def _stride(entries: int, dtype: str) -> int:
    """Return the bytes from one array to the next: whole pages, so that no two processes write to one."""
    return -(-entries * np.dtype(dtype).itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
