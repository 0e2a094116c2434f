"""Runs whose directory lies in an S3 store: the same bits, the same files, and what becomes of them when the store fails."""

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from coordinator.folders import Folder, open_folder
from coordinator.model_files import load_model
from coordinator.records import Checkpointed, EpochDone, Event, Finished, Noticed, Started, Summary
from coordinator.run_directory import RunDirectoryError
from coordinator.scoring import evaluate, predict
from worker.errors import DataError, UserError
from worker.stores import StorageSpec

Document = dict[str, dict[str, Any]]
Go = Callable[..., list[Event]]


@pytest.fixture
def address(store: Any) -> str:
    return f"s3://{store.bucket}/runs/a"


@pytest.fixture
def folder(store: Any, address: str) -> Folder:
    return open_folder(address, StorageSpec(endpoint=store.endpoint))


@pytest.fixture
def job(blobs_job: Document, store: Any) -> Document:
    """Four rounds an epoch, three epochs, with all that has state."""
    blobs_job["data"]["validation"] = 0.2
    blobs_job["model"]["dropout"] = 0.2
    blobs_job["optimizer"] = {"name": "adam", "learning_rate": 0.05}
    blobs_job["training"]["batch_size"] = 13
    blobs_job["storage"] = {"endpoint": store.endpoint, "attempts": 1}
    return blobs_job


@pytest.fixture
def go(begin_job: Callable[..., Iterator[Event]], job: Document, address: str) -> Go:
    """Runs the job in the store, interrupted after so many rounds."""

    def run(after: float = float("inf"), overrides: dict[str, object] | None = None, **order: Any) -> list[Event]:
        asked = count()
        options = {"directory": address, "interrupted": lambda: next(asked) >= after} | order
        return list(begin_job(job, overrides, **options))

    return run


@pytest.fixture
def whole(begin_job: Callable[..., Iterator[Event]], job: Document) -> Summary:
    """How the same run ends on this machine, in the directory run-1."""
    return summary_of(list(begin_job(job)))


def summary_of(events: list[Event]) -> Summary:
    last = events[-1]
    assert isinstance(last, Finished)
    return last.summary


def notices(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Noticed)]


def untimed(history: bytes) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in history.splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "rows_per_second")} for line in lines]


def test_a_run_leaves_the_same_in_a_store_as_on_this_machine(go: Go, whole: Summary, folder: Folder, tmp_path: Path) -> None:
    events = go()
    summary, here = summary_of(events), tmp_path / "run-1"

    assert (summary.weights_digest, summary.run) == (whole.weights_digest, "a")
    assert isinstance(events[0], Started)
    assert events[0].directory == folder.address
    names = {path.name for path in here.iterdir()} - {"checkpoints", "model"}
    assert set(folder.names()) == names
    assert set(folder.folder("model").names()) == {path.name for path in (here / "model").iterdir()}
    # Of checkpoints that wait for a slow store or disk, only the newest is written.
    last = f"round-{whole.rounds:012d}.safetensors"
    assert last in folder.folder("checkpoints").names()
    assert (here / "checkpoints" / last).exists()
    assert untimed(folder.read("history.jsonl")) == untimed((here / "history.jsonl").read_bytes())
    assert json.loads(folder.read("summary.json"))["weights_digest"] == whole.weights_digest
    assert folder.folder("model").read("model.safetensors") == (here / "model" / "model.safetensors").read_bytes()


def test_its_model_scores_tables_and_puts_predictions_into_the_store(
    go: Go, whole: Summary, store: Any, address: str, tmp_path: Path
) -> None:
    go()
    storage, data = StorageSpec(endpoint=store.endpoint), str(tmp_path / "blobs.parquet")
    stored, local = load_model(address, storage), load_model(tmp_path / "run-1")
    assert evaluate(stored, data).errors == evaluate(local, data).errors

    predict(stored, data, f"s3://{store.bucket}/scored/out.parquet", storage)
    predict(local, data, tmp_path / "out.parquet")
    written = pq.read_table(f"{store.bucket}/scored/out.parquet", filesystem=store.filesystem)
    assert written == pq.read_table(tmp_path / "out.parquet")


