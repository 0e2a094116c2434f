"""Workers that come and go with the nodes of a running cluster."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

Document = dict[str, dict[str, Any]]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of one node with one CPU, apart from any other."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def test_workers_join_with_a_node_and_leave_with_it(
    cluster: Cluster, blobs_job: Document, run_job: Callable[..., Any], tmp_path: Path
) -> None:
    blobs_job["training"]["epochs"] = 6000
    _, calm = run_job(blobs_job)
    command = [sys.executable, "-m", "cluster.cli", "train", "job.toml", "--run-dir", "elastic", "--workers", "1:3"]
    command += ["--address", cluster.address, "--progress", "plain"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline()]
        assert "on 1 worker," in seen[0]
        node = None
        for line in process.stdout:
            seen.append(line)
            if line.startswith("epoch 20/"):
                node = cluster.add_node(num_cpus=2)
            if "worker 2 joined" in line:
                cluster.remove_node(node)
        assert process.wait() == 0
    output = "".join(seen)
    assert "joined" in output
    assert "was lost" in output
    summary = json.loads((tmp_path / "elastic" / "summary.json").read_text())
    assert summary["weights_digest"] == calm.weights_digest
    assert summary["rows_trained"] == summary["rows_expected"]
