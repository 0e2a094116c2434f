"""Runs on a real Ray: the bits, errors that cross processes, and interruption."""

import re
from collections.abc import Callable
from pathlib import Path
from time import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from cluster.follow import follow
from cluster.launch import IN_PROCESS, launch
from coordinator.dispatch import PoolError
from coordinator.job import JobSpec
from coordinator.order import Order
from coordinator.records import EpochDone, Event, Finished, Noticed, Started, Summary
from worker.errors import DataError, UserError

pytestmark = pytest.mark.usefixtures("local_ray")
Jobs = Callable[..., JobSpec]


def summary_of(events: list[Event]) -> Summary:
    last = events[-1]
    assert isinstance(last, Finished)
    return last.summary


def train(job: JobSpec, directory: Path) -> list[Event]:
    return list(follow(Order(job, directory, time()), lambda: False))


def test_any_number_of_workers_gives_the_bits_of_this_process(small_job: Jobs, tmp_path: Path) -> None:
    here = Order(small_job({}), tmp_path / "here", time())
    expected = summary_of(list(launch(here, IN_PROCESS, lambda: False, debug=False)))
    for count in (1, 2, 3):
        found = summary_of(train(small_job({"workers.count": count}), tmp_path / f"run{count}"))
        assert found.weights_digest == expected.weights_digest
        assert (found.train, found.validation) == (expected.train, expected.validation)
        assert found.workers == count


def test_events_arrive_in_order_and_once(small_job: Jobs, tmp_path: Path) -> None:
    events = train(small_job({}), tmp_path / "run")
    assert isinstance(events[0], Started)
    assert [event.record.epoch for event in events if isinstance(event, EpochDone)] == [1, 2, 3]
    assert sum(isinstance(event, Finished) for event in events) == 1


def test_an_error_of_a_worker_keeps_its_words(small_job: Jobs, tmp_path: Path) -> None:
    job = small_job({})
    table = pq.read_table(job.data.train)
    holes = [None if row == 200 else float(row) for row in range(table.num_rows)]
    pq.write_table(table.set_column(0, "x0", pa.array(holes, pa.float32())), job.data.train)
    with pytest.raises(DataError, match=re.escape(f"{job.data.train}: row 201, column 'x0'")):
        train(job, tmp_path / "run")


def test_workers_that_the_cluster_can_not_place_are_named(small_job: Jobs, tmp_path: Path) -> None:
    there = ray.cluster_resources()["CPU"]
    cpus = there / 2
    job = small_job({"workers.count": 3, "workers.cpus": cpus, "workers.wait_seconds": 0.5})
    told = rf"no room for 3 workers of {cpus:g} CPUs on as few nodes as can be: \S+ of its {there:g} CPUs are free"
    with pytest.raises(PoolError, match=told):
        train(job, tmp_path / "run")


def test_a_run_that_waits_for_room_says_so_and_can_be_interrupted(
    small_job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.placement.TOLD_AFTER_SECONDS", 0.0)
    job = small_job({"workers.count": 2, "workers.placement": "strict_spread"})
    seen: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(follow(Order(job, tmp_path / "run", time()), lambda: bool(seen)))
    (notice,) = seen
    assert isinstance(notice, Noticed)
    assert notice.message.startswith("waiting until the cluster has room for 2 workers of 1 CPUs each on a node of its own")


def test_a_start_that_is_refused_or_interrupted_leaves_the_announcement_of_the_run_that_has_the_directory(
    small_job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sd").mkdir()
    job = small_job({"metrics.sd_dir": str(tmp_path / "sd"), "training.epochs": 100_000})
    events = follow(Order(job, tmp_path / "run", time()), lambda: False)
    while not isinstance(next(events), Started):
        pass
    (announced,) = (tmp_path / "sd").iterdir()

    with pytest.raises(UserError, match="holds a run already"):
        train(job, tmp_path / "run")
    assert announced.exists()

    monkeypatch.setattr("cluster.follow.POLL_SECONDS", 0.001)
    with pytest.raises(KeyboardInterrupt, match="before the coordinator had a place"):
        next(follow(Order(job, tmp_path / "run", time()), lambda: True))
    assert announced.exists()

    events.close()  # type: ignore[attr-defined]  # which kills the coordinator
    assert not announced.exists()


def test_an_interrupted_run_ends_in_good_order(small_job: Jobs, tmp_path: Path) -> None:
    seen: list[Event] = []
    job = small_job({"training.epochs": 100_000})
    seen.extend(follow(Order(job, tmp_path / "run", time()), lambda: any(isinstance(e, EpochDone) for e in seen)))
    summary = summary_of(seen)
    assert summary.status == "interrupted"
    assert summary.rows_trained == summary.rows_expected
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