@pytest.mark.parametrize("rounds", [0, 5, 8, 11])
def test_it_goes_on_to_the_same_end(go: Go, whole: Summary, folder: Folder, tmp_path: Path, rounds: int) -> None:
    assert summary_of(go(rounds)).status == "interrupted"
    assert summary_of(go(resume=True)).weights_digest == whole.weights_digest
    assert untimed(folder.read("history.jsonl")) == untimed((tmp_path / "run-1" / "history.jsonl").read_bytes())


def test_one_that_breaks_off_without_a_word_has_a_history_for_its_checkpoint(
    begin_job: Callable[..., Iterator[Event]], job: Document, folder: Folder, address: str
) -> None:
    checkpoints = 0
    for event in begin_job(job, {"training.epochs": 20}, directory=address):
        if isinstance(event, Checkpointed):
            checkpoints += 1
            assert len(folder.read("history.jsonl").splitlines()) * 4 >= event.round
    assert checkpoints


def test_a_directory_with_a_run_is_refused_and_left_alone(go: Go, folder: Folder, address: str) -> None:
    go(2)
    before = {name: folder.read(name) for name in folder.names()}
    with pytest.raises(RunDirectoryError) as error:
        go()
    assert str(error.value) == (
        f"--run-dir: {address} holds a run already; give a directory that is new or empty, or --resume to go on with that run"
    )
    assert {name: folder.read(name) for name in folder.names()} == before


def test_a_directory_without_a_run_can_not_be_taken_up_but_auto_resume_begins_one(go: Go, whole: Summary, address: str) -> None:
    with pytest.raises(UserError, match=f"--resume: {address} holds no run"):
        go(resume=True)
    for _ in range(2):
        assert summary_of(go(resume_if_begun=True)).weights_digest == whole.weights_digest


@pytest.mark.parametrize("rounds", [0, 5])
def test_one_that_another_process_takes_over_ends_and_writes_no_more(
    begin_job: Callable[..., Iterator[Event]], job: Document, whole: Summary, folder: Folder, address: str, go: Go, rounds: int
) -> None:
    first = begin_job(job, {"training.epochs": 1_000_000, "checkpoint.every_epochs": 3}, directory=address)
    while not isinstance(next(first), Started):
        pass
    assert summary_of(go(rounds, resume=True)).status == "interrupted"
    before = {name: folder.read(name) for name in folder.names()}
    with pytest.raises(UserError) as error:
        list(first)
    assert str(error.value) == f"--run-dir: another process has taken {address} over, and goes on with the run; this one stops"

    assert {name: folder.read(name) for name in folder.names()} == before
    assert summary_of(go(resume=True)).weights_digest == whole.weights_digest
    assert len(folder.read("history.jsonl").splitlines()) == whole.epochs


