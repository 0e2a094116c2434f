"""Measure what isograd costs beside the arithmetic: start-up, an empty round, watchers, scaling, memory.

Run as `make overheads`. Each figure is a median over turns that alternate between the things compared.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, time
from typing import Any, Final

import click
import numpy as np
from contenders import isograd
from watchers import watched
from works import WORKS, Work

LAST_FOUR: Final = WORKS[2:6]
ROUNDS: Final = 3000
MEMORY_SECONDS: Final = 25.0
"""How long memory is watched: some epochs of the largest network."""

BARE_RAY: Final = """
import os, time, ray
os.environ["RAY_worker_niceness"] = "0"
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
@ray.remote(num_cpus=1)
class Nothing:
    def ready(self): pass
ray.get([actor.ready.remote() for actor in [Nothing.remote(), Nothing.remote()]])
print("ready", flush=True)
"""

TORCH_RANK: Final = """
import torch
torch.distributed.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 10))
model(torch.zeros(4, 64)).sum().backward()
print("ready", flush=True)
torch.distributed.destroy_process_group()
"""

RAY_TRAIN: Final = """
import os, ray, ray.train, ray.train.torch, tempfile
os.environ["RAY_worker_niceness"] = "0"
def work():
    import torch
    model = ray.train.torch.prepare_model(torch.nn.Linear(64, 10))
    model(torch.zeros(4, 64)).sum().backward()
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
with tempfile.TemporaryDirectory() as folder:
    ray.train.torch.TorchTrainer(work, scaling_config=ray.train.ScalingConfig(num_workers=2),
        run_config=ray.train.RunConfig(storage_path=folder, name="bench")).fit()
print("ready", flush=True)
"""

JOB: Final = """
[job]
name = "start"
[data]
train = "rows.parquet"
label = "label"
[model]
task = "classification"
hidden = [32]
[training]
rounds = 1
[workers]
count = 2
"""


@click.command()
@click.option("--repeats", default=3, show_default=True, help="Turns of each thing measured.")
@click.option("--seconds", default=4.0, show_default=True, help="How long a speed is measured.")
@click.option("--only", multiple=True, type=click.Choice(["startup", "round", "shards", "workers", "metrics", "memory"]))
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/overheads.json"), show_default=True)
def main(repeats: int, seconds: float, only: tuple[str, ...], output: Path) -> None:
    """Measure, print and write down."""
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "startup": lambda: startup(repeats),
        "round": empty_rounds,
        "shards": lambda: speeds(repeats, seconds, {"2 shards": (2, 2), "4 shards": (4, 2), "8 shards": (8, 2)}),
        "workers": lambda: speeds(repeats, seconds, {"1 worker": (4, 1), "2 workers": (4, 2)}),
        "metrics": lambda: watched(2 * repeats, seconds / 2),
        "memory": memory,
    }
    found: dict[str, dict[str, float]] = {}
    for name, measure in parts.items():
        if not only or name in only:
            found[name] = measure()
            for what, value in found[name].items():
                print(f"{name}: {what}: {value:,.6g}", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2) + "\n")


def startup(repeats: int) -> dict[str, float]:
    """Return the seconds from the command to the first round, and to the like of it elsewhere."""
    with tempfile.TemporaryDirectory(prefix="isograd-bench-") as name:
        folder = Path(name)
        _write_rows(folder / "rows.parquet", 2000, 64)
        scripts = {"bare": BARE_RAY, "rank": TORCH_RANK, "train": RAY_TRAIN}
        for script, text in scripts.items():
            (folder / f"{script}.py").write_text(text)
        (folder / "job.toml").write_text(JOB)
        ours = Path(__file__).parents[1] / ".venv" / "bin"
        launcher = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2"]
        launcher += ["--master-addr", "127.0.0.1", "--master-port", str(_free_port())]
        commands = {
            "isograd": ([str(ours / "isograd"), "train", "job.toml", "--progress", "plain", "--run-dir"], "epoch 1"),
            "ray.init and two actors": ([str(ours / "python"), "bare.py"], "ready"),
            "torchrun with two ranks": ([*launcher, "rank.py"], "ready"),
            "Ray Train with two workers": ([sys.executable, "train.py"], "ready"),
        }
        times: dict[str, list[float]] = {what: [] for what in commands}
        for turn in range(repeats):
            for what, (command, sign) in commands.items():
                extra = [f"run-{turn}"] if what == "isograd" else []
                times[what].append(_seconds_until(sign, [*command, *extra], folder))
        return {f"{what}, s": median(values) for what, values in times.items()}


def _seconds_until(sign: str, command: list[str], folder: Path) -> float:
    began = perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(sign):
                seconds = perf_counter() - began
                process.stdout.read()
                return seconds
    raise SystemExit(f"{' '.join(command)} never said '{sign}'")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _write_rows(path: Path, rows: int, inputs: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    x = np.random.default_rng(1).random((rows, inputs), dtype=np.float32)
    pq.write_table(pa.table({"x": pa.FixedSizeListArray.from_arrays(x.ravel(), inputs), "label": np.arange(rows) % 10}), path)


def empty_rounds() -> dict[str, float]:
    """Return the microseconds that a round takes beside its arithmetic.

    Once with the coordinator asking for rounds of no rows one by one, from publishing the weights to having all answers; and once
    with workers that run rounds by themselves, what they take for computing and updating subtracted.
    """
    from cluster.launch import LOCAL, connected
    from cluster.ray_pool import RayPool
    from coordinator.job import parse_job
    from coordinator.order import Order
    from coordinator.pool import WorkersSpec
    from coordinator.preparation import inspect
    from coordinator.start import prepare
    from worker.messages import ComputeGradients

    found = {}
    with tempfile.TemporaryDirectory(prefix="isograd-bench-") as name, connected(LOCAL, WorkersSpec(count=8), debug=False):
        _write_rows(Path(name) / "rows.parquet", 80, 2)
        for count in (1, 2, 4, 8):
            document = tomllib.loads(JOB)
            document["data"] |= {"train": f"{name}/rows.parquet", "shards": count}
            job = parse_job(document | {"workers": {"count": count}})
            pool = RayPool(job.workers)
            prepared = prepare(Order(job, Path(name) / "run", time()), inspect(job), pool)
            snapshot = prepared.training.snapshot
            assert snapshot is not None
            while pool.linked < count:
                pool.wait(0.01)
            times = []
            for number in range(ROUNDS):
                began = perf_counter()
                prepared.dispatcher.publish(snapshot.parameters.weights_P)
                prepared.dispatcher.ask("round", lambda shards, number=number: ComputeGradients(number, ()))
                times.append(perf_counter() - began)
            who = f"{count} worker{'s' if count > 1 else ''}"
            found[f"{who}, asked for, µs"] = 1e6 * median(times)
            if count <= len(os.sched_getaffinity(0)):
                found[f"{who}, by themselves, µs"] = 1e6 * median(_meetings(prepared.dispatcher))
            pool.close()
    return found


def _meetings(dispatcher: Any) -> list[float]:
    """Return what rounds that workers run by themselves take beside computing and updating, in seconds."""
    from coordinator.ahead import MOST_ROUNDS, Ahead

    found: list[float] = []
    while len(found) < ROUNDS:
        rates, first = (0.0,) * MOST_ROUNDS, len(found)
        if not dispatcher.run_ahead(lambda shares, rates=rates, first=first: Ahead(first, rates, first % 2, shares)):
            raise SystemExit("the workers can't run rounds by themselves")
        ran = dispatcher.ran()
        found += [run.duration - max(run.seconds.values()) - run.reduce_seconds - run.update_seconds for run in ran]
    return found


def speeds(repeats: int, seconds: float, ways: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Return the rows a second of the last four works for each way (shards, workers)."""
    rates: dict[str, list[float]] = {f"{work.name}, {way}, rows/s": [] for work in LAST_FOUR for way in ways}
    for _ in range(repeats):
        for work in LAST_FOUR:
            length = seconds * (8 if max(work.layers) > 1024 else 1)  # one worker takes 12 seconds for an epoch
            for way, (shards, workers) in ways.items():
                done = _isolated(work, length, shards, workers)
                rates[f"{work.name}, {way}, rows/s"].append(done)
    return {name: median(values) for name, values in rates.items()}


