"""A run that is taken up again ends as one that was never interrupted."""

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import time
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tomli_w

from coordinator.checkpoint import CheckpointError, decode, superfluous
from coordinator.dispatch import PoolError
from coordinator.job import load_job
from coordinator.order import Order
from coordinator.pool import InProcessPool
from coordinator.records import Event, Finished, Noticed, Summary
from coordinator.run import run
from worker.blas import one_thread
from worker.errors import JobError, UserError

Document = dict[str, dict[str, Any]]


def go(
    tmp_path: Path,
    document: Document,
    name: str,
    *,
    resume: bool = False,
    auto: bool = False,
    after: int | None = None,
    **overrides: object,
) -> list[Event]:
    """Run a job into a directory, interrupted after so many rounds. Keywords override, with __ for the dot."""
    path = tmp_path / "job.toml"
    path.write_text(tomli_w.dumps(document))
    job = load_job(path, {key.replace("__", "."): value for key, value in overrides.items()})
    asked = count()
    with one_thread():
        order = Order(job, tmp_path / name, time(), resume, auto)
        return list(run(order, InProcessPool(job.workers.most), lambda: after is not None and next(asked) >= after))


def summary_of(events: list[Event]) -> Summary:
    last = events[-1]
    assert isinstance(last, Finished)
    return last.summary


def history(directory: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "rows_per_second")} for line in lines]


def same(tmp_path: Path, one: Summary, other: Summary) -> None:
    for name in (
        "weights_digest",
        "status",
        "stop_reason",
        "rounds",
        "rows_trained",
        "rows_expected",
        "kept_epoch",
        "train",
        "validation",
    ):
        assert getattr(one, name) == getattr(other, name), name
    assert history(tmp_path / one.run) == history(tmp_path / other.run)


@pytest.fixture
def job(blobs_job: Document) -> Document:
    """Four rounds an epoch, three epochs, with all that has state."""
    blobs_job["data"]["validation"] = 0.2
    blobs_job["model"]["dropout"] = 0.2
    blobs_job["optimizer"] = {"name": "adam", "learning_rate": 0.05}
    blobs_job["stopping"] = {"patience": 2}
    blobs_job["training"]["batch_size"] = 13
    return blobs_job


def test_interrupted_after_any_round(job: Document, tmp_path: Path) -> None:
    whole = summary_of(go(tmp_path, job, "whole"))
    assert whole.rounds == 12
    for rounds in range(12):
        name = f"cut-{rounds}"
        assert summary_of(go(tmp_path, job, name, after=rounds)).status == "interrupted"
        same(tmp_path, whole, summary_of(go(tmp_path, job, name, resume=True, workers__count=1 + rounds % 4)))


def test_interrupted_after_any_round_while_rows_are_streamed(job: Document, tmp_path: Path) -> None:
    job["data"] |= {"shuffle": "window", "window_rows": 25}
    whole = summary_of(go(tmp_path, job, "whole"))
    for rounds in range(12):
        name = f"cut-{rounds}"
        assert summary_of(go(tmp_path, job, name, after=rounds, data__memory_limit=2500)).status == "interrupted"
        limit = (2500, 10_000)[rounds % 2]
        same(tmp_path, whole, summary_of(go(tmp_path, job, name, resume=True, data__memory_limit=limit)))


def test_other_row_groups_are_refused_where_the_order_depends_on_them(job: Document, tmp_path: Path) -> None:
    for name, shuffle in (("windows", "window"), ("whole shards", "full")):
        job["data"]["shuffle"] = shuffle
        go(tmp_path, job, name, after=5)
    rows = pq.read_table(tmp_path / "blobs.parquet")
    pq.write_table(rows, tmp_path / "blobs.parquet", row_group_size=7)

    assert summary_of(go(tmp_path, job, "whole shards", resume=True)).status == "completed"
    with pytest.raises(JobError, match=r"data\.train: had other files or row groups"):
        go(tmp_path, job, "windows", resume=True, data__shuffle="window")


def test_data_may_have_moved(job: Document, tmp_path: Path) -> None:
    rows = pq.read_table(tmp_path / "blobs.parquet")
    for folder, name in (("rows/part=1", "a"), ("rows/part=2", "b"), ("held", "c")):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(rows, tmp_path / folder / f"{name}.parquet")
    job["data"] |= {"train": "rows", "validation": "held", "features": ["x*"]}
    whole = summary_of(go(tmp_path, job, "whole"))
    go(tmp_path, job, "cut", after=9)
    (tmp_path / "rows").rename(tmp_path / "rows elsewhere")
    (tmp_path / "held").rename(tmp_path / "held elsewhere")

    moved = {"data__train": "rows elsewhere", "data__validation": "held elsewhere"}
    same(tmp_path, whole, summary_of(go(tmp_path, job, "cut", resume=True, **moved)))


def renamed(folder: Path) -> None:
    (folder / "blobs.parquet").rename(folder / "other.parquet")


