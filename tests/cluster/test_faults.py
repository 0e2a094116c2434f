"""Real processes killed and stopped on a real Ray: the digest and the ledger must not show it."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from time import time

import pytest

from cluster.launch import IN_PROCESS, follow, launch
from coordinator.dispatch import PoolError
from coordinator.job import JobSpec
from coordinator.records import EpochDone, Event, Finished, Noticed, RoundDone, Started, Summary
from coordinator.run import Order

pytestmark = pytest.mark.usefixtures("local_ray")
Jobs = Callable[..., JobSpec]


def processes(title: str) -> list[int]:
    """Return the Ray processes below this one with this title, oldest first."""
    parents: dict[int, int] = {}
    titled: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(stat[1])
            if command.startswith(f"ray::{title}".encode()) and stat[0] not in "Zx":
                titled.append(int(entry.name))
    return sorted(pid for pid in titled if parents.get(parents[pid]) == os.getpid())


def digest_without_faults(job: JobSpec, directory: Path) -> Summary:
    events = list(launch(Order(job, directory, time()), IN_PROCESS, lambda: False, debug=False))
    return summary_of(events)


def summary_of(events: list[Event]) -> Summary:
    last = events[-1]
    assert isinstance(last, Finished)
    return last.summary


def begin(job: JobSpec, directory: Path) -> Iterator[Event]:
    return follow(Order(job, directory, time()), lambda: False)


def check(summary: Summary, calm: Summary) -> None:
    assert summary.weights_digest == calm.weights_digest
    assert summary.rows_trained == summary.rows_expected == calm.rows_trained
    assert (summary.train, summary.validation) == (calm.train, calm.validation)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_worker_killed_while_it_computes_costs_its_slices_only(small_job: Jobs, tmp_path: Path, workers: int) -> None:
    job = small_job({"workers.count": workers})
    calm = digest_without_faults(job, tmp_path / "calm")
    order = Order(job, tmp_path / "run", time())
    summary = summary_of(list(follow(order, lambda: False, kill_in_round=5)))
    check(summary, calm)
    assert summary.worker_failures == 1
    assert 1 <= summary.slices_recomputed <= -(-6 // workers)


def test_of_workers_that_run_rounds_by_themselves_only_the_one_that_hangs_is_lost(small_job: Jobs, tmp_path: Path) -> None:
    job = small_job({"workers.count": 2, "workers.deadline_seconds": 0.5, "training.epochs": 1000})
    calm = digest_without_faults(job, tmp_path / "calm")
    stopped = None
    for event in begin(job, tmp_path / "run"):
        if isinstance(event, EpochDone) and stopped is None:
            stopped = processes("WorkerActor")[0]
            os.kill(stopped, signal.SIGSTOP)
    assert stopped is not None
    summary = summary_of([event])
    check(summary, calm)
    assert summary.worker_failures == 1
    assert summary.slices_recomputed <= 3


def test_hundreds_of_rounds_with_workers_killed_and_stopped_at_random(small_job: Jobs, tmp_path: Path) -> None:
    job = small_job({"workers.count": 3, "workers.deadline_seconds": 0.5, "training.epochs": 600})
    calm = digest_without_faults(job, tmp_path / "calm")
    chance, faults, next_at = random.Random(4), 0, 0
    for event in begin(job, tmp_path / "run"):
        rounds = event.round if isinstance(event, RoundDone) else event.record.round if isinstance(event, EpochDone) else 0
        workers = processes("WorkerActor")
        if rounds > next_at and len(workers) > 1 and rounds < 2300:
            next_at = rounds + chance.randrange(30)
            os.kill(chance.choice(workers), chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]))
            faults += 1
        last = event
    summary = summary_of([last])
    check(summary, calm)
    assert faults >= 1
    assert summary.worker_failures >= 1


def test_a_coordinator_that_is_killed_goes_on_from_its_checkpoint(small_job: Jobs, tmp_path: Path) -> None:
    job = small_job({"training.epochs": 150})
    calm = digest_without_faults(job, tmp_path / "calm")
    killed, notices, recorded = False, [], []
    for event in begin(job, tmp_path / "run"):
        if isinstance(event, EpochDone):
            recorded.append(event.record.epoch)
            if event.record.epoch >= 5 and not killed:
                killed = True
                for pid in processes("CoordinatorActor"):
                    os.kill(pid, signal.SIGKILL)
        if isinstance(event, Noticed):
            notices.append(event.message)
        last = event
    check(summary_of([last]), calm)
    assert any("the coordinator was lost" in notice for notice in notices)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [f'{{"epoch": {epoch},' for epoch in range(1, 151)] == [line[: line.index(",") + 1] for line in lines]


def test_when_every_worker_dies_the_run_gives_up_with_a_checkpoint(small_job: Jobs, tmp_path: Path) -> None:
    def kill_whoever_is_there(events: Iterator[Event]) -> None:
        for _ in events:
            for pid in processes("WorkerActor"):
                os.kill(pid, signal.SIGKILL)

    job = small_job({"training.epochs": 100_000, "workers.wait_seconds": 30.0})
    with pytest.raises(PoolError, match=r"shard \d cost \d+ workers in a row|died while starting"):
        kill_whoever_is_there(begin(job, tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_coordinator_that_is_killed_is_announced_anew_and_taken_back_in_the_end(small_job: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "sd"
    folder.mkdir()
    job = small_job({"training.epochs": 1_000_000, "metrics.sd_dir": str(folder)})
    starts: list[Started] = []
    events = begin(job, tmp_path / "run")
    for event in events:
        if isinstance(event, Started):
            starts.append(event)
            (announcement,) = folder.glob("*.json")
            target = json.loads(announcement.read_text())[0]["targets"][0]
            assert event.metrics_url == f"http://{target}/metrics"
            if len(starts) == 2:
                break
        if isinstance(event, EpochDone) and len(starts) == 1:
            for pid in processes("CoordinatorActor"):
                os.kill(pid, signal.SIGKILL)

    events.close()  # kills the second one, as a second Ctrl-C does

    assert len({start.metrics_url for start in starts}) == 2
    assert list(folder.glob("*.json")) == []
