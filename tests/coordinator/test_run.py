import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from coordinator.job import dump_job, load_job
from coordinator.model_files import load_model
from coordinator.records import Checkpointed, EpochDone, Event, Finished, RoundDone, Started, Summary
from coordinator.run_directory import RunDirectoryError
from worker.errors import DataError, JobError, UserError

Document = dict[str, dict[str, Any]]
Write = Callable[[str, Mapping[str, Any]], Path]
Begin = Callable[..., Iterator[Event]]
Run = Callable[..., tuple[list[Event], Summary]]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_events_come_in_order_and_the_directory_says_the_same(run_job: Run, blobs_job: Document, tmp_path: Path) -> None:
    events, summary = run_job(blobs_job, {"data.validation": 0.2, "workers.count": 3})

    kinds = [RoundDone] * 4 + [EpochDone]
    # Checkpoints are written beside training, and told when they are there.
    told = [type(event) for event in events if not isinstance(event, Checkpointed)]
    assert told == [Started, *kinds * 3, Finished]
    assert [event.round for event in events if isinstance(event, Checkpointed)][-1] == 12
    assert [event.round for event in events if isinstance(event, RoundDone)] == list(range(1, 13))
    records = [event.record for event in events if isinstance(event, EpochDone)]
    assert [(record.epoch, record.round) for record in records] == [(1, 4), (2, 8), (3, 12)]

    folder = tmp_path / "run-1"
    files = {name for name in files_of(folder) if not name.startswith("checkpoints/")}
    assert files == {"job.toml", "history.jsonl", "summary.json", "report.html", "model/model.json", "model/model.safetensors"}
    lines = (folder / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [asdict(record) for record in records]
    assert json.loads((folder / "summary.json").read_text()) == asdict(summary)


def test_the_start_tells_the_plan(begin_job: Begin, blobs_job: Document, tmp_path: Path) -> None:
    started = next(begin_job(blobs_job, {"data.validation": 0.2, "workers.count": 3}))

    assert isinstance(started, Started)
    assert (started.run, started.directory) == ("run-1", str(tmp_path / "run-1"))
    assert (started.rows, started.validation_rows, started.shards, started.crew.workers) == (49, 12, 5, 3)
    assert (started.inputs, started.outputs, started.parameters) == (4, 3, 4 * 6 + 6 + 6 * 3 + 3)
    assert (started.rounds_per_epoch, started.rounds_done, started.most_rounds) == (4, 0, 12)
    assert started.metrics_url is None


def test_the_summary_tells_how_the_run_went(run_job: Run, blobs_job: Document) -> None:
    events, summary = run_job(blobs_job, {"data.validation": 0.2, "workers.count": 3})

    last = [event.record for event in events if isinstance(event, EpochDone)][-1]
    seconds = sorted(event.seconds for event in events if isinstance(event, RoundDone))
    assert (summary.run, summary.status, summary.stop_reason) == ("run-1", "completed", "epochs")
    assert (summary.epochs, summary.rounds, summary.parameters) == (3, 12, 51)
    assert (summary.workers, summary.worker_failures, summary.slices_recomputed) == (3, 0, 0)
    assert summary.kept_epoch == 3
    assert (summary.train, summary.validation) == (last.train, last.validation)
    assert seconds[0] <= summary.round_seconds.p50 <= summary.round_seconds.p99 <= seconds[-1]
    assert summary.seconds.startup + summary.seconds.training == pytest.approx(summary.seconds.total)
    assert summary.rows_per_second > 0
    assert set(summary.fingerprint) == {"numpy", "blas", "kernel", "cpu"}


def test_the_model_of_a_run_scores_with_the_run_s_errors(run_job: Run, waves_job: Document, tmp_path: Path) -> None:
    waves_job["data"] |= {"validation": "waves.parquet", "scale": "standard"}
    _, summary = run_job(waves_job)

    model = load_model(tmp_path / "run-1")

    assert model.encoding.input_names == ["x0", "x1", "x2"]
    table = pa.parquet.read_table(tmp_path / "waves.parquet")
    x = np.column_stack([table[name].to_numpy() for name in ("x0", "x1", "x2")])
    t = np.column_stack([table[name].to_numpy() for name in ("y0", "y1")])
    # The scaling fitted to the training rows is part of the model: mean 0, deviation 1.
    scaled = ((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32")
    outputs = model.network.predict(model.weights_P, scaled)
    assert summary.validation is not None
    assert summary.validation.mean_squared_error == pytest.approx(((outputs - t) ** 2).mean(), rel=1e-5)


def test_the_resolved_job_in_the_directory_gives_the_same_run(run_job: Run, blobs_job: Document, tmp_path: Path) -> None:
    _, first = run_job(blobs_job, {"model.dropout": 0.2, "optimizer.name": "adam", "data.validation": 0.1})
    resolved = tmp_path / "run-1" / "job.toml"
    assert dump_job(load_job(resolved, {})) == resolved.read_text()

    _, again = run_job(tomllib.loads(resolved.read_text()))

    assert again.weights_digest == first.weights_digest


def test_a_directory_that_holds_a_run_is_refused_before_anything_is_read(
    begin_job: Begin, blobs_job: Document, tmp_path: Path
) -> None:
    (tmp_path / "run-1").mkdir()
    (tmp_path / "run-1" / "job.toml").write_text("of another run")
    (tmp_path / "blobs.parquet").unlink()

    with pytest.raises(RunDirectoryError, match="holds a run already"):
        next(begin_job(blobs_job))


def rows(count: int = 40, **changed: Any) -> dict[str, Any]:
    place = np.arange(count)
    return {"x0": place / 7, "x1": np.sin(place), "kind": [("ant", "bee")[row % 2] for row in place]} | changed


def holed(values: Any, row: int, value: Any = None) -> list[Any]:
    listed = list(values)
    listed[row] = value
    return listed


JOB: Document = {
    "job": {"name": "faulty", "seed": 1},
    "data": {"train": "rows.parquet", "label": "kind", "shards": 4},
    "model": {"task": "classification", "hidden": [3]},
    "training": {"batch_size": 8, "epochs": 2},
}
NULL = "has no value (null); every label, weight and feature needs one"
# What the columns are, what the job has beside JOB, which error is raised and what it tells.
FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], type[UserError], str]] = {
    "null label": (rows(kind=holed(rows()["kind"], 33)), {}, DataError, f"rows.parquet: row 34, column 'kind' {NULL}"),
    "null label held out": (
        rows(kind=holed(rows()["kind"], 5)),
        {"data.validation": "rows.parquet", "data.train": "good.parquet"},
        DataError,
        f"rows.parquet: row 6, column 'kind' {NULL}",
    ),
    "null feature": (rows(x1=holed(rows()["x1"], 0)), {}, DataError, f"rows.parquet: row 1, column 'x1' {NULL}"),
    "NaN feature": (
        rows(x0=holed(rows()["x0"], 39, np.nan)),
        {"data.scale": "standard"},
        DataError,
        "rows.parquet: row 40, column 'x0': nan is not a finite float32 number; mend or leave out the row",
    ),
    "infinite feature": (
        rows(x0=holed(rows()["x0"], 20, -np.inf)),
        {},
        DataError,
        "rows.parquet: row 21, column 'x0': -inf is not a finite float32 number",
    ),
    "feature too large for float32": (
        rows(x0=holed(rows()["x0"], 20, 1e300)),
        {},
        DataError,
        "rows.parquet: row 21, column 'x0': 1e+300 is not a finite float32 number",
    ),
    "no rows": (
        {"x0": pa.array([], pa.float64()), "x1": pa.array([], pa.float64()), "kind": pa.array([], pa.string())},
        {},
        DataError,
        "rows.parquet: has no rows; at least one is needed to train on",
    ),
    "no validation rows": (
        {"x0": pa.array([], pa.float64()), "x1": pa.array([], pa.float64()), "kind": pa.array([], pa.string())},
        {"data.validation": "rows.parquet", "data.train": "good.parquet"},
        DataError,
        "rows.parquet: has no rows; leave data.validation out",
    ),
    "fewer rows than shards": (rows(3), {}, JobError, "data.shards: 3 training rows can't fill 4 shards; use at most 3"),
    "fewer rows than shards but for the validation": (
        rows(5),
        {"data.validation": 0.4},
        JobError,
        "data.shards: 3 training rows can't fill 4 shards; use at most 3",
    ),
    "too small a share": (rows(), {"data.validation": 0.01}, JobError, "data.validation: 0.01 of 40 rows is 0"),
    "class of the validation file alone": (
        rows(kind=holed(rows()["kind"], 7, "cat")),
        {"data.validation": "rows.parquet", "data.train": "good.parquet"},
        DataError,
        "rows.parquet: row 8, column 'kind': class 'cat' does not occur in the training rows",
    ),
    "column that the validation file lacks": (
        {name: values for name, values in rows().items() if name != "x1"},
        {"data.validation": "rows.parquet", "data.train": "good.parquet"},
        DataError,
        "rows.parquet: has no column 'x1', which the training data has",
    ),
    "unknown label": (
        rows(),
        {"data.label": "knid"},
        JobError,
        "data.label: no column matches 'knid'; did you mean 'kind'?",
    ),
    "unknown feature": (
        rows(),
        {"data.features": ["x0", "y*"]},
        JobError,
        "data.features: no column matches 'y*'; the columns are x0, x1, kind",
    ),
    "key that a column has no use for": (
        rows(),
        {"data.columns.kind.scale": "minmax", "data.label": "x0", "model.task": "regression"},
        JobError,
        "data.columns.kind.scale: is for numbers, and column 'kind' holds categories; leave it out",
    ),
    "numbers too large to be scaled": (
        rows(x0=holed(rows()["x0"], 20, 1e300)),
        {"data.scale": "standard", "model.dtype": "float64"},
        JobError,
        "data.features: column 'x0' has numbers too large, or too close together, for what is to be done with them",
    ),
    "missing file": (rows(), {"data.train": "rose.parquet"}, JobError, "data.train: no such file or folder:"),
    "missing validation file": (rows(), {"data.validation": "x.csv"}, JobError, "data.validation: no such file or folder:"),
    "unknown kind of file": (rows(), {"data.train": "job.toml"}, JobError, "is of no known kind; accepted are files ending"),
    "one class": (rows(kind=["ant"] * 40), {}, JobError, "data.label: column 'kind' has only one class"),
    "three classes for binary": (
        rows(kind=[("ant", "bee", "cat")[row % 3] for row in range(40)]),
        {"model.task": "binary"},
        JobError,
        "model.task: binary takes a label of 2 classes, but column 'kind' has 3 ('ant', 'bee', 'cat')",
    ),
    "softmax over one output": (
        rows(),
        {"data.label": "x0", "data.features": ["x1"], "model.task": "regression", "model.output": "softmax"},
        JobError,
        "model.output: softmax over one output is always 1",
    ),
    "float label for classes": (
        rows(),
        {"data.label": "x0", "data.features": ["x1"]},
        JobError,
        "data.label: column 'x0' holds floating-point numbers, which are no class labels",
    ),
    "text label for a regression": (rows(), {"model.task": "regression"}, JobError, "data.label: column 'kind' holds text"),
    "targets beyond probabilities": (
        rows(),
        {
            "data.label": "x0",
            "data.features": ["x1"],
            "model.task": "regression",
            "model.output": "sigmoid",
            "model.loss": "binary_cross_entropy",
        },
        DataError,
        "rows.parquet: row 9, column 'x0': 1.142",
    ),
    "initial weights of another shape": (
        rows(),
        {"model.hidden": [7], "model.initial_weights": "start.safetensors"},
        JobError,
        "layers.0.weight has shape 3×2, but the network needs 7×2",
    ),
    "initial weights for another depth": (
        rows(),
        {"model.hidden": [], "model.initial_weights": "start.safetensors"},
        JobError,
        "model.initial_weights: ",
    ),
    "a network that no machine has memory for": (
        rows(),
        {"model.hidden": [10**13]},
        JobError,
        "model.hidden: a network of ",
    ),
    "missing initial weights": (
        rows(),
        {"model.initial_weights": "none.safetensors"},
        JobError,
        "none.safetensors: can't be read as safetensors",
    ),
}