def with_a_row_less(folder: Path) -> None:
    pq.write_table(pq.read_table(folder / "blobs.parquet").slice(1), folder / "blobs.parquet", row_group_size=16)


def with_another_value(folder: Path) -> None:
    """The file keeps its size."""
    path, size = folder / "blobs.parquet", (folder / "blobs.parquet").stat().st_size
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "x0", pc.negate(table["x0"])), path, row_group_size=16)
    assert path.stat().st_size == size


@pytest.mark.parametrize("change", [renamed, with_a_row_less])
def test_other_files_elsewhere_are_refused(job: Document, tmp_path: Path, change: Callable[[Path], None]) -> None:
    go(tmp_path, job, "run", after=5)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "blobs.parquet", tmp_path / "elsewhere")
    change(tmp_path / "elsewhere")

    with pytest.raises(JobError) as error:
        go(tmp_path, job, "run", resume=True, data__train="elsewhere")

    assert error.value.key == "data.train"
    assert f"'{tmp_path / 'elsewhere'}' has other files, and would change its result" in error.value.problem


@pytest.mark.parametrize("train", ["blobs.parquet", "elsewhere"])
def test_other_values_are_refused_wherever_they_are(job: Document, tmp_path: Path, train: str) -> None:
    go(tmp_path, job, "run", after=5)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tmp_path / "blobs.parquet", tmp_path / "elsewhere")
    with_another_value(tmp_path if train == "blobs.parquet" else tmp_path / train)

    with pytest.raises(JobError, match=r"data\.train: had other values in its columns when the run was begun; restore the data"):
        go(tmp_path, job, "run", resume=True, data__train=train)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adamw"])
def test_every_optimizers_state_is_kept(job: Document, tmp_path: Path, optimizer: str) -> None:
    job["optimizer"] = {"name": optimizer, "learning_rate": 0.01, "schedule": {"name": "cosine"}}
    whole = summary_of(go(tmp_path, job, "whole"))
    go(tmp_path, job, "cut", after=6)
    same(tmp_path, whole, summary_of(go(tmp_path, job, "cut", resume=True)))


def test_more_epochs_and_more_rounds_give_what_a_longer_run_gives(job: Document, tmp_path: Path) -> None:
    del job["stopping"]
    longer = summary_of(go(tmp_path, job, "longer", training__epochs=5))
    go(tmp_path, job, "shorter", training__epochs=2)
    same(tmp_path, longer, summary_of(go(tmp_path, job, "shorter", resume=True, training__epochs=5)))
    go(tmp_path, job, "rounds", training__rounds=7)
    same(tmp_path, longer, summary_of(go(tmp_path, job, "rounds", resume=True, training__epochs=5)))


def test_a_finished_run_that_is_taken_up_stays_as_it_is(job: Document, tmp_path: Path) -> None:
    first = summary_of(go(tmp_path, job, "run"))
    before = history(tmp_path / "run")
    same(tmp_path, first, summary_of(go(tmp_path, job, "run", resume=True)))
    assert history(tmp_path / "run") == before


def test_one_order_begins_a_run_goes_on_with_it_and_leaves_it_when_it_is_done(job: Document, tmp_path: Path) -> None:
    whole = summary_of(go(tmp_path, job, "whole"))
    assert summary_of(go(tmp_path, job, "run", auto=True, after=2)).status == "interrupted"
    assert summary_of(go(tmp_path, job, "run", auto=True, after=5)).status == "interrupted"
    for _ in range(2):
        same(tmp_path, whole, summary_of(go(tmp_path, job, "run", auto=True)))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"job__seed": 8}, "job.seed"),
        ({"data__shards": 4}, "data.shards"),
        ({"data__validation": 0.3}, "data.validation"),
        ({"data__shuffle": "window"}, "data.shuffle"),
        ({"data__window_rows": 9}, "data.window_rows"),
        ({"model__hidden": [7]}, "model.hidden"),
        ({"optimizer__learning_rate": 0.1}, "optimizer.learning_rate"),
        ({"training__batch_size": 12}, "training.batch_size"),
        ({"training__keep": "last"}, "training.keep"),
    ],
)
def test_a_key_that_changes_the_result_is_refused_by_name(
    job: Document, tmp_path: Path, overrides: dict[str, Any], key: str
) -> None:
    go(tmp_path, job, "run", after=5)
    with pytest.raises(JobError) as error:
        go(tmp_path, job, "run", resume=True, **overrides)
    assert error.value.key == key


def test_a_damaged_checkpoint_is_passed_over_and_the_one_before_taken(job: Document, tmp_path: Path) -> None:
    whole = summary_of(go(tmp_path, job, "whole"))
    go(tmp_path, job, "cut", after=5)
    go(tmp_path, job, "cut", resume=True, after=4)
    last = max((tmp_path / "cut" / "checkpoints").iterdir())
    content = last.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), b"", b"\xff" * 64, b"{}" * 100):
        shutil.copytree(tmp_path / "cut", tmp_path / "copy", dirs_exist_ok=True)
        (tmp_path / "copy" / "checkpoints" / last.name).write_bytes(damaged)
        with pytest.raises(CheckpointError):
            decode(tmp_path / "copy" / "checkpoints" / last.name)
        events = go(tmp_path, job, "copy", resume=True)
        assert any(isinstance(event, Noticed) and last.name in event.message for event in events)
        same(tmp_path, whole, summary_of(events))
        shutil.rmtree(tmp_path / "copy")


