"""Whole processes: signals, what they leave behind, and what they print."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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


def session_members(session: int) -> list[str]:
    """Return the command lines of the processes in a session."""
    members = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                members.append((entry / "cmdline").read_text().replace("\0", " "))
        except (ProcessLookupError, FileNotFoundError):
            continue
    return [member for member in members if member.strip()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    rng = np.random.default_rng(0)
    pq.write_table(pa.table({"x": rng.normal(size=100), "y": rng.normal(size=100)}), tmp_path / "rows.parquet")
    (tmp_path / "job.toml").write_text(JOB)
    command = [sys.executable, "-m", "cluster.cli", "train", "job.toml", "--run-dir", "run", "--progress", "plain"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("epoch "):
                break
        process.send_signal(number)
        output, errors = process.stdout.read(), process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "interrupted after" in output
    assert errors == ""
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert session_members(process.pid) == []