def refused(begin_job: Begin, overrides: dict[str, Any], kind: type[UserError]) -> str:
    """The one sentence with which a run is refused."""
    with pytest.raises(kind) as error:
        next(begin_job(JOB, overrides))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_can_not_begin_says_why_in_one_sentence_and_leaves_nothing_behind(
    begin_job: Begin, write_table: Write, tmp_path: Path, fault: str
) -> None:
    columns, overrides, kind, told = FAULTS[fault]
    write_table("good.parquet", rows())
    write_table("rows.parquet", columns)
    start = {"layers.0.weight": np.zeros((3, 2)), "layers.1.weight": np.zeros((2, 3))}
    save_file(start | {"layers.0.bias": np.zeros(3), "layers.1.bias": np.zeros(2)}, tmp_path / "start.safetensors")
    before = files_of(tmp_path)

    assert told in refused(begin_job, overrides, kind)
    assert files_of(tmp_path) == before | {"job.toml"}
    assert not (tmp_path / "run-1").exists()


def test_a_class_that_only_held_out_rows_have_is_refused(begin_job: Begin, write_table: Write) -> None:
    # One such class a row: whichever rows are held out, their classes do not occur among the others.
    write_table("rows.parquet", rows(kind=[f"class {row}" for row in range(40)]))

    message = refused(begin_job, {"data.validation": 0.25}, DataError)

    assert "does not occur in the training rows" in message


@pytest.mark.parametrize("damage", ["empty", "no Parquet", "cut short", "overwritten pages"])
def test_a_damaged_parquet_file_is_refused_by_its_path(begin_job: Begin, write_table: Write, tmp_path: Path, damage: str) -> None:
    path = write_table("rows.parquet", rows())
    content = path.read_bytes()
    pages = 4 + len(content) // 3
    path.write_bytes(
        {
            "empty": b"",
            "no Parquet": b"x0,x1,kind\n1,2,ant\n" * 40,
            "cut short": content[: len(content) // 2],
            "overwritten pages": content[:4] + b"\xff" * (pages - 4) + content[pages:],
        }[damage]
    )

    assert refused(begin_job, {}, DataError).startswith(f"{path}: can't be read as Parquet: ")
    assert not (tmp_path / "run-1").exists()


def test_how_many_slices_are_worked_on_together_changes_no_bit(
    blobs_job: Document, run_job: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, together = run_job(blobs_job)
    monkeypatch.setattr("worker.engine.BATCH_BYTES", 1)

    _, apart = run_job(blobs_job)

    assert apart.weights_digest == together.weights_digest
    assert apart.train == together.train
