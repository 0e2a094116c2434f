import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from coordinator import training
from coordinator.model_files import load_model, weights_digest
from coordinator.records import EpochDone, EpochRecord, Event, Finished, RoundDone, Started, Summary
from worker.arrays import Floats
from worker.order import ShardOrder
from worker.sharding import ShardPlan

Document = dict[str, dict[str, Any]]
Write = Callable[..., Path]
Begin = Callable[..., Iterator[Event]]
Run = Callable[..., tuple[list[Event], Summary]]


def records_of(events: list[Event]) -> list[EpochRecord]:
    return [event.record for event in events if isinstance(event, EpochDone)]


def rounds_of(events: list[Event]) -> list[RoundDone]:
    return [event for event in events if isinstance(event, RoundDone)]


def summary_of(events: list[Event]) -> Summary:
    last = events[-1]
    assert isinstance(last, Finished)
    return last.summary


def directory_of(events: list[Event]) -> Path:
    first = events[0]
    assert isinstance(first, Started)
    return Path(first.directory)


def saved_weights(events: list[Event]) -> dict[str, Floats]:
    return load_file(directory_of(events) / "model" / "model.safetensors")


def results(record: EpochRecord) -> dict[str, Any]:
    """All of a record but how long it took."""
    return {key: value for key, value in asdict(record).items() if key not in ("seconds", "rows_per_second")}


def features_of(path: Path) -> Floats:
    table = pq.read_table(path)
    return np.column_stack([table[name].to_numpy() for name in table.column_names if name.startswith("x")])


# --- The same bits for any number of workers ---


def adam_with_everything(blobs_job: Document, waves_job: Document, write_table: Write) -> Document:
    """Dropout, clipping, l2, a validation share, scaling, and 49 rows in 11 shards and uneven batches of up to 16."""
    blobs_job["data"] |= {"shards": 11, "validation": 0.2, "scale": "standard"}
    blobs_job["model"] |= {"hidden": [9, 5], "dropout": 0.3, "l2": 0.01}
    blobs_job["optimizer"] = {"name": "adam", "learning_rate": 0.02, "clip_norm": 0.5}
    return blobs_job


def one_row_at_a_time(blobs_job: Document, waves_job: Document, write_table: Write) -> Document:
    """Momentum in float64, batches of 1, and a validation file with fewer rows than there are shards."""
    held_out = {f"x{place}": np.linspace(place, -place, 5) for place in range(4)} | {"kind": ["ant", "bee", "cat", "bee", "ant"]}
    write_table("held_out.parquet", held_out)
    blobs_job["data"] |= {"shards": 8, "validation": "held_out.parquet", "scale": "minmax"}
    blobs_job["model"]["dtype"] = "float64"
    blobs_job["training"] |= {"batch_size": 1, "epochs": 2}
    return blobs_job


def targets_of_two_values(blobs_job: Document, waves_job: Document, write_table: Write) -> Document:
    """A regression with Nesterov's momentum, the Huber loss, a schedule, and batches of 7 of 53 rows in 13 shards."""
    waves_job["data"] |= {"shards": 13, "scale": "standard"}
    waves_job["model"] |= {"loss": "huber", "huber_delta": 0.5}
    waves_job["optimizer"] = {"name": "nesterov", "learning_rate": 0.05, "schedule": {"name": "cosine", "warmup_epochs": 1}}
    waves_job["training"]["batch_size"] = 7
    return waves_job


def text_files(blobs_job: Document, waves_job: Document, write_table: Write) -> Document:
    """Two CSV files, which a worker counts first, stopped in the middle of an epoch."""
    table = pq.read_table(write_table("whole.parquet", {"x": np.arange(40) / 40, "y": np.arange(40) % 2}))
    folder = write_table("unused.parquet", {"x": [0]}).parent / "rows"
    folder.mkdir()
    for name, part in (("a.csv", table[:23]), ("b.csv", table[23:])):
        lines = [f"{row['x']!r},{row['y']}" for row in part.to_pylist()]
        (folder / name).write_text("\n".join(["x,y", *lines, ""]))
    return {
        "job": {"name": "text", "seed": 3},
        "data": {"train": "rows", "label": "y", "shards": 9, "validation": 0.25},
        "model": {"task": "binary", "hidden": [4], "activation": "gelu"},
        "optimizer": {"name": "rmsprop"},
        "training": {"batch_size": 4, "rounds": 19},
    }


