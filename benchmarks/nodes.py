"""Measure what several nodes cost: carrying weights and gradient sums between them, messages, and adding sums up.

The nodes are Rays of their own on this machine, with the coordinator on one and workers on the others. What they exchange goes
through the network stack but over no network, and they share the machine's cores.

Run as `.venv/bin/python benchmarks/nodes.py`.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, time
from typing import Any, Final

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.launch import RAY_SETTINGS, connected
from cluster.placement import await_places, places
from cluster.ray_pool import RayPool
from coordinator.job import JobSpec, parse_job
from coordinator.order import Order
from coordinator.pool import WorkersSpec
from coordinator.preparation import inspect
from coordinator.start import prepare
from worker.messages import ComputeGradients

NODES: Final = 3
CPUS: Final = 4
SIZES: Final = (1_000_000, 10_000_000, 100_000_000)
HIDDEN: Final = 65536
SPREADS: Final = ((1, 1), (2, 1), (2, 2), (3, 3), (6, 3), (12, 3))
"""Workers and nodes."""


class Holder:
    """Takes and gives arrays, on a node of its own."""

    def take(self, array: np.ndarray) -> int:
        """Return how much came."""
        return array.nbytes

    def give(self, entries: int) -> np.ndarray:
        """Return so many numbers."""
        return np.ones(entries, np.float32)


@click.command()
@click.option("--turns", default=7, show_default=True, help="Turns of each thing measured; medians are told.")
@click.option("--rounds", default=10, show_default=True, help="Rounds whose exchange is measured, after two of warming up.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/nodes.json"), show_default=True)
def main(turns: int, rounds: int, output: Path) -> None:
    """Measure, print and write down."""
    found: dict[str, float] = {}

    def tell(what: str, value: float) -> None:
        found[what] = value
        print(f"{what}: {value:,.4g}", flush=True)

    os.environ.update(RAY_SETTINGS)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=CPUS)
        with connected(cluster.address, WorkersSpec(), debug=False), tempfile.TemporaryDirectory() as folder:
            carry(turns, tell)
            add_up(turns, tell)
            exchange(cluster, Path(folder), 32, rounds * 20, tell)
            exchange(cluster, Path(folder), HIDDEN, rounds, tell)
    finally:
        cluster.shutdown()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2) + "\n")


def carry(turns: int, tell: Callable[[str, float], None]) -> None:
    """Tell how fast arrays come to other nodes and from them, through the object store."""
    state: Any = ray
    ids = [node["NodeID"] for node in state.nodes() if node["Resources"].get("CPU")]
    actor: Any = ray.remote(Holder)
    holders = [
        actor.options(num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in ids
    ]
    for size in SIZES:
        array = np.random.default_rng(0).random(size // 4, dtype=np.float32)
        tell(f"put {size / 1e6:g} MB, GB/s", size / 1e9 / _median(turns, lambda array=array: ray.put(array)))
        for count in range(1, 1 + len(holders)):

            def there(array: np.ndarray = array, count: int = count) -> float:
                put = ray.put(array)
                return _seconds(lambda: ray.get([holder.take.remote(put) for holder in holders[:count]]))

            tell(f"{size / 1e6:g} MB to {count} nodes, GB/s in all", count * size / 1e9 / _median_of(turns, there))

        def back(entries: int = size // 4) -> float:
            given = holders[0].give.remote(entries)
            ray.wait([given], fetch_local=False)
            return _seconds(lambda: ray.get(given))

        tell(f"{size / 1e6:g} MB from a node, GB/s", size / 1e9 / _median_of(turns, back))
    for holder in holders:
        ray.kill(holder)


def add_up(turns: int, tell: Callable[[str, float], None]) -> None:
    """Tell how fast one sum is added to another."""
    for size in SIZES:
        left, right = (np.ones(size // 4, np.float32) for _ in range(2))
        seconds = _median(turns, lambda left=left, right=right: np.add(left, right, out=left))
        tell(f"adding {size / 1e6:g} MB to {size / 1e6:g} MB, GB/s added", size / 1e9 / seconds)


def exchange(cluster: Cluster, folder: Path, hidden: int, rounds: int, tell: Callable[[str, float], None]) -> None:
    """Tell what a round takes beside computing, and how many bytes it makes in each node's object store."""
    for workers, nodes in SPREADS:
        spread = "pack" if workers > nodes == 1 else "strict_spread" if workers == nodes else "spread"
        job = make_job(folder, hidden, {"count": workers, "placement": spread, "deadline_seconds": 600.0})
        with places(job.workers) as group:
            list(await_places(group, job.workers, lambda: False))
            with prepared(job, folder, RayPool(job.workers, group)) as (ask, parameters):
                times, created = [], []
                for number in range(-2, rounds):
                    before = created_bytes(cluster)
                    seconds, computing = ask(max(number, 0))
                    if number >= 0:
                        times.append(seconds - computing)
                        created.append([now - then for now, then in zip(created_bytes(cluster), before, strict=True)])
                what = f"{parameters:,} parameters, {workers} workers on {nodes} nodes"
                tell(f"{what}: ms a round beside computing", 1e3 * median(times))
                means = np.mean(created, axis=0) / (4 * parameters)
                tell(f"{what}: × parameters made at the coordinator's node", means[0])
                tell(f"{what}: × parameters made at the busiest other node", max(means[1:]))