def test_every_byte_of_a_checkpoint_is_checked(job: Document, tmp_path: Path) -> None:
    go(tmp_path, job, "run", after=5)
    path = max((tmp_path / "run" / "checkpoints").iterdir())
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        with pytest.raises(CheckpointError):
            decode(path)
        path.write_bytes(content[:place])
        with pytest.raises(CheckpointError):
            decode(path)


def test_when_no_checkpoint_is_whole_the_run_is_left_alone(job: Document, tmp_path: Path) -> None:
    go(tmp_path, job, "run", after=5)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(b"torn")
    before = (tmp_path / "run" / "history.jsonl").read_bytes()
    with pytest.raises(UserError, match="no checkpoint is whole"):
        go(tmp_path, job, "run", resume=True)
    assert (tmp_path / "run" / "history.jsonl").read_bytes() == before


def test_a_checkpoint_that_can_not_be_written_stops_nothing(job: Document, tmp_path: Path) -> None:
    whole = summary_of(go(tmp_path, job, "whole"))
    path = tmp_path / "job.toml"
    path.write_text(tomli_w.dumps(job))
    loaded = load_job(path, {})
    events: list[Event] = []
    with one_thread():
        for event in run(Order(loaded, tmp_path / "run", time()), InProcessPool(2), lambda: False):
            if not events:
                (tmp_path / "run" / "checkpoints").write_text("a file where the folder should be")
            events.append(event)
    same(tmp_path, whole, summary_of(events))
    assert any(isinstance(event, Noticed) and "could not be written" in event.message for event in events)


def test_lines_of_history_that_are_gone_are_told_of(job: Document, tmp_path: Path) -> None:
    go(tmp_path, job, "cut", after=9)
    (tmp_path / "cut" / "history.jsonl").unlink()
    events = go(tmp_path, job, "cut", resume=True)
    told = [event.message for event in events if isinstance(event, Noticed)]
    assert told == ["history.jsonl lacks the lines of 2 of the epochs before the checkpoint"]


def test_the_newest_and_the_best_are_kept(job: Document, tmp_path: Path) -> None:
    summary = summary_of(go(tmp_path, job, "run", training__epochs=30, checkpoint__keep=2, stopping__patience=20))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert summary.kept_epoch is not None
    best = next(line["round"] for line in history(tmp_path / "run") if line["epoch"] == summary.kept_epoch)
    assert len(names) <= 3
    assert f"round-{summary.rounds:012d}.safetensors" in names
    assert f"round-{best:012d}.safetensors" in names


def test_superfluous_spares_the_newest_and_the_best() -> None:
    assert superfluous([4, 8, 12, 16], 2, 4) == [8]
    assert superfluous([4, 8], 3, None) == []


def test_another_machine_is_told_or_refused(job: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(tmp_path, job, "run", after=5)
    other = {"numpy": "1.0", "blas": "another", "kernel": "another", "cpu": "another"}
    monkeypatch.setattr("coordinator.start.fingerprint", lambda: other)
    monkeypatch.setattr("coordinator.pool.fingerprint", lambda: other)
    with pytest.raises(JobError, match=r"job\.reproducible"):
        go(tmp_path, job, "run", resume=True, job__reproducible="strict")
    events = go(tmp_path, job, "run", resume=True)
    assert any(isinstance(event, Noticed) and "the bits may differ" in event.message for event in events)


@pytest.mark.parametrize("lost", [".", "checkpoints"])
def test_a_coordinator_started_anew_does_not_begin_anew_what_had_a_checkpoint(lost: str, tmp_path: Path, job: Document) -> None:
    go(tmp_path, job, "run", after=6)
    shutil.rmtree(tmp_path / "run" / lost)
    spec = load_job(tmp_path / "job.toml", {})
    order = Order(spec, tmp_path / "run", time(), resume_if_begun=True, restarted=True, checkpointed=True)
    told = {".": "does not hold the run; give a --run-dir that all nodes see", "checkpoints": "has no checkpoint any more"}
    with pytest.raises(PoolError, match=f"the coordinator was started anew.*{told[lost]}"), one_thread():
        list(run(order, InProcessPool(2), lambda: False))
    assert not (tmp_path / "run").exists() or lost != "."


def test_a_coordinator_started_anew_before_the_first_checkpoint_begins_anew(tmp_path: Path, job: Document) -> None:
    calm = summary_of(go(tmp_path, job, "calm"))
    order = Order(load_job(tmp_path / "job.toml", {}), tmp_path / "run", time(), resume_if_begun=True, restarted=True)
    with one_thread():
        assert summary_of(list(run(order, InProcessPool(2), lambda: False))).weights_digest == calm.weights_digest
