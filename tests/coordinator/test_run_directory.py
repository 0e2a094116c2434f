import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from threading import Barrier

import pytest

from coordinator.local_folder import LocalFolder
from coordinator.records import EpochRecord, Errors, Percentiles, Seconds, Summary
from coordinator.run_directory import RunDirectory, RunDirectoryError, check

ERRORS = Errors(loss=1 / 3, mean_absolute_error=1e-300, mean_squared_error=0.1, error_rate=None)
SUMMARY = Summary(
    run="ä run",
    status="completed",
    stop_reason="epochs",
    epochs=1,
    rounds=4,
    rows_trained=61,
    rows_expected=61,
    parameters=10,
    workers=2,
    worker_failures=0,
    slices_recomputed=0,
    kept_epoch=1,
    weights_digest="0" * 64,
    seconds=Seconds(startup=0.1, training=0.2, total=0.3),
    rows_per_second=5.0,
    round_seconds=Percentiles(p50=0.1, p99=0.2),
    train=ERRORS,
    validation=ERRORS,
    fingerprint={"cpu": "x"},
)


def refused(path: Path) -> str:
    """The sentence with which both the early check and the run itself refuse a directory."""
    messages = []
    for attempt in (check, lambda folder: RunDirectory.create(folder, "")):
        with pytest.raises(RunDirectoryError) as error:
            attempt(LocalFolder(path))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert len(messages[0].splitlines()) == 1
    assert messages[0].startswith(f"--run-dir: {path} ")
    return messages[0]


def test_a_new_directory_is_made_with_its_parents_and_holds_the_job(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first"
    check(LocalFolder(path))
    assert not path.parent.exists()

    RunDirectory.create(LocalFolder(path), 'name = "ä"')

    assert (path / "job.toml").read_text(encoding="utf-8") == 'name = "ä"'


def test_an_empty_directory_is_used(tmp_path: Path, epoch_record: EpochRecord) -> None:
    directory = RunDirectory.create(LocalFolder(tmp_path), "")
    directory.append(epoch_record)
    directory.finish(b"<html>", SUMMARY)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl", "job.toml", "report.html", "summary.json"]


@pytest.mark.parametrize("left", ["job.toml", "summary.json", "history.jsonl"])
def test_a_directory_that_holds_a_run_is_refused_and_left_alone(tmp_path: Path, left: str) -> None:
    (tmp_path / left).write_text("of another run")

    assert "holds a run already" in refused(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [left]
    assert (tmp_path / left).read_text() == "of another run"


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_a_directory_at_or_below_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("not a folder")

    assert f"{tmp_path / 'file'} is a file" in refused(tmp_path / "file" / below)


def test_a_name_that_no_folder_can_have_is_refused(tmp_path: Path) -> None:
    assert "can't be written" in refused(tmp_path / ("n" * 300))


def test_of_runs_that_race_for_a_directory_one_gets_it(tmp_path: Path) -> None:
    racers = 8
    barrier = Barrier(racers)

    def race(number: int) -> str:
        barrier.wait()
        try:
            RunDirectory.create(LocalFolder(tmp_path / "run"), str(number)).finish(b"", SUMMARY)
        except RunDirectoryError as error:
            return str(error)
        return str(number)

    with ThreadPoolExecutor(racers) as threads:
        endings = list(threads.map(race, range(racers)))

    assert endings.count((tmp_path / "run" / "job.toml").read_text()) == 1
    assert sum("holds a run already" in ending for ending in endings) == racers - 1


def test_a_line_of_history_is_there_as_soon_as_it_is_added(tmp_path: Path, epoch_record: EpochRecord) -> None:
    directory = RunDirectory.create(LocalFolder(tmp_path), "")
    records = [epoch_record, replace(epoch_record, epoch=2, validation=ERRORS)]

    for count, record in enumerate(records, 1):
        directory.append(record)
        lines = (tmp_path / "history.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [asdict(known) for known in records[:count]]
    directory.finish(b"<html>", SUMMARY)


def test_the_summary_is_json_and_the_last_file_of_a_run(tmp_path: Path) -> None:
    directory = RunDirectory.create(LocalFolder(tmp_path), "")
    assert not (tmp_path / "summary.json").exists()

    directory.finish(b"<html>", SUMMARY)

    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == asdict(SUMMARY)