def test_a_damaged_checkpoint_is_passed_over(go: Go, whole: Summary, folder: Folder) -> None:
    go(5)
    go(4, resume=True)
    checkpoints = folder.folder("checkpoints")
    last = max(checkpoints.names())
    content = checkpoints.read(last)
    for damaged in (content[: len(content) // 2], b"", content[:-1] + bytes([content[-1] ^ 1])):
        checkpoints.write(last, damaged)
        events = go(0, resume=True)
        assert [message.partition(" was passed over: ")[0] for message in notices(events)] == [checkpoints.at(last)]
    assert summary_of(go(resume=True)).weights_digest == whole.weights_digest


def test_a_checkpoint_that_can_not_be_read_now_is_not_taken_for_a_damaged_one(go: Go, folder: Folder, store: Any) -> None:
    go(9)
    before = folder.read("history.jsonl")
    store.fail(f"GET /{store.bucket}/runs/a/checkpoints/", "503 Slow Down", 100)
    with pytest.raises(UserError, match=rf"^--resume: {folder.address}/checkpoints can't be read: .*; try again when it can$"):
        go(resume=True)
    assert folder.read("history.jsonl") == before


def test_a_store_that_takes_nothing_for_a_while_stops_nothing(
    begin_job: Callable[..., Iterator[Event]], job: Document, folder: Folder, store: Any, address: str
) -> None:
    events: list[Event] = []
    recovered = False

    def made_up_for() -> bool:
        return recovered and any(isinstance(event, Checkpointed) for event in events)

    for event in begin_job(job, {"training.epochs": 1_000_000}, directory=address, interrupted=made_up_for):
        if isinstance(event, Started):
            store.fail(f"/{store.bucket}/runs/a/", "503 Slow Down", 1000)
        if isinstance(event, Noticed) and not recovered:
            store.recover()
            recovered, events = True, [event]
        events.append(event)

    summary = summary_of(events)
    _, *others, last = begin_job(job, {"training.epochs": summary.epochs})
    assert isinstance(last, Finished)
    assert (summary.status, summary.rows_trained) == ("interrupted", summary.rows_expected)
    assert summary.weights_digest == last.summary.weights_digest
    told = notices(events)[0]
    assert told.startswith("the checkpoint of round ")
    assert told.endswith("; training goes on, and earlier checkpoints are whole")
    assert "503" in told
    assert len(folder.read("history.jsonl").splitlines()) == len([event for event in others if isinstance(event, EpochDone)])


@pytest.mark.parametrize("lost", ["model/", "history.jsonl", "report.html", "summary.json"])
def test_what_can_not_be_left_behind_at_the_end_is_told_and_made_up_for(
    begin_job: Callable[..., Iterator[Event]], job: Document, whole: Summary, store: Any, address: str, go: Go, lost: str
) -> None:
    run = begin_job(job, directory=address)
    next(run)
    store.fail(f"/{store.bucket}/runs/a/{lost}", "503 Slow Down", 1000)
    with pytest.raises(RunDirectoryError) as error:
        list(run)
    assert str(error.value).startswith(f"--run-dir: {address} could not be written: ")
    assert str(error.value).endswith("; when it can, --resume goes on from the last checkpoint")
    assert len(str(error.value).splitlines()) == 1

    store.recover()
    assert summary_of(go(resume=True)).weights_digest == whole.weights_digest


def test_a_bucket_that_is_not_there_is_told_before_anything_is_read(go: Go, tmp_path: Path) -> None:
    (tmp_path / "blobs.parquet").unlink()
    with pytest.raises(RunDirectoryError, match=r"^--run-dir: s3://no-such-bucket/a can't be written: .*bucket"):
        go(directory="s3://no-such-bucket/a")


@pytest.mark.parametrize("lost", ["model/model.json", "model/model.safetensors"])
def test_a_model_that_is_not_there_or_can_not_be_reached_is_told(go: Go, store: Any, address: str, lost: str) -> None:
    go()
    store.fail(f"/{store.bucket}/runs/a/{lost}", "503 Slow Down", 1000)
    with pytest.raises(DataError, match=f"^{address}/{lost}: can't be read") as error:
        load_model(address, StorageSpec(endpoint=store.endpoint, attempts=1))
    assert len(str(error.value).splitlines()) == 1
    store.recover()
    with pytest.raises(DataError, match=f"^{address}-none/model/model.json: can't be read"):
        load_model(f"{address}-none", StorageSpec(endpoint=store.endpoint))


def test_predictions_that_can_not_be_written_leave_what_was_there(go: Go, store: Any, address: str, tmp_path: Path) -> None:
    go()
    storage = StorageSpec(endpoint=store.endpoint, attempts=1)
    output = store.put("out.parquet", b"before")
    store.fail(f"/{store.bucket}/out.parquet", "503 Slow Down", 1000)
    with pytest.raises(UserError, match=f"^--output: {output} can't be written: "):
        predict(load_model(address, storage), str(tmp_path / "blobs.parquet"), output, storage)
    store.recover()
    assert store.filesystem.open_input_stream(f"{store.bucket}/out.parquet").read() == b"before"


def test_a_run_starts_from_weights_in_the_store(go: Go, store: Any, address: str, job: Document) -> None:
    go()
    job["model"]["initial_weights"] = f"{address}/model/model.safetensors"
    assert summary_of(go(directory=f"{address}-2")).status == "completed"

    job["model"]["initial_weights"] = f"{address}/none.safetensors"
    with pytest.raises(UserError, match=rf"^model\.initial_weights: {address}/none.safetensors: can't be read as safetensors"):
        go(directory=f"{address}-3")
