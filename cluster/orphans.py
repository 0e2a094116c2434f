"""After a command was killed outright: ending what its local Ray would leave behind.

When a driver dies by SIGKILL, its Ray ends its servers and workers within seconds, but two agents of the raylet's go on for a
minute, trying to report the raylet's death to a server that is gone. A small process of our own waits for the raylet to end, and
ends them.
"""

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

CHECK_SECONDS: Final = 0.5


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