def _isolated(work: Work, seconds: float, shards: int, workers: int) -> float:
    """Return isograd's rows a second, measured in a process of its own."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from contenders import isograd; from works import find; "
        "done = isograd(find(sys.argv[2]), float(sys.argv[3]), shards=int(sys.argv[4]), workers=int(sys.argv[5])); "
        "print(done['rows_per_second'])"
    )
    arguments = [str(Path(__file__).parent), work.name, str(seconds), str(shards), str(workers)]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def memory() -> dict[str, float]:
    """Return the proportional share of memory (PSS) of coordinator and workers at its highest, in multiples of the parameters.

    What the same processes take for a network of next to no parameters is subtracted.
    """
    large = WORKS[5]
    small = Work("small", (784, 1, 10), 1024, rows=large.rows)
    found = {}
    peaks = {work.name: _peaks(work) for work in (small, large)}
    parameters = 4 * sum((inputs + 1) * outputs for inputs, outputs in pairwise(large.layers))
    for role in ("Coordinator", "Worker"):
        found[f"{role}, of the parameters"] = (peaks[large.name][role] - peaks[small.name][role]) / parameters
    return found


def _peaks(work: Work) -> dict[str, int]:
    import threading

    peaks = {"Coordinator": 0, "Worker": 0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            for role in peaks:
                for pid in _children_titled(f"ray::{role}Actor"):
                    peaks[role] = max(peaks[role], _pss(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        isograd(work, MEMORY_SECONDS)
    finally:
        over.set()
        watcher.join()
    return peaks


def _children_titled(title: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                grandparent = (Path("/proc") / parent / "stat").read_text().rsplit(")", 1)[1].split()[1]
                if (entry / "cmdline").read_bytes().startswith(title.encode()) and int(grandparent) == os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def _pss(pid: int) -> int:
    try:
        text = (Path("/proc") / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return 0
    fields: dict[str, Any] = {line.split(":")[0]: line.split()[1] for line in text.splitlines()[1:]}
    return int(fields["Pss"]) * 1024


if __name__ == "__main__":
    main()
