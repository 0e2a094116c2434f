"""Measure training on data larger than memory: a generated Parquet dataset, streamed within a limit and held in memory.

Run as `make streaming`. It takes as much disk as the dataset, and as much memory as its rows.
"""

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, time
from typing import Any, Final

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.launch import LOCAL, launch
from coordinator.job import parse_job
from coordinator.order import Order
from coordinator.records import Finished

INPUTS: Final = 28
ROW_BYTES: Final = 4 * INPUTS + 1
LIMIT: Final = "400 MB"
WORKERS: Final = 2


@dataclass(frozen=True)
class Net:
    """A network to train, and for how many seconds at most after the first round."""

    hidden: tuple[int, ...]
    batch: int
    seconds: float


NETS: Final = {
    "28-64-2 @ 4096": Net((64,), 4096, 60.0),
    "28-300-300-300-2 @ 1024": Net((300, 300, 300), 1024, 25.0),
}


@click.command()
@click.option("--size", default=4.0, show_default=True, help="Size of the dataset in GB.")
@click.option("--group-rows", default=131_072, show_default=True, help="Rows of a row group.")
@click.option("--only", multiple=True, type=click.Choice(list(NETS)))
@click.option("--turns", default=1, show_default=True, help="Turns of each thing measured; the figures are medians.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to keep the dataset; a temporary folder if not given.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/streaming.json"), show_default=True)
def main(size: float, group_rows: int, only: tuple[str, ...], turns: int, folder: Path | None, output: Path) -> None:
    """Measure, print and write down."""
    found: dict[str, float] = {}

    def note(what: str, value: float) -> None:
        found[what] = value
        print(f"{what}: {value:,.4g}", flush=True)

    with tempfile.TemporaryDirectory(prefix="isograd-bench-") as temporary:
        path = (folder or Path(temporary)) / f"rows-{size:g}-{group_rows}.parquet"
        if not path.exists():
            write_rows(path, int(size * 1e9 / ROW_BYTES), group_rows)
        small = Path(temporary) / "small.parquet"
        write_rows(small, 4096, group_rows)
        note("dataset, MB", path.stat().st_size / 1e6)
        note("pyarrow alone, one thread, rows/s", decode(path))
        for name in only or NETS:
            _, peak = train(NETS[name], small, LIMIT)
            note(f"{name}, next to no rows, highest memory of a worker, MB", peak / 1e6)
            streamed, in_memory = zip(
                *((train(NETS[name], path, LIMIT), train(NETS[name], path, "12 GB")[0]) for _ in range(turns)), strict=True
            )
            note(f"{name}, streamed, rows/s", median(rate for rate, _ in streamed))
            note(f"{name}, streamed, highest memory of a worker, MB", max(peak for _, peak in streamed) / 1e6)
            note(f"{name}, in memory, rows/s", median(in_memory))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2) + "\n")


def write_rows(path: Path, rows: int, group_rows: int) -> None:
    """Write random rows of two classes, group by group."""
    draws = np.random.default_rng(1)
    direction = draws.normal(size=INPUTS).astype(np.float32)
    schema = pa.schema([*((f"x{place}", pa.float32()) for place in range(INPUTS)), ("label", pa.int8())])
    with pq.ParquetWriter(path, schema, use_dictionary=False) as file:
        for first in range(0, rows, group_rows):
            x_IN = draws.standard_normal((INPUTS, min(group_rows, rows - first)), dtype=np.float32)
            label = direction @ x_IN + 2 * draws.standard_normal(x_IN.shape[1], dtype=np.float32) > 0
            file.write_table(pa.table([*map(pa.array, x_IN), pa.array(label.astype(np.int8))], schema=schema))


def decode(path: Path) -> float:
    """Return the rows a second that pyarrow decodes in one thread, when the file is in the system's cache."""
    rates = []
    for _ in range(2):
        began = perf_counter()
        with pq.ParquetFile(path, memory_map=True) as file:
            rows = sum(batch.num_rows for batch in file.iter_batches(use_threads=False))
        rates.append(rows / (perf_counter() - began))
    return max(rates)


def train(net: Net, data: Path, limit: str) -> tuple[float, float]:
    """Return the rows a second of training, and the highest resident memory (VmHWM) of a worker in bytes."""
    with tempfile.TemporaryDirectory(prefix="isograd-bench-") as folder, peaks() as highest:
        job = parse_job(
            {
                "job": {"name": "streaming"},
                "data": {"train": str(data), "label": "label", "shuffle": "window", "memory_limit": limit},
                "model": {"task": "classification", "hidden": list(net.hidden)},
                "optimizer": {"name": "momentum"},
                "training": {"batch_size": net.batch, "epochs": 3},
                "stopping": {"max_seconds": net.seconds},
                "workers": {"count": WORKERS},
            }
        )
        rate = 0.0
        for event in launch(Order(job, Path(folder) / "run", time()), LOCAL, lambda: False, debug=False):
            if isinstance(event, Finished):
                rate = event.summary.rows_per_second
        return rate, max(highest.values(), default=0.0)


@contextmanager
def peaks() -> Iterator[dict[int, float]]:
    """Watch the workers of this process's Ray: their highest resident memory by process id."""
    highest: dict[int, float] = {}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            highest.update({pid: peak for pid in worker_processes() if (peak := highest_memory(pid)) > highest.get(pid, 0.0)})

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield highest
    finally:
        over.set()
        watcher.join()


def worker_processes() -> list[int]:
    """Return the worker actors below this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = _parent(int(entry.name))
                if (entry / "cmdline").read_bytes().startswith(b"ray::WorkerActor") and _parent(parent) == os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def highest_memory(pid: int) -> float:
    """Return the most resident memory that a process has had, in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    fields: dict[str, Any] = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith("kB")}
    return 1024.0 * int(fields.get("VmHWM", 0))


if __name__ == "__main__":
    main()
