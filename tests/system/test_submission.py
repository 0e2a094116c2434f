"""Jobs on a cluster of their own, through its dashboard: with token authentication, and without."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import tomli_w

from cluster.orphans import children_of

Document = dict[str, dict[str, Any]]
SECONDS = 300.0
PORTS = (
    "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
    "metrics-export-port", "node-manager-port", "object-manager-port", "ray-client-server-port",
)  # fmt: skip


@dataclass(frozen=True)
class Head:
    """A head that runs, and how to reach it."""

    pid: int
    address: str
    home: Path
    token: str
    environment: dict[str, str]

    def run(self, *arguments: str, environment: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        command = [sys.executable, "-m", "cluster.cli", *arguments]
        return subprocess.run(command, env=environment or self.environment, capture_output=True, text=True, timeout=SECONDS)

    def json(self, *arguments: str) -> dict[str, Any]:
        """Run a command that succeeds, and return the last line that it prints as JSON."""
        result = self.run(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return found


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        return [server.getsockname()[1] for server in sockets]
    finally:
        for server in sockets:
            server.close()


@contextmanager
def running_head(mode: str, home: Path) -> Iterator[Head]:
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    token = secrets.token_hex()
    base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = base | {"RAY_AUTH_MODE": mode, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
    if mode == "token":
        (home / "token").write_text(token)
        environment["RAY_AUTH_TOKEN_PATH"] = str(home / "token")
    program = Path(sys.executable).with_name("ray")
    # Sockets' paths are short: pytest's folders are too long for them.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary,
        (home / "head.log").open("w") as log,
    ):
        command = [str(program), "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1"]
        command += ["--dashboard-host=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        path = f"{program.parent}:{environment['PATH']}"
        ours = environment | {"RAY_TMPDIR": temporary, "PATH": path, "RAY_worker_niceness": "0"}
        with subprocess.Popen(command, env=ours, stdout=log, stderr=log, cwd=home, start_new_session=True) as process:
            address = f"http://127.0.0.1:{ports['dashboard-port']}"
            head = Head(process.pid, address, home, token, environment | {"RAY_API_SERVER_ADDRESS": address})
            try:
                until, pause = monotonic() + SECONDS, threading.Event()
                while head.run("jobs").returncode != 0:
                    assert process.poll() is None, (home / "head.log").read_text()
                    assert monotonic() < until, (home / "head.log").read_text()
                    pause.wait(0.5)
                yield head
            finally:
                process.terminate()
                try:
                    process.wait(SECONDS)
                finally:
                    process.kill()


@pytest.fixture(scope="module", params=["token", "disabled"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A head with four CPUs, with token authentication and then without, whose home directory is a temporary one."""
    with running_head(request.param, tmp_path_factory.mktemp("home")) as found:
        yield found


with_token = pytest.mark.parametrize("head", ["token"], indirect=True)


