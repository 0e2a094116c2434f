"""In which order rows are used is settled by the job and its data; how much memory there is decides what is kept, and no bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pyarrow import csv, feather
from pyarrow import parquet as pq

from coordinator import preparation
from coordinator.check import JobPlan, check_job
from coordinator.job import load_job
from coordinator.records import EpochDone, Event, Summary
from worker.errors import DataError, JobError
from worker.streaming import StreamedShard

Document = dict[str, dict[str, Any]]
Run = Callable[..., tuple[list[Event], Summary]]
WriteTable = Callable[..., Path]

ROW_BYTES = 4 * 4 + 8
"""Of blobs: four numbers and a class."""

WINDOWS = 10 * (2 * ROW_BYTES + 8)
"""Two windows of all shards, and the order of one."""


@pytest.fixture
def job(blobs_job: Document) -> Document:
    """Five shards of 12 or 13 rows, in windows of 2 rows; row groups of 16 rows."""
    blobs_job["data"] |= {"shuffle": "window", "window_rows": 10, "scale": "standard"}
    blobs_job["model"]["dropout"] = 0.2
    return blobs_job


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs in which rows were gathered from a stream."""
    epochs: list[int] = []
    gather = StreamedShard.gather

    def counted(shard: StreamedShard, epoch: int, *arguments: Any) -> None:
        epochs.append(epoch)
        gather(shard, epoch, *arguments)

    monkeypatch.setattr(StreamedShard, "gather", counted)
    return epochs


def plan_of(document: Document, folder: Path) -> JobPlan:
    path = folder / "check.toml"
    path.write_text(tomli_w.dumps(document))
    return check_job(load_job(path, {}))


def history(events: list[Event]) -> list[tuple[Any, Any]]:
    return [(event.record.train, event.record.validation) for event in events if isinstance(event, EpochDone)]


@pytest.mark.parametrize("validation", [None, 0.3, "other.parquet"])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_memory_and_workers_make_no_difference(
    run_job: Run, job: Document, streamed: list[int], write_table: WriteTable, validation: float | str | None, workers: int
) -> None:
    if validation is not None:
        job["data"]["validation"] = validation
    write_table("other.parquet", {f"x{place}": [float(place)] * 7 for place in range(4)} | {"kind": ["bee"] * 7})
    calm_events, calm = run_job(job)
    assert streamed == []

    # Room for all windows and nothing else; for some shards; for all rows to train on, but not for those to validate on.
    for limit in (WINDOWS, 1200, 61 * (ROW_BYTES + 8)):
        events, summary = run_job(job, {"data.memory_limit": limit, "workers.count": workers})
        assert summary.weights_digest == calm.weights_digest
        assert history(events) == history(calm_events)
        assert summary.rows_trained == summary.rows_expected
    assert set(streamed) == ({0, 1, 2} if workers < 5 else set())  # with a single shard, a worker has room for it


@pytest.mark.parametrize("name", ["rows.csv", "rows.arrow"])
def test_files_without_row_groups_are_streamed_too(
    run_job: Run, job: Document, streamed: list[int], tmp_path: Path, name: str
) -> None:
    rows = pq.read_table(tmp_path / "blobs.parquet")
    (csv.write_csv if name == "rows.csv" else feather.write_feather)(rows, tmp_path / name)
    job["data"] |= {"train": name, "validation": 0.2}

    digests = {run_job(job, {"data.memory_limit": limit})[1].weights_digest for limit in (WINDOWS, 61 * (ROW_BYTES + 8))}

    assert len(digests) == 1
    assert set(streamed) == {0, 1, 2}


def test_the_order_is_another_one_than_that_of_whole_shards(run_job: Run, job: Document) -> None:
    digests = {run_job(job, {"data.window_rows": rows})[1].weights_digest for rows in (10, 20)}
    del job["data"]["window_rows"]
    digests |= {run_job(job, {"data.shuffle": shuffle})[1].weights_digest for shuffle in ("full", "auto")}

    assert len(digests) == 3  # "auto" is "full" for few rows


@pytest.mark.parametrize(("most", "window_rows"), [(61 * 16, None), (61 * 16 - 1, 40)])
def test_data_above_a_fixed_size_is_shuffled_in_windows_of_a_fixed_size(
    job: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, window_rows: int | None
) -> None:
    monkeypatch.setattr(preparation, "FULL_BYTES", most)
    monkeypatch.setattr(preparation, "WINDOW_BYTES", 37 * 16)
    job["data"] |= {"shuffle": "auto"}
    del job["data"]["window_rows"]

    assert plan_of(job, tmp_path).window_rows == window_rows  # 37, rounded up to as many of each of 5 shards


def test_check_tells_how_many_shards_a_worker_keeps(job: Document, tmp_path: Path) -> None:
    shard = 13 * (ROW_BYTES + 8)
    found = [
        plan_of(job | {"data": job["data"] | {"memory_limit": limit}, "workers": {"count": 2}}, tmp_path)
        for limit in (WINDOWS, WINDOWS // 5 * 2 + shard, 10 * WINDOWS)
    ]

    assert [(plan.kept, plan.share) for plan in found] == [(0, 3), (1, 3), (3, 3)]
    assert [plan.limit_bytes for plan in found] == [WINDOWS, WINDOWS // 5 * 2 + shard, 10 * WINDOWS]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            {"memory_limit": 500},
            "500 is less than the 560 B that windows of all shards take; raise it, or set data.window_rows to 5 or less",
        ),
        (
            {"memory_limit": "1 B"},
            "1 B is less than the 560 B that windows of all shards take; raise it, or use fewer shards",
        ),
        (
            {"memory_limit": "1 kB", "shuffle": "full", "window_rows": None},
            "1 kB is less than the 1.18 kB that the shards of each of 2 workers take; raise it, "
            'set data.shuffle = "window", or use more workers',
        ),
    ],
)
def test_too_little_memory_is_told_before_the_first_round(
    run_job: Run, job: Document, tmp_path: Path, data: dict[str, Any], told: str
) -> None:
    job["data"] = {key: value for key, value in (job["data"] | data).items() if value is not None}
    for attempt in (lambda: run_job(job), lambda: plan_of(job, tmp_path)):
        with pytest.raises(JobError) as error:
            attempt()
        assert str(error.value) == f"data.memory_limit: {told}"


@pytest.mark.parametrize("limit", [WINDOWS, 10 * WINDOWS])
def test_a_row_to_validate_on_that_can_not_be_used_is_named_before_the_first_round(
    run_job: Run, job: Document, write_table: WriteTable, tmp_path: Path, limit: int
) -> None:
    table = {f"x{place}": [1.0] * 7 for place in range(4)} | {"kind": ["bee"] * 6 + ["dog"]}
    job["data"] |= {"validation": "other.parquet", "memory_limit": limit}
    path = write_table("other.parquet", table)

    for attempt in (lambda: run_job(job, directory=tmp_path / "run"), lambda: plan_of(job, tmp_path)):
        with pytest.raises(DataError, match=rf"^{path}: row 7, column 'kind': class 'dog' does not occur"):
            attempt()
    assert not (tmp_path / "run").exists()


def test_check_refuses_a_network_that_no_machine_has_memory_for(blobs_job: Document, tmp_path: Path) -> None:
    blobs_job["model"]["hidden"] = [10**13]
    with pytest.raises(JobError, match=r"^model\.hidden: a network of "):
        plan_of(blobs_job, tmp_path)
