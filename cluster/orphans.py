"""After a command was killed outright: ending what a local Ray would leave behind.

When a driver dies by SIGKILL, its Ray ends its servers and workers within seconds, but two agents of Ray's go on trying to report
the death to a server that is gone, for a minute. A process of that Ray that is still there ends them.
"""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Final

CHECK_SECONDS: Final = 0.2


def end_agents_with_raylet() -> None:
    """From a Ray worker process: watch its parent, the raylet, from a thread, and end the raylet's agents when it dies."""
    threading.Thread(target=_watch, args=(os.getppid(),), name="orphans", daemon=True).start()


def _watch(raylet: int) -> None:
    while os.getppid() == raylet:
        sleep(CHECK_SECONDS)
    for pid in agents_of(raylet):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def agents_of(raylet: int) -> list[int]:
    """Return the processes that were started with this raylet's number in their environment, this one left out."""
    mark = f"RAY_RAYLET_PID={raylet}".encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found
