"""A cluster of several nodes on this machine, the command on one, coordinator and workers on others."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster

from cluster.orphans import children_of, start_anew_if_late
from coordinator.folders import open_folder
from worker.stores import StorageSpec

Document = dict[str, dict[str, Any]]
SECONDS = 600.0
NODES = 3
# So that a node whose end nobody tells of is soon taken for dead.
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 10}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A node for the command alone, and three with two CPUs each; all have credentials for the S3 store of the tests."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        cluster = start_anew_if_late(lambda: Cluster(initialize_head=True, head_node_args=head))
        try:
            for _ in range(NODES):
                add_node(cluster)
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster: Cluster) -> None:
    start_anew_if_late(lambda: cluster.add_node(num_cpus=2))


@contextmanager
def training(cluster: Cluster, document: Document, folder: Path, run_dir: str = "run") -> Iterator["subprocess.Popen[str]"]:
    """Train a job on the cluster; ends it in any case."""
    (folder / "job.toml").write_text(tomli_w.dumps(document))
    command = [sys.executable, "-m", "cluster.cli", "train", "job.toml", "--run-dir", run_dir, "--progress", "plain"]
    command += ["--address", cluster.address]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        limit = threading.Timer(SECONDS, process.kill)
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            process.kill()


def created_bytes(nodes: list[Any]) -> list[int]:
    """What was put into each node's object store so far, by its own processes or from other nodes."""
    return [
        node_stats(node.node_ip_address, node.node_manager_port, False).store_stats.cumulative_created_bytes for node in nodes
    ]


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return found


@pytest.mark.parametrize(
    ("workers", "shards", "own"),
    [
        (NODES, 6, 1),  # two shards each, a node of the tree
        (2 * NODES, 8, 2),  # cut evenly over the workers, two of the nodes would send two sums each
        (NODES, 7, 1),
    ],
)
def test_weights_and_sums_travel_once_a_node(
    workers: int, shards: int, own: int, cluster: Cluster, blobs_job: Document, run_job: Callable[..., Any], tmp_path: Path
) -> None:
    """The bytes that a run makes in each node's object store are those of the formula in docs/scaling.md.

    Each of the `own` workers of a node has one sum, and the node sends one.
    """
    blobs_job["data"] |= {"shards": shards, "validation": 0.2}
    blobs_job["model"]["hidden"] = [32768]
    blobs_job["training"]["epochs"] = 10
    blobs_job["workers"] = {"count": workers, "placement": "spread", "deadline_seconds": SECONDS}
    _, calm = run_job(blobs_job, {"workers.count": 1})
    nodes = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    before = created_bytes(nodes)
    with training(cluster, blobs_job, tmp_path) as process:
        assert process.wait() == 0
    summary = summary_of(tmp_path)
    assert summary["weights_digest"] == calm.weights_digest
    assert summary["workers"] == workers
    weights, rounds = 4 * summary["parameters"], summary["rounds"]
    found = sorted((after - first) / weights for after, first in zip(created_bytes(nodes), before, strict=True))
    # Weights come in once a round, and once more for the last evaluation; sums are the node's own, and what they are added up to.
    apart = rounds + 1 + rounds * (own + (1 if own > 1 else 0))
    assert sum(times == pytest.approx(apart, rel=0.002) for times in found) >= NODES - 1, (found, apart)
    # The coordinator's node has the weights and gets one sum from each other; those of its own workers are there, too, for as
    # long as these are not linked to it.
    home = sum(found) - (NODES - 1) * apart
    assert 0.998 * rounds * NODES <= home <= 1.002 * (1 + rounds * (NODES + own)), (found, apart)


