"""Whole processes: signals, what they leave behind, and what they print."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

SECONDS = 180.0
JOB = """
[job]
name = "endless"
[data]
train = "rows.parquet"
label = "y"
[model]
task = "regression"
[training]
epochs = 10000000
"""


def session_members(session: int) -> list[int]:
    """Return the living processes of a session."""
    members = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session and (entry / "cmdline").read_bytes():
                members.append(int(entry.name))
        except (ProcessLookupError, FileNotFoundError):
            continue
    return members


def shared_memory_in_use() -> set[Path]:
    """Return the files in /dev/shm that processes have mapped or open, which may be anybody's."""
    used: set[Path] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                used |= {
                    Path(line.split(maxsplit=5)[5]) for line in (entry / "maps").read_text().splitlines() if "/dev/shm/" in line
                }
                used |= {Path(os.readlink(link)) for link in (entry / "fd").iterdir()}
    return used


def wait_for_the_end_of(pids: list[int]) -> None:
    """Wait until all of these processes have ended."""
    until = monotonic() + SECONDS
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended, _, _ = select.select([descriptor], [], [], max(0.0, until - monotonic()))
        os.close(descriptor)
        assert ended, f"process {pid} is still there: {Path(f'/proc/{pid}/cmdline').read_bytes()[:200]!r}"


@contextmanager
def training(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Train an endless job in a session of its own; enters after the first epoch."""
    rng = np.random.default_rng(0)
    pq.write_table(pa.table({"x": rng.normal(size=100), "y": rng.normal(size=100)}), tmp_path / "rows.parquet")
    (tmp_path / "job.toml").write_text(JOB)
    command = [sys.executable, "-m", "cluster.cli", "train", "job.toml", "--run-dir", "run", "--progress", "plain"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch "):
                break
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    with training(tmp_path) as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "interrupted after" in output
    assert errors == ""
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    wait_for_the_end_of(session_members(process.pid))


def test_a_command_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    shared_memory = set(Path("/dev/shm").iterdir())
    with training(tmp_path) as process:
        members = session_members(process.pid)
        process.kill()
        process.communicate()
    assert len(members) > 5
    wait_for_the_end_of(members)
    until, pause = monotonic() + SECONDS, threading.Event()
    while left := set(Path("/dev/shm").iterdir()) - shared_memory - shared_memory_in_use():
        assert monotonic() < until, left
        pause.wait(0.1)