@pytest.mark.parametrize("make", [adam_with_everything, one_row_at_a_time, targets_of_two_values, text_files])
def test_the_number_of_workers_changes_no_bit_of_weights_and_errors(
    run_job: Run,
    blobs_job: Document,
    waves_job: Document,
    write_table: Write,
    make: Callable[[Document, Document, Write], Document],
) -> None:
    job = make(blobs_job, waves_job, write_table)
    alone, expected = run_job(job, {"workers.count": 1})

    for workers in (2, 3, 5, 8):
        events, summary = run_job(job, {"workers.count": workers})
        assert summary.weights_digest == expected.weights_digest
        assert [results(record) for record in records_of(events)] == [results(record) for record in records_of(alone)]
        assert [event.gradient_norm for event in rounds_of(events)] == [event.gradient_norm for event in rounds_of(alone)]

    assert summary.workers == 8
    _, other = run_job(job, {"job.seed": 99})
    assert other.weights_digest != expected.weights_digest


# --- The numbers that a textbook would give ---


class Textbook:
    """Gradient descent on one tanh layer, all of it spelled out: softmax with cross-entropy, or identity with ½ (a - t)²."""

    def __init__(self, weights: dict[str, Floats], *, softmax: bool) -> None:
        self.v, self.b, self.w, self.c = (weights[f"layers.{layer}.{kind}"] for layer in (0, 1) for kind in ("weight", "bias"))
        self._softmax = softmax

    def outputs(self, x: Floats) -> tuple[Floats, Floats]:
        hidden = np.tanh(x @ self.v.T + self.b)
        z = hidden @ self.w.T + self.c
        return hidden, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) if self._softmax else z

    def losses(self, x: Floats, t: Floats) -> Floats:
        _, a = self.outputs(x)
        return -np.log((a * t).sum(axis=1)) if self._softmax else 0.5 * ((a - t) ** 2).sum(axis=1)

    def step(self, x: Floats, t: Floats, rate: float) -> None:
        hidden, a = self.outputs(x)
        delta = (a - t) / len(x)
        below = (delta @ self.w) * (1 - hidden**2)
        self.w, self.c = self.w - rate * delta.T @ hidden, self.c - rate * delta.sum(axis=0)
        self.v, self.b = self.v - rate * below.T @ x, self.b - rate * below.sum(axis=0)

    def weights(self) -> dict[str, Floats]:
        return {"layers.0.weight": self.v, "layers.0.bias": self.b, "layers.1.weight": self.w, "layers.1.bias": self.c}