def coordinators(nodes: list[Any]) -> list[tuple[Any, int]]:
    """The nodes that have a coordinator, with its process id."""
    found = []
    for node in nodes:
        raylet = node.all_processes["raylet"][0].process.pid
        found += [(node, pid) for pid in children_of(raylet) if title(pid).startswith("ray::CoordinatorActor")]
    return found


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Output:
    """What a command prints, line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        self._lines, self.seen = process.stdout, list[str]()

    def until(self, pattern: str) -> re.Match[str]:
        """Read on to the next line in which the pattern is found."""
        for line in self._lines:
            self.seen.append(line)
            match = re.search(pattern, line)
            if match is not None:
                return match
        pytest.fail(f"no {pattern!r} in what is left of {''.join(self.seen[-50:])}")


def test_nodes_may_come_and_go_the_coordinators_too(
    cluster: Cluster, blobs_job: Document, run_job: Callable[..., Any], tmp_path: Path
) -> None:
    blobs_job["training"]["epochs"] = 10_000_000
    blobs_job["workers"] = {"count": NODES, "cpus": 2.0, "placement": "spread", "deadline_seconds": SECONDS}
    blobs_job["metrics"] = {"port": 0}
    with training(cluster, blobs_job, tmp_path) as process:
        output = Output(process)
        output.until(rf"on {NODES} workers,")
        output.until("^metrics: http://")
        output.until("^epoch")
        nodes = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
        ((home, pid),) = coordinators(nodes)

        os.kill(pid, signal.SIGKILL)
        assert output.until("the coordinator was lost: (.*); a new one is started")[1] == "its process died"
        output.until("^epoch")
        # On the same node, where the run directory is in any case.
        ((again, _),) = coordinators(nodes)
        assert again is home

        cluster.remove_node(next(node for node in nodes if node is not home), allow_graceful=False)
        assert output.until(r"worker \d+ was lost: (.*); the others take over its shards")[1] in (
            "its node is gone",
            "it can't be reached",
        )
        output.until("^epoch")
        add_node(cluster)
        output.until(r"worker \d+ joined")
        output.until("^epoch")

        # Its place is gone with it, so the new coordinator has fewer workers than the run began with.
        cluster.remove_node(home, allow_graceful=False)
        assert output.until("the coordinator was lost: (.*); a new one is started")[1] == "its node is gone"
        assert 1 <= int(output.until(r"on (\d+) workers?,")[1]) < NODES
        output.until(r"going on after [\d,]+ rounds")
        output.until("^metrics: http://")
        output.until("^epoch")
        process.send_signal(signal.SIGINT)
        output.until("interrupted after")
        assert process.wait() == 130
    summary = summary_of(tmp_path)
    assert summary["rows_trained"] == summary["rows_expected"]
    _, calm = run_job(blobs_job, {"training.epochs": summary["epochs"]})
    assert summary["weights_digest"] == calm.weights_digest


def test_a_coordinator_goes_on_elsewhere_with_a_run_in_a_store(
    cluster: Cluster, store: Any, blobs_job: Document, run_job: Callable[..., Any], tmp_path: Path
) -> None:
    """As it would where the nodes share nothing but the store."""
    while len(cluster.list_all_nodes()) < 1 + NODES:
        add_node(cluster)
    blobs_job["training"]["epochs"] = 10_000_000
    blobs_job["workers"] = {"count": 2, "cpus": 2.0, "placement": "spread", "deadline_seconds": SECONDS}
    blobs_job["storage"] = {"endpoint": store.endpoint}
    address = f"s3://{store.bucket}/run"
    folder = open_folder(address, StorageSpec(endpoint=store.endpoint))
    with training(cluster, blobs_job, tmp_path, address) as process:
        output = Output(process)
        while not folder.folder("checkpoints").names():
            output.until("^epoch")
        ((home, _),) = coordinators(cluster.list_all_nodes())
        cluster.remove_node(home, allow_graceful=False)
        output.until("the coordinator was lost: its node is gone; a new one is started")
        output.until(r"going on after [\d,]+ rounds")
        output.until("^epoch")
        process.send_signal(signal.SIGINT)
        output.until("interrupted after")
        assert process.wait() == 130

    summary = json.loads(folder.read("summary.json"))
    _, calm = run_job(blobs_job, {"training.epochs": summary["epochs"], "workers.count": 1})
    assert summary["weights_digest"] == calm.weights_digest
    assert len(folder.read("history.jsonl").splitlines()) == summary["epochs"]
    assert max(folder.folder("checkpoints").names()) == f"round-{summary['rounds']:012d}.safetensors"
