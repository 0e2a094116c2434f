"""Ending what a local Ray would leave behind: after a command was killed outright, and after a start that took too long.

When a driver dies by SIGKILL, its Ray ends its servers and workers within seconds, but two agents of the raylet's go on for a
minute, trying to report the raylet's death to a server that is gone. A small process of our own waits for the raylet to end, and
ends them.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

CHECK_SECONDS: Final = 0.5

MOST_STARTS: Final = 3
"""How often a node of Ray is started that does not come up in time."""

T = TypeVar("T")


class StartTimeoutError(RuntimeError):
    """A node of Ray did not come up in time, however often it was started."""


def start_anew_if_late(start: Callable[[], T]) -> T:
    """Return what `start` does, which starts a node of Ray; one that was not up within Ray's 30 s is ended and started anew.

    Raises:
        StartTimeoutError: none came up in time.
        Exception: whatever else `start` raises.
    """
    for _ in range(MOST_STARTS):
        before = children_of(os.getpid())
        try:
            return start()
        except Exception as error:  # Ray raises no narrower one
            if "timed out during startup" not in str(error):
                raise
            for child in children_of(os.getpid()) - before:
                _end_all(child)
    raise StartTimeoutError(f"its node did not come up within 30 s, {MOST_STARTS} times over; the machine has too much to do")


def _end_all(child: int) -> None:
    """Kill a process of ours and whatever it has started."""
    doomed = [child]
    for process in doomed:
        doomed += children_of(process)
    for process in doomed:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(child, 0)


def end_agents_with(raylet: int) -> subprocess.Popen[bytes]:
    """Start the process that waits for the raylet to end; it ends soon after it, whatever becomes of this one."""
    # A session of its own, so that Ctrl-C in a terminal does not reach it.
    return subprocess.Popen([sys.executable, __file__, str(raylet)], start_new_session=True)  # noqa: S603


def children_of(parent: int) -> set[int]:
    """Return the processes that any thread of the parent has started."""
    children: set[int] = set()
    with suppress(OSError):
        for thread in Path(f"/proc/{parent}/task").iterdir():
            with suppress(OSError):
                children.update(map(int, (thread / "children").read_text().split()))
    return children


def main() -> None:
    """Wait for the raylet whose number is the argument, and end what it has started."""
    raylet = int(sys.argv[1])
    children: set[int] = set()
    with suppress(ProcessLookupError):
        ended = os.pidfd_open(raylet)
        # Who has lost its parent does not tell any more who that was, so it has to be known before.
        children = children_of(raylet)
        while not select.select([ended], [], [], CHECK_SECONDS)[0]:
            children = children_of(raylet) or children
    for child in children:
        with suppress(OSError):
            if Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"ray::"):
                os.kill(child, signal.SIGKILL)


if __name__ == "__main__":
    main()