class Follow:
    """A command whose output is read as it comes."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self._lines, self._process, self.seen = process.stdout, process, ""

    def until(self, pattern: str) -> None:
        """Read on to the next line in which the pattern is found."""
        for line in self._lines:
            self.seen += line
            if re.search(pattern, line):
                return
        pytest.fail(f"no {pattern!r} in what is left of {self.seen}")

    def end(self, number: signal.Signals | None = None) -> int:
        """Read to the end, after a signal if one is given; return the exit code."""
        if number is not None:
            self._process.send_signal(number)
        self.seen += self._lines.read()
        return self._process.wait(SECONDS)


@contextmanager
def following(head: Head, *arguments: str) -> Iterator[Follow]:
    command = [sys.executable, "-m", "cluster.cli", *arguments, "--follow"]
    pipe, merged = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(command, env=head.environment, stdout=pipe, stderr=merged, text=True) as process:
        limit = threading.Timer(SECONDS, process.kill)
        limit.start()
        try:
            yield Follow(process)
        finally:
            limit.cancel()
            process.kill()


def written(document: Document, tmp_path: Path, **sections: dict[str, Any]) -> str:
    for name, section in sections.items():
        document.setdefault(name, {}).update(section)
    (tmp_path / "job.toml").write_text(tomli_w.dumps(document))
    return str(tmp_path / "job.toml")


@contextmanager
def endless(head: Head, document: Document, tmp_path: Path, **sections: dict[str, Any]) -> Iterator[tuple[str, Follow]]:
    """Submit a job that ends only if it is stopped, and follow it until its first epoch is done; enters with its id."""
    job = written(document, tmp_path, data={"train": str(tmp_path / "blobs.parquet")}, training={"epochs": 10**9}, **sections)
    name = f"endless-{secrets.token_hex(4)}"
    with following(head, "submit", job, "--submission-id", name) as follow:
        follow.until("^epoch 1/")
        yield name, follow


def test_a_job_is_trained_to_the_same_bits(head: Head, blobs_job: Document, run_job: Callable[..., Any], tmp_path: Path) -> None:
    _, calm = run_job(blobs_job)
    job = written(blobs_job, tmp_path)
    refused = head.run("submit", job)
    assert refused.returncode == 2
    assert "data.train: blobs.parquet is relative to the job file" in refused.stderr

    with following(head, "submit", job, "--upload-data", "--submission-id", "small") as follow:
        follow.until("^small is submitted to http://127.0.0.1:[0-9]*; its run goes to ~/isograd-runs/small on the cluster$")
        assert follow.end() == 0, follow.seen
    assert [line.split()[1] for line in follow.seen.splitlines() if line.startswith("epoch ")] == ["1/3", "2/3", "3/3"]
    assert calm.weights_digest in follow.seen

    status = head.json("status", "small")
    assert (status["state"], status["exit_code"], status["ray_status"]) == ("completed", 0, "SUCCEEDED")
    assert (status["weights_digest"], status["epoch"], status["name"]) == (calm.weights_digest, 3, "blobs")
    assert status["run_directory"] == str(head.home / "isograd-runs" / "small")
    summary = json.loads((Path(status["run_directory"]) / "summary.json").read_text())
    assert summary["weights_digest"] == calm.weights_digest
    assert head.run("logs", "small").stdout in follow.seen

    again = head.run("submit", job, "--upload-data", "--submission-id", "small")
    assert again.returncode == 2
    assert f"--submission-id: the cluster at {head.address} has a job small already" in again.stderr


def test_a_job_that_is_stopped_ends_its_round_and_writes_a_checkpoint(head: Head, blobs_job: Document, tmp_path: Path) -> None:
    # It lingers for longer than the three seconds after which Ray would kill it.
    with endless(head, blobs_job, tmp_path, metrics={"linger_seconds": 5.0}) as (name, follow):
        until = monotonic() + SECONDS
        while (status := head.json("status", name))["round"] < 4:  # the run tells of it once a second, its log at once
            assert monotonic() < until, status
        assert (status["state"], status["exit_code"], status["epochs"], status["workers"]) == ("running", None, 10**9, 2)
        assert status["loss"] > 0
        assert status["rows_per_second"] > 0
        assert status["seconds_left"] > 0
        assert status["metrics_url"].startswith("http://127.0.0.1:")
        assert name in head.run("jobs").stdout

        stopped = head.json("stop", name)
        assert (stopped["state"], stopped["exit_code"], stopped["ray_status"]) == ("interrupted", 130, "STOPPED")
        assert follow.end() == 130, follow.seen
    assert "interrupted after" in follow.seen
    assert list((Path(stopped["run_directory"]) / "checkpoints").iterdir())
    assert head.json("stop", name) == head.json("status", name) == stopped
    with following(head, "logs", name) as again:
        assert again.end() == 130
    assert "interrupted after" in again.seen


@with_token
def test_ctrl_c_leaves_the_job_alone(head: Head, blobs_job: Document, tmp_path: Path) -> None:
    with endless(head, blobs_job, tmp_path) as (name, follow):
        assert follow.end(signal.SIGINT) == 130
    assert f"note: {name} goes on" in follow.seen
    assert f"isograd stop {name}" in follow.seen
    with following(head, "logs", name) as follow:
        follow.until("^epoch 1/")
        assert head.json("stop", name)["exit_code"] == 130
        assert follow.end() == 130


def test_a_job_that_fails_ends_with_its_own_exit_code(head: Head, blobs_job: Document, tmp_path: Path) -> None:
    job = written(blobs_job, tmp_path, data={"train": "/nowhere/rows.parquet"})
    with following(head, "submit", job, "--submission-id", "fails") as follow:
        assert follow.end() == 2
    assert "Error: data.train: no such file or folder: /nowhere/rows.parquet" in follow.seen
    status = head.json("status", "fails")
    assert (status["state"], status["exit_code"]) == ("failed", 2)
    assert status["error"].startswith("data.train: no such file or folder: /nowhere/rows.parquet")
    diverges = written(blobs_job, tmp_path, data={"train": str(tmp_path / "blobs.parquet")}, optimizer={"learning_rate": 1e300})
    with following(head, "submit", diverges, "--submission-id", "diverges", "--json") as follow:
        assert follow.end() == 3
    submitted, *pieces, ended = map(json.loads, follow.seen.splitlines())
    assert submitted == {"id": "diverges", "address": head.address, "run_directory": "~/isograd-runs/diverges"}
    assert "diverged after" in "".join(piece["log"] for piece in pieces)
    assert ended == head.json("status", "diverges")
    assert (ended["state"], ended["exit_code"]) == ("diverged", 3)


@with_token
def test_a_job_whose_process_is_killed_is_a_failure_of_the_cluster(head: Head, blobs_job: Document, tmp_path: Path) -> None:
    with endless(head, blobs_job, tmp_path) as (name, follow):
        (driver,) = [pid for pid in descendants(head.pid) if f"cluster.submitted\0{name}\0" in command_line(pid)]
        os.kill(driver, signal.SIGKILL)
        assert follow.end() == 4
    assert f"{name} failed: its process was ended by SIGKILL" in follow.seen


def descendants(pid: int) -> list[int]:
    return [found for child in children_of(pid) for found in (child, *descendants(child))]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@with_token
def test_only_who_has_the_token_is_let_in(head: Head, blobs_job: Document, tmp_path: Path) -> None:
    mode, wrong = {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN": "0" * 64}
    anybody = {name: value for name, value in head.environment.items() if not name.startswith("RAY_AUTH_")}
    job = written(blobs_job, tmp_path)
    for command in ("submit " + job, "jobs", "status a", "logs a", "logs a --follow", "stop a"):
        result = head.run(*command.split(), environment=anybody | mode | wrong)
        assert result.returncode == 2
        assert "has another token than the one it was sent: set RAY_AUTH_MODE=token" in result.stderr
        assert result.stderr.count("\n") == 1
    result = head.run("jobs", environment=anybody | {"RAY_AUTH_MODE": "disabled"})
    assert result.returncode == 2
    assert "wants a token: set RAY_AUTH_MODE=token" in result.stderr
    result = head.run("jobs", environment=anybody | mode)
    assert result.returncode == 2
    assert f"there is no token to send to {head.address}" in result.stderr
    assert head.run("jobs", environment=anybody | {"RAY_AUTH_TOKEN": head.token}).returncode == 0


@with_token
def test_the_token_stays_where_it_is(head: Head, blobs_job: Document, tmp_path: Path) -> None:
    job = written(blobs_job, tmp_path)
    submitted = head.run("submit", job, "--upload-data", "--follow", "--submission-id", "quiet")
    assert submitted.returncode == 0, submitted.stderr
    run = head.home / "isograd-runs" / "quiet"
    told = [submitted.stdout, json.dumps(head.json("status", "quiet")), head.run("logs", "quiet").stdout]
    told += [path.read_text() for path in (run / "job.toml", run / "summary.json", run / "history.jsonl")]
    assert all(told)
    assert not any(head.token in text for text in told)
