"""Real processes killed and stopped on a real Ray: the digest and the ledger must not show it."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, time
from typing import Any

import pytest
from ray._private.state import actors

from cluster.follow import follow
from cluster.launch import IN_PROCESS, launch
from coordinator.dispatch import PoolError
from coordinator.folders import Address, open_folder
from coordinator.job import JobSpec
from coordinator.order import Order
from coordinator.records import Checkpointed, EpochDone, Event, Finished, Noticed, Started, Summary

pytestmark = pytest.mark.usefixtures("local_ray")
PATIENCE_SECONDS = 300.0
ENDLESS: dict[str, object] = {"training.epochs": 1_000_000}
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


@pytest.fixture(autouse=True)
def _nobody_left() -> None:
    """Ray ends the processes of a run some time after it; whoever looks for those of the next one must not find them."""
    until, pause = monotonic() + PATIENCE_SECONDS, threading.Event()
    while processes("WorkerActor") or processes("CoordinatorActor") or any(is_alive(actor) for actor in actors().values()):
        assert monotonic() < until
        pause.wait(0.05)


def is_alive(actor: dict[str, Any]) -> bool:
    return bool(actor["State"] != "DEAD")


def digest_without_faults(job: JobSpec, directory: Path) -> Summary:
    events = list(launch(Order(job, directory, time()), IN_PROCESS, lambda: False, debug=False))
    return summary_of(events)


def summary_of(events: list[Event]) -> Summary:
    last = events[-1]
    assert isinstance(last, Finished)
    return last.summary


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def begin(job: JobSpec, directory: Address, interrupted: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Run a job, which is interrupted in any case when it should be over long since."""
    until = monotonic() + PATIENCE_SECONDS
    return follow(Order(job, directory, time()), lambda: interrupted() or monotonic() > until)


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


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_rows_that_are_streamed_give_the_bits_of_rows_in_memory_though_a_worker_is_killed(
    small_job: Jobs, tmp_path: Path, workers: int
) -> None:
    windows: dict[str, object] = {"data.shuffle": "window", "data.window_rows": 60}
    calm = digest_without_faults(small_job(windows), tmp_path / "calm")
    job = small_job(windows | {"data.memory_limit": "3.5 kB", "workers.count": workers})  # room for two windows of each shard
    order = Order(job, tmp_path / "run", time())
    summary = summary_of(list(follow(order, lambda: False, kill_in_round=5)))
    check(summary, calm)
    assert summary.worker_failures == 1


def test_rows_of_a_worker_that_was_killed_are_not_read_again_on_its_node(small_job: Jobs, tmp_path: Path) -> None:
    job = small_job({"training.epochs": None, "training.rounds": 3000, "checkpoint.every_epochs": 1000})
    calm = digest_without_faults(job, tmp_path / "calm")
    events = []
    for event in follow(Order(job, tmp_path / "run", time()), lambda: False, kill_in_round=2500):
        if isinstance(event, Started):
            (tmp_path / "rows.parquet").unlink()
        events.append(event)
    check(summary_of(events), calm)
    assert summary_of(events).worker_failures == 1


@pytest.mark.parametrize("stored", [False, True])
def test_a_coordinator_that_is_killed_goes_on_from_its_checkpoint(
    small_job: Jobs, tmp_path: Path, store: Any, stored: bool
) -> None:
    epoch, killed_in, lives, checkpointed = 0, 0, 0, False
    job = small_job(ENDLESS | {"storage.endpoint": store.endpoint})
    directory = f"s3://{store.bucket}/run" if stored else tmp_path / "run"
    notices: list[str] = []

    def goes_on() -> bool:
        return lives == 2 and epoch > killed_in

    for event in begin(job, directory, goes_on):
        match event:
            case Started():
                lives += 1
            case Noticed(message=message):
                notices.append(message)
            case Checkpointed():
                checkpointed = True
            case EpochDone(record=record):
                epoch = record.epoch
                if epoch >= 5 and checkpointed and not killed_in:
                    killed_in = epoch
                    kill(processes("CoordinatorActor"))
    summary = summary_of([event])

    assert (lives, summary.status) == (2, "interrupted")
    calm = digest_without_faults(small_job({"training.epochs": summary.epochs}), tmp_path / "calm")
    assert summary.weights_digest == calm.weights_digest
    assert summary.rows_trained == summary.rows_expected >= calm.rows_trained
    assert (summary.train, summary.validation) == (calm.train, calm.validation)
    assert any("the coordinator was lost" in notice for notice in notices)
    lines = open_folder(directory, job.storage).read("history.jsonl").decode().splitlines()
    assert [f'{{"epoch": {epoch},' for epoch in range(1, summary.epochs + 1)] == [line[: line.index(",") + 1] for line in lines]


def test_what_had_a_checkpoint_is_not_begun_anew_where_the_run_directory_is_not_seen(small_job: Jobs, tmp_path: Path) -> None:
    events: list[Event] = []

    def hide_directory() -> None:
        (coordinator,) = processes("CoordinatorActor")
        os.kill(coordinator, signal.SIGSTOP)  # so that it does not write there any more
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        os.kill(coordinator, signal.SIGKILL)

    def follow_to_the_end() -> None:
        for event in begin(small_job(ENDLESS), tmp_path / "run"):
            if isinstance(event, Checkpointed) and not any(isinstance(before, Checkpointed) for before in events):
                hide_directory()
            events.append(event)

    with pytest.raises(PoolError, match=f"{tmp_path / 'run'} does not hold the run; give a --run-dir that all nodes see"):
        follow_to_the_end()
    assert sum(isinstance(event, Started) for event in events) == 1
    assert events[-1] == Noticed(message="the coordinator was lost: its process died; a new one is started")
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_is_killed_is_announced_anew_and_taken_back_in_the_end(small_job: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "sd"
    folder.mkdir()
    starts: list[Started] = []
    killed = False
    events = begin(small_job(ENDLESS | {"metrics.sd_dir": str(folder)}), tmp_path / "run")
    for event in events:
        if isinstance(event, Started):
            starts.append(event)
            (announcement,) = folder.glob("*.json")
            target = json.loads(announcement.read_text())[0]["targets"][0]
            assert event.metrics_url == f"http://{target}/metrics"
            if len(starts) == 2:
                break
        if isinstance(event, EpochDone) and not killed:
            killed = True
            kill(processes("CoordinatorActor"))

    events.close()  # kills the second one, as a second Ctrl-C does

    assert len({start.metrics_url for start in starts}) == 2
    assert list(folder.glob("*.json")) == []
