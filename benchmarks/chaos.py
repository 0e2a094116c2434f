"""Kill, stop and replace workers and coordinators for some minutes, and see whether anybody can tell from the results.

Run as `make chaos`, or `.venv/bin/python benchmarks/chaos.py --minutes 10 --seed 3`.
"""

import os
import random
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic, time

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.follow import follow
from cluster.launch import IN_PROCESS, LOCAL, connected, launch
from coordinator.job import JobSpec, parse_job
from coordinator.order import Order
from coordinator.pool import WorkersSpec
from coordinator.records import Event, Finished, Summary

MOST_WORKERS = 4
PACE_SECONDS = (0.1, 1.5)
COORDINATOR_SHARE = 0.03


@dataclass
class Tally:
    """What the trials came to."""

    trials: int = 0
    killed: int = 0
    stopped: int = 0
    coordinators: int = 0
    workers_lost: int = 0
    rows_lost: int = 0
    rows_repeated: int = 0
    digests: set[str] = field(default_factory=set)


@click.command()
@click.option("--minutes", default=3.0, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(minutes: float, seed: int) -> None:
    """Train one job again and again under random faults, and compare with a run that nothing disturbs."""
    chance, tally, until = random.Random(seed), Tally(), monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="isograd-chaos-") as name:
        folder = Path(name)
        job = make_job(folder)
        calm = finish(launch(Order(job, folder / "calm", time()), IN_PROCESS, lambda: False, debug=False))
        with connected(LOCAL, WorkersSpec(count=MOST_WORKERS), debug=False):
            while monotonic() < until:
                tally.trials += 1
                workers = replace(job.workers, count=None, min=1, max=chance.randint(1, MOST_WORKERS), deadline_seconds=1.0)
                order = Order(replace(job, workers=workers), folder / f"trial-{tally.trials}", time())
                summary = finish(disturb(follow(order, lambda: False), chance, tally))
                tally.workers_lost += summary.worker_failures
                tally.rows_lost += max(0, summary.rows_expected - summary.rows_trained)
                tally.rows_repeated += max(0, summary.rows_trained - summary.rows_expected)
                tally.digests.add(summary.weights_digest)
                print(
                    f"trial {tally.trials}: {workers.max} workers, {summary.worker_failures} lost, {summary.weights_digest[:16]}"
                )
    equal = tally.digests == {calm.weights_digest}
    print(f"faults: {tally.killed} workers killed, {tally.stopped} stopped, {tally.coordinators} coordinators killed")
    print(f"rows lost: {tally.rows_lost}, rows repeated: {tally.rows_repeated}")
    print(f"digests of {tally.trials} disturbed runs and one undisturbed: {'all equal' if equal else 'DIFFERENT'}")
    raise SystemExit(0 if equal and not tally.rows_lost and not tally.rows_repeated else 1)


def make_job(folder: Path) -> JobSpec:
    """Return a job that takes some seconds, with as many parts as there are that could go wrong."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 16)).astype(np.float32)
    table = pa.table({f"x{column}": x[:, column] for column in range(16)} | {"kind": (x[:, :4] @ [1, 2, 3, 4] > 1).astype(int)})
    pq.write_table(table, folder / "rows.parquet", row_group_size=500)
    return parse_job(
        {
            "job": {"name": "chaos", "seed": 5},
            "data": {"train": str(folder / "rows.parquet"), "label": "kind", "validation": 0.2, "scale": "standard"},
            "model": {"task": "classification", "hidden": [32, 16], "dropout": 0.1, "l2": 1e-4},
            "optimizer": {"name": "adam", "clip_norm": 1.0},
            "training": {"epochs": 30},
        }
    )


def disturb(events: Iterator[Event], chance: random.Random, tally: Tally) -> Iterator[Event]:
    """Pass events on, and now and then kill or stop a process of the run."""
    next_at = monotonic() + chance.uniform(*PACE_SECONDS)
    for event in events:
        yield event
        if monotonic() < next_at or isinstance(event, Finished):
            continue
        next_at = monotonic() + chance.uniform(*PACE_SECONDS)
        coordinator = chance.random() < COORDINATOR_SHARE
        pids = processes("CoordinatorActor" if coordinator else "WorkerActor")
        if not pids:
            continue
        stop = not coordinator and chance.random() < 0.25
        os.kill(chance.choice(pids), signal.SIGSTOP if stop else signal.SIGKILL)
        tally.coordinators += coordinator
        tally.stopped += stop
        tally.killed += not coordinator and not stop


def processes(title: str) -> list[int]:
    """Return the Ray processes with this title that belong to this process's Ray."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
                grandparent = (Path("/proc") / parent / "stat").read_text().rsplit(")", 1)[1].split()[1]
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(f"ray::{title}".encode()) and state not in "ZT" and int(grandparent) == os.getpid():
                found.append(int(entry.name))
    return found


def finish(events: Iterator[Event]) -> Summary:
    """Return the summary at the end of a run's events."""
    *_, last = events
    assert isinstance(last, Finished)
    return last.summary


if __name__ == "__main__":
    main()
