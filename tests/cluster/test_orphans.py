"""Starting a node anew that took too long, without Ray."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from cluster.orphans import MOST_STARTS, StartTimeoutError, children_of, start_anew_if_late

SECONDS = 60.0
# A process that starts another one, and tells once both are there.
FAMILY = "import subprocess, time; subprocess.Popen(['sleep', '1000']); print(flush=True); time.sleep(1000)"


class Late:
    """Starts two processes each time, and finds so often that this took too long."""

    def __init__(self, times: int, message: str = "The current node timed out during startup. This could happen because") -> None:
        self.left, self.message = times, message
        self.children: list[subprocess.Popen[bytes]] = []
        self.started: set[int] = set()

    def __call__(self) -> str:
        if not self.left:
            return "up"
        self.left -= 1
        child = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE)
        assert child.stdout is not None
        with child.stdout as output:
            output.readline()
        self.children.append(child)
        self.started |= {child.pid, *children_of(child.pid)}
        raise Exception(self.message)


@pytest.fixture
def make_late() -> Iterator[Callable[..., Late]]:
    made: list[Late] = []

    def make(*arguments: Any) -> Late:
        made.append(Late(*arguments))
        return made[-1]

    yield make
    for late in made:
        for pid in filter(is_there, late.started):
            os.kill(pid, signal.SIGKILL)
        for child in late.children:
            child.wait()


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "Zx"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_end(pids: set[int]) -> None:
    """Wait until killed processes are gone; those whose parent does not wait for them take a moment."""
    until, pause = monotonic() + SECONDS, threading.Event()
    while any(is_there(pid) for pid in pids):
        assert monotonic() < until
        pause.wait(0.01)


def test_a_node_that_is_late_is_ended_with_all_that_it_started_and_started_anew(make_late: Callable[..., Late]) -> None:
    late = make_late(MOST_STARTS - 1)
    assert start_anew_if_late(late) == "up"
    assert len(late.started) == 2 * (MOST_STARTS - 1)
    await_end(late.started)
    assert not children_of(os.getpid()) & late.started


def test_a_node_that_is_always_late_is_told_of(make_late: Callable[..., Late]) -> None:
    late = make_late(MOST_STARTS)
    with pytest.raises(StartTimeoutError, match="did not come up within 30 s, 3 times over"):
        start_anew_if_late(late)
    await_end(late.started)


def test_other_failures_are_nobodys_to_repair(make_late: Callable[..., Late]) -> None:
    late = make_late(1, "no such address")
    with pytest.raises(Exception, match="no such address"):
        start_anew_if_late(late)
    assert all(is_there(pid) for pid in late.started)
