"""A coordinator whose node is lost, on a cluster whose nodes share nothing but an S3 store: another node goes on."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from ray.cluster_utils import Cluster

from cluster.orphans import children_of, start_anew_if_late
from coordinator.folders import open_folder
from worker.stores import StorageSpec

Document = dict[str, dict[str, Any]]
SECONDS = 600.0
# So that a node whose end nobody tells of is soon taken for dead.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 10}


@pytest.fixture
def cluster(store: Any) -> Iterator[Cluster]:
    """A node for the command alone, and two with two CPUs each; all have credentials for the store."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
    cluster = start_anew_if_late(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(2):
            start_anew_if_late(lambda: cluster.add_node(num_cpus=2))
        yield cluster
    finally:
        cluster.shutdown()


def has_coordinator(node: Any) -> bool:
    return any(title(pid).startswith("ray::CoordinatorActor") for pid in children_of(node.all_processes["raylet"][0].process.pid))


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_coordinator_goes_on_elsewhere_with_a_run_in_a_store(
    cluster: Cluster, store: Any, blobs_job: Document, run_job: Callable[..., Any], tmp_path: Path
) -> None:
    blobs_job["training"]["epochs"] = 10_000_000
    blobs_job["workers"] = {"count": 2, "cpus": 2.0, "placement": "spread", "deadline_seconds": SECONDS}
    blobs_job["storage"] = {"endpoint": store.endpoint}
    (tmp_path / "job.toml").write_text(tomli_w.dumps(blobs_job))
    address = f"s3://{store.bucket}/run"
    folder = open_folder(address, StorageSpec(endpoint=store.endpoint))
    command = [sys.executable, "-m", "cluster.cli", "train", "job.toml", "--run-dir", address, "--progress", "plain"]
    command += ["--address", cluster.address]
    lines: list[str] = []

    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:

        def until(pattern: str) -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if re.search(pattern, line):
                    return
            pytest.fail(f"no {pattern!r} in {''.join(lines[-50:])}")

        limit = threading.Timer(SECONDS, process.kill)
        limit.start()
        try:
            while not folder.folder("checkpoints").names():
                until("^epoch")
            (home,) = (node for node in cluster.list_all_nodes() if node is not cluster.head_node and has_coordinator(node))
            cluster.remove_node(home, allow_graceful=False)
            until("the coordinator was lost: its node is gone; a new one is started")
            until(r"going on after [\d,]+ rounds")
            until("^epoch")
            process.send_signal(signal.SIGINT)
            until("interrupted after")
            assert process.wait() == 130
        finally:
            limit.cancel()
            process.kill()

    summary = json.loads(folder.read("summary.json"))
    _, calm = run_job(blobs_job, {"training.epochs": summary["epochs"], "workers.count": 1})
    assert summary["weights_digest"] == calm.weights_digest
    assert len(folder.read("history.jsonl").splitlines()) == summary["epochs"]