def make_job(folder: Path, hidden: int, workers: dict[str, Any]) -> JobSpec:
    """Return a job with few rows, so that a round is exchange above all."""
    path = folder / "rows.parquet"
    if not path.exists():
        x = np.random.default_rng(1).random((96, 64), dtype=np.float32)
        pq.write_table(pa.table({"x": pa.FixedSizeListArray.from_arrays(x.ravel(), 64), "label": np.arange(96) % 10}), path)
    return parse_job(
        {
            "job": {"name": "nodes"},
            "data": {"train": str(path), "label": "label", "shards": 12},
            "model": {"task": "classification", "hidden": [hidden]},
            "training": {"rounds": 1, "batch_size": 96},
            "workers": workers,
        }
    )


@contextmanager
def prepared(job: JobSpec, folder: Path, pool: RayPool) -> Iterator[tuple[Callable[[int], tuple[float, float]], int]]:
    """Give what asks for a round and returns its seconds and those of the slowest worker, and the number of parameters."""
    try:
        ready = prepare(Order(job, folder / "run", time()), inspect(job), pool)
        snapshot = ready.training.snapshot
        assert snapshot is not None

        def ask(number: int) -> tuple[float, float]:
            began = perf_counter()
            ready.dispatcher.publish(snapshot.parameters.weights_P)
            ready.dispatcher.ask("round", lambda shards: ComputeGradients(number, shards))
            return perf_counter() - began, max(ready.dispatcher.seconds.values())

        yield ask, ready.layout.size
    finally:
        pool.close()


def created_bytes(cluster: Cluster) -> list[int]:
    """Return what was made in each node's object store so far, by its own processes or from others'; the coordinator's first."""
    nodes = sorted(cluster.list_all_nodes(), key=lambda node: node is not cluster.head_node)
    return [
        node_stats(node.node_ip_address, node.node_manager_port, include_memory_info=False).store_stats.cumulative_created_bytes
        for node in nodes
    ]


def _seconds(what: Callable[[], Any]) -> float:
    began = perf_counter()
    what()
    return perf_counter() - began


def _median(turns: int, what: Callable[[], Any]) -> float:
    return _median_of(turns, lambda: _seconds(what))


def _median_of(turns: int, measure: Callable[[], float]) -> float:
    measure()  # connections and memory are there after the first turn
    return median(measure() for _ in range(turns))


if __name__ == "__main__":
    main()
