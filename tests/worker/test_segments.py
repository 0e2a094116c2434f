import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from worker.segments import Handle, Segment, borrow

HOLDER = """
import os, sys
import numpy as np
from worker.segments import Segment
segment = Segment.create(800, "uint8")
segment.array((10, 10), np.dtype("float64"), 0)[:] = 7
print(segment.handle.pid, segment.handle.descriptor, segment.handle.inode, flush=True)
sys.stdin.readline()
"""


def test_another_process_has_the_rows_as_long_as_anyone_holds_them() -> None:
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        pid, descriptor, inode = map(int, holder.stdout.readline().split())
        handle = Handle(pid, descriptor, inode, "uint8")
        borrowed = borrow(handle)
        holder.kill()
        holder.wait()

    assert pid == holder.pid
    assert Segment.attach(handle, 800) is None
    assert borrowed is not None and borrowed.pid == os.getpid()
    found = Segment.attach(borrowed, 800)
    os.close(borrowed.descriptor)
    assert found is not None and found.handle.raw == "uint8"
    assert (found.array((10, 10), np.dtype("float64"), 0) == 7).all()


def test_what_is_not_there_any_more_is_not_found() -> None:
    segment = Segment.create(800, None)
    handle = segment.handle

    assert Segment.attach(replace(handle, inode=handle.inode + 1), 800) is None
    assert Segment.attach(handle, 801) is None
    assert borrow(replace(handle, descriptor=10**6)) is None


def test_nothing_stays_open_of_a_segment_that_nobody_has(shared: Callable[[], set[int]]) -> None:
    segment = Segment.create(80, None)
    inode = segment.handle.inode
    array = segment.array((10,), np.dtype("float64"), 0)
    array[:] = 3
    attached = Segment.attach(segment.handle, 80)
    assert attached is not None
    copy = attached.array((10,), np.dtype("float64"), 0)
    assert inode in shared()
    del segment, attached
    assert (copy == 3).all() and not copy.flags.writeable
    del array, copy

    assert inode not in shared()