def batches_of(plan: ShardPlan, epoch: int) -> Iterator[Any]:
    """The rows of each round: row j of shard s's permutation has place j·S + s, and the rounds share out the places."""
    order = np.full(plan.rows, -1)
    for shard in range(plan.shards):
        first, last = plan.shard_range(shard)
        for place, row in enumerate(ShardOrder(plan, shard).ranks(epoch, 0)):
            assert first + row < last
            order[place * plan.shards + shard] = first + row
    rounds = -(-plan.rows // plan.batch_size)
    return (order[number * plan.rows // rounds : (number + 1) * plan.rows // rounds] for number in range(rounds))


@pytest.mark.parametrize("batch_size", [1000, 16, 1])
@pytest.mark.parametrize("kind", ["blobs", "waves"])
def test_plain_gradient_descent_is_that_of_the_textbook(
    run_job: Run, blobs_job: Document, waves_job: Document, tmp_path: Path, kind: str, batch_size: int
) -> None:
    job = blobs_job if kind == "blobs" else waves_job
    job["model"] |= {"hidden": [6], "activation": "tanh", "dtype": "float64", "initial_weights": "start.safetensors"}
    job["optimizer"] = {"name": "sgd", "learning_rate": 0.1}
    job["training"] = {"batch_size": batch_size, "epochs": 4}
    x, table = features_of(tmp_path / job["data"]["train"]), pq.read_table(tmp_path / job["data"]["train"])
    if kind == "blobs":
        t = (table["kind"].to_numpy(zero_copy_only=False)[:, None] == np.array(["ant", "bee", "cat"])).astype(float)
    else:
        t = np.column_stack([table[name].to_numpy() for name in ("y0", "y1")])
    draws = np.random.default_rng(8)
    shapes = {
        "layers.0.weight": (6, x.shape[1]),
        "layers.0.bias": 6,
        "layers.1.weight": (t.shape[1], 6),
        "layers.1.bias": t.shape[1],
    }
    start = {name: draws.normal(scale=0.4, size=shape) for name, shape in shapes.items()}
    save_file(start, tmp_path / "start.safetensors")

    events, _ = run_job(job)

    textbook = Textbook(start, softmax=kind == "blobs")
    plan = ShardPlan(rows=len(x), validation_rows=0, shards=5, batch_size=batch_size, seed=job["job"]["seed"])
    for epoch, record in enumerate(records_of(events)):
        losses = []
        for rows in batches_of(plan, epoch):
            losses.extend(textbook.losses(x[rows], t[rows]))
            textbook.step(x[rows], t[rows], 0.1)
        assert len(losses) == record.rows == len(x)
        assert record.train.loss == pytest.approx(np.mean(losses), rel=1e-11)
    for name, array in saved_weights(events).items():
        np.testing.assert_allclose(array, textbook.weights()[name], rtol=0, atol=1e-11)


def test_the_errors_of_an_epoch_are_means_over_rows_and_outputs(run_job: Run, waves_job: Document, tmp_path: Path) -> None:
    waves_job["model"] |= {"hidden": [], "initial_weights": "zeros", "dtype": "float64", "l2": 0.5}
    waves_job["data"]["validation"] = "waves.parquet"
    waves_job["optimizer"]["learning_rate"] = 1e-300  # so that the outputs stay 0
    table = pq.read_table(tmp_path / "waves.parquet")
    t = np.column_stack([table[name].to_numpy() for name in ("y0", "y1")])

    _, summary = run_job(waves_job)

    for errors in (summary.train, summary.validation):
        assert errors is not None
        assert errors.loss == pytest.approx(0.5 * (t**2).sum(axis=1).mean(), rel=1e-12)
        assert errors.mean_absolute_error == pytest.approx(np.abs(t).mean(), rel=1e-12)
        assert errors.mean_squared_error == pytest.approx((t**2).mean(), rel=1e-12)
        assert errors.error_rate is None


# --- When a run ends, and with which weights ---


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_all_correct_ends_with_weights_that_classify_every_row(
    run_job: Run, blobs_job: Document, tmp_path: Path, activation: str | None
) -> None:
    del blobs_job["training"]["epochs"]
    blobs_job["model"] |= {"hidden": [], "initial_weights": "zeros"} | ({} if activation is None else {"output": activation})
    blobs_job["optimizer"]["learning_rate"] = 0.02

    events, summary = run_job(blobs_job, {"stopping.all_correct": True})

    weights, table = saved_weights(events), pq.read_table(tmp_path / "blobs.parquet")
    z = features_of(tmp_path / "blobs.parquet") @ weights["layers.0.weight"].T + weights["layers.0.bias"]
    assert np.array(["ant", "bee", "cat"])[z.argmax(axis=1)].tolist() == table["kind"].to_pylist()
    assert (summary.status, summary.stop_reason) == ("completed", "all_correct")
    assert summary.kept_epoch == summary.epochs == len(records_of(events)) > 1


def test_a_row_that_can_not_be_told_apart_keeps_all_correct_from_being_met(run_job: Run, write_table: Write) -> None:
    write_table("rows.parquet", {"x": [0.0, 1.0, 0.0, 1.0], "y": [0, 1, 1, 1]})
    job = {
        "job": {"name": "torn"},
        "data": {"train": "rows.parquet", "label": "y", "shards": 2},
        "model": {"task": "binary"},
        "training": {"batch_size": 1, "epochs": 30},
        "stopping": {"all_correct": True},
    }

    _, summary = run_job(job)

    assert summary.stop_reason == "epochs"


def test_target_loss_ends_after_the_first_epoch_that_reaches_it(run_job: Run, blobs_job: Document) -> None:
    del blobs_job["training"]["epochs"]

    events, summary = run_job(blobs_job, {"stopping.target_loss": 0.1})

    *earlier, last = [record.train.loss for record in records_of(events)]
    assert summary.stop_reason == "target_loss"
    assert min(earlier) > 0.1 >= last


@pytest.fixture
def overfitting_job(blobs_job: Document, write_table: Write) -> Document:
    """A job whose validation rows have the wrong classes: the first epoch is the best, and every later one is worse."""
    kinds = np.array(["bee", "cat", "ant"])[np.arange(30) % 3]
    x = 3.0 * np.eye(3, 4)[np.arange(30) % 3]
    write_table("wrong.parquet", {f"x{place}": x[:, place] for place in range(4)} | {"kind": kinds})
    blobs_job["data"]["validation"] = "wrong.parquet"
    blobs_job["training"]["epochs"] = 20
    return blobs_job


def test_patience_ends_after_so_many_epochs_that_are_no_better(run_job: Run, overfitting_job: Document) -> None:
    events, summary = run_job(overfitting_job, {"stopping.patience": 3})

    losses = [record.validation.loss for record in records_of(events) if record.validation is not None]
    assert losses == sorted(losses)
    assert (summary.stop_reason, summary.epochs, summary.kept_epoch) == ("patience", 4, 1)


def test_patience_looks_at_the_training_loss_where_there_is_no_validation(run_job: Run, blobs_job: Document) -> None:
    del blobs_job["training"]["epochs"]
    blobs_job["optimizer"] = {"learning_rate": 1e-30}  # below what float32 weights can show

    events, summary = run_job(blobs_job, {"stopping.patience": 2})

    losses = [record.train.loss for record in records_of(events)]
    assert summary.stop_reason == "patience"
    assert min(losses[:-2]) <= min(losses[-2:])
    assert max(losses) == pytest.approx(min(losses))


def test_kept_weights_are_those_of_the_best_epoch_or_of_the_last(run_job: Run, overfitting_job: Document) -> None:
    first, one_epoch = run_job(overfitting_job, {"training.epochs": 1})
    best_events, best = run_job(overfitting_job)
    last_events, last = run_job(overfitting_job, {"training.keep": "last"})

    assert (one_epoch.kept_epoch, best.kept_epoch, last.kept_epoch) == (1, 1, 20)
    assert best.weights_digest == one_epoch.weights_digest != last.weights_digest
    assert (best.train, best.validation) == (records_of(first)[0].train, records_of(first)[0].validation)
    assert last.validation == records_of(last_events)[-1].validation
    assert best.epochs == last.epochs == 20
    assert weights_digest(load_model(directory_of(best_events)).weights_P) == best.weights_digest


def test_without_validation_the_last_weights_are_kept_though_an_earlier_epoch_was_better(
    run_job: Run, waves_job: Document
) -> None:
    waves_job["optimizer"]["learning_rate"] = 0.8

    events, best = run_job(waves_job, {"training.epochs": 9, "training.keep": "best"})
    _, last = run_job(waves_job, {"training.epochs": 9, "training.keep": "last"})

    losses = [record.train.loss for record in records_of(events)]
    assert losses[-1] > min(losses)
    assert best.kept_epoch == last.kept_epoch == 9
    assert best.weights_digest == last.weights_digest


@pytest.mark.parametrize("rounds", [1, 3, 4, 6, 8])
def test_rounds_may_end_in_the_middle_of_an_epoch(run_job: Run, blobs_job: Document, rounds: int) -> None:
    events, summary = run_job(blobs_job, {"training.rounds": rounds})

    records = records_of(events)
    assert (summary.stop_reason, summary.rounds, summary.epochs) == ("rounds", rounds, rounds // 4)
    assert len(rounds_of(events)) == records[-1].round == rounds
    assert len(records) == summary.kept_epoch == -(-rounds // 4)
    rows = [event.rows for event in rounds_of(events)]
    assert sum(rows) == sum(record.rows for record in records) == summary.rows_trained == summary.rows_expected
    assert max(rows) - min(rows) <= 1


def test_max_seconds_ends_after_the_round_in_which_they_pass(
    begin_job: Begin, blobs_job: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    passed = 0.0
    monkeypatch.setattr(training, "perf_counter", lambda: passed + 1e-3 * next(ticks))
    events = []

    for event in begin_job(blobs_job, {"stopping.max_seconds": 60}):
        events.append(event)
        passed = 60.0 if len(rounds_of(events)) == 6 else 0.0

    summary = summary_of(events)
    assert (summary.status, summary.stop_reason) == ("completed", "max_seconds")
    assert (summary.rounds, summary.epochs, summary.kept_epoch) == (6, 1, 2)


def test_every_row_counts_once_an_epoch(run_job: Run, blobs_job: Document) -> None:
    events, summary = run_job(blobs_job, {"data.validation": 0.2})

    assert [record.rows for record in records_of(events)] == [49, 49, 49]
    assert summary.rows_trained == summary.rows_expected == 3 * 49


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber"])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_run_whose_weights_grow_beyond_all_bounds_ends_with_finite_ones(
    run_job: Run, waves_job: Document, loss: str, keep: str
) -> None:
    waves_job["model"]["loss"] = loss
    waves_job["model"]["activation"] = "relu"
    waves_job["data"]["validation"] = 0.2

    events, summary = run_job(waves_job, {"optimizer.learning_rate": 1e19, "training.keep": keep, "training.epochs": 9})

    assert summary.status == "diverged"
    assert summary.stop_reason != ""
    assert summary.rounds == len(rounds_of(events)) < 9 * 3
    weights_P = load_model(directory_of(events)).weights_P
    assert np.isfinite(weights_P).all()
    assert weights_digest(weights_P) == summary.weights_digest
    assert json.loads((directory_of(events) / "summary.json").read_text()) == asdict(summary)


@pytest.mark.parametrize(("dtype", "learning_rate"), [("float32", 1e25), ("float64", 1e200)])
@pytest.mark.parametrize("loss", ["absolute_error", "huber"])
def test_squares_beyond_the_largest_number_end_a_run_in_good_order_though_its_loss_is_finite(
    run_job: Run, waves_job: Document, loss: str, dtype: str, learning_rate: float
) -> None:
    waves_job["model"] |= {"hidden": [], "loss": loss, "dtype": dtype}

    events, summary = run_job(waves_job, {"optimizer.learning_rate": learning_rate})

    assert summary.status in ("completed", "diverged")
    assert np.isfinite(load_model(directory_of(events)).weights_P).all()
    assert json.loads((directory_of(events) / "summary.json").read_text()) == asdict(summary)


def test_a_run_that_diverges_in_its_first_round_keeps_the_initial_weights(run_job: Run, waves_job: Document) -> None:
    waves_job["model"] |= {"hidden": [], "initial_weights": "zeros"}

    events, summary = run_job(waves_job, {"optimizer.learning_rate": 1e300})

    assert (summary.status, summary.rounds, summary.kept_epoch) == ("diverged", 0, None)
    assert (summary.train, summary.validation) == (None, None)
    assert "in round 1" in summary.stop_reason
    assert not any(array.any() for array in saved_weights(events).values())


def interrupted_after(rounds: int, begin_job: Begin, job: Document, overrides: dict[str, Any]) -> list[Event]:
    """Interrupt a run as soon as so many rounds are done."""
    events: list[Event] = []
    for event in begin_job(job, overrides, interrupted=lambda: len(rounds_of(events)) >= rounds):
        events.append(event)  # noqa: PERF402 -- `interrupted` looks at them as they come
    return events


def test_an_interrupted_run_ends_after_its_round_with_the_weights_of_the_last_epoch(
    run_job: Run, begin_job: Begin, blobs_job: Document
) -> None:
    _, whole = run_job(blobs_job, {"training.epochs": 1})

    events = interrupted_after(6, begin_job, blobs_job, {})

    summary = summary_of(events)
    assert (summary.status, summary.stop_reason, summary.rounds, summary.epochs) == ("interrupted", "interrupted", 6, 1)
    assert len(records_of(events)) == summary.kept_epoch == 1
    assert summary.weights_digest == whole.weights_digest
    assert summary.rows_trained == summary.rows_expected == sum(event.rows for event in rounds_of(events))


def test_a_run_interrupted_in_its_first_epoch_keeps_the_weights_it_has(
    run_job: Run, begin_job: Begin, blobs_job: Document
) -> None:
    _, two_rounds = run_job(blobs_job, {"training.rounds": 2})

    summary = summary_of(interrupted_after(2, begin_job, blobs_job, {}))

    assert (summary.status, summary.rounds, summary.kept_epoch, summary.train) == ("interrupted", 2, None, None)
    assert summary.weights_digest == two_rounds.weights_digest


def test_a_run_interrupted_at_the_end_of_an_epoch_has_all_of_it(begin_job: Begin, blobs_job: Document) -> None:
    events = interrupted_after(1, begin_job, blobs_job, {"training.batch_size": 1000})

    summary = summary_of(events)
    assert (summary.status, summary.epochs, summary.kept_epoch) == ("interrupted", 1, 1)
    assert summary.train == records_of(events)[0].train
