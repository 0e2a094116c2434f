"""Real tables: columns of many kinds with gaps, from the file to scores, the same for any number of workers."""

import json
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import tomli_w
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight

from coordinator.check import check_job
from coordinator.column_plans import ColumnPlan
from coordinator.job import load_job
from coordinator.model_files import load_model
from coordinator.records import Event, Noticed, RoundDone, Summary
from coordinator.scoring import evaluate, predict
from worker.errors import DataError

Document = dict[str, dict[str, Any]]
Run = Callable[..., tuple[list[Event], Summary]]
ROWS = 240


@pytest.fixture
def rent_job(tmp_path: Path) -> Document:
    """A job on rents that depend on a text, a flag, a size with gaps and a date, in rent.csv and the same in rent.parquet."""
    draws = np.random.default_rng(1)
    town = draws.choice(["Aachen", "Bonn", "Celle", "Dresden"], ROWS, p=[0.5, 0.3, 0.15, 0.05])
    size, lift = draws.integers(20, 120, ROWS), draws.random(ROWS) < 0.4
    let = [datetime(2024, 1, 1) + timedelta(days=int(day)) for day in draws.integers(0, 365, ROWS)]
    rent = 300 + 9 * size + 150 * (town == "Bonn") + 60 * lift + draws.normal(0, 20, ROWS)
    table = pa.table(
        {
            "town": pa.array(town, mask=draws.random(ROWS) < 0.1),
            "size": pa.array(size, mask=draws.random(ROWS) < 0.2),
            "lift": lift,
            "let": pa.array(let, pa.timestamp("s")),
            "floor": draws.integers(0, 4, ROWS),
            "country": ["DE"] * ROWS,
            "rent": rent,
        }
    )
    pa_csv.write_csv(table, tmp_path / "rent.csv")
    pq.write_table(table, tmp_path / "rent.parquet", row_group_size=50)
    return {
        "job": {"name": "rent", "seed": 3},
        "data": {
            "train": "rent.csv",
            "label": "rent",
            "validation": 0.25,
            "shards": 5,
            "scale": "standard",
            "scale_target": "standard",
            "missing": "indicator",
            "categories": 3,
            "columns": {
                "let": {"parts": ["days", "month"], "cyclical": True},
                "floor": {"kind": "category"},
                "size": {"missing": "median", "scale": "minmax"},
            },
        },
        "model": {"task": "regression", "hidden": [8]},
        "optimizer": {"name": "adam", "learning_rate": 0.02},
        "training": {"batch_size": 32, "epochs": 30},
    }


def checked(document: Document, folder: Path) -> dict[str, ColumnPlan]:
    path = folder / "check.toml"
    path.write_text(tomli_w.dumps(document))
    return {column.name: column for column in check_job(load_job(path, {})).columns}


def test_the_workers_make_no_difference_nor_does_the_kind_of_file(run_job: Run, rent_job: Document, tmp_path: Path) -> None:
    runs = [run_job(rent_job, {"workers.count": workers})[1] for workers in (1, 2, 3)]
    _, parquet = run_job(rent_job, {"data.train": "rent.parquet"})

    assert len({summary.weights_digest for summary in [*runs, parquet]}) == 1
    models = [json.loads((tmp_path / f"run-{number}" / "model" / "model.json").read_text()) for number in (1, 2, 3, 4)]
    assert all(model["encoding"] == models[0]["encoding"] for model in models)


def test_errors_and_predictions_are_in_the_units_of_the_targets(run_job: Run, rent_job: Document, tmp_path: Path) -> None:
    _, summary = run_job(rent_job)
    model, raw = load_model(tmp_path / "run-1"), pq.read_table(tmp_path / "rent.parquet")
    predict(model, str(tmp_path / "rent.csv"), tmp_path / "out.parquet")
    predicted, rents = (
        pq.read_table(tmp_path / "out.parquet")["prediction"].to_numpy().astype(float),
        raw["rent"].to_numpy().astype(float),
    )

    evaluation = evaluate(model, str(tmp_path / "rent.parquet"), table=2)

    assert summary.validation is not None
    assert summary.validation.mean_absolute_error < np.abs(rents - rents.mean()).mean() / 2
    assert evaluation.errors.mean_absolute_error == pytest.approx(np.abs(predicted - rents).mean(), rel=1e-4)
    assert evaluation.errors.mean_squared_error == pytest.approx(np.square(predicted - rents).mean(), rel=1e-4)
    # The loss is of the standardised targets, which training goes by.
    assert evaluation.errors.loss == pytest.approx(0.5 * evaluation.errors.mean_squared_error / rents.var(), rel=0.2)
    for place, row in enumerate(evaluation.table):
        plain = [raw[name][place].as_py() for name in raw.column_names[:-1]]
        assert row.inputs == [f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else value for value in plain]
        assert row.desired == pytest.approx(rents[place], rel=1e-5)
        assert row.output == pytest.approx(predicted[place], rel=1e-5)
        assert row.absolute_error == pytest.approx(abs(predicted[place] - rents[place]), rel=1e-3, abs=1e-3)


def test_targets_that_differ_by_little_next_to_their_size_keep_their_digits(run_job: Run, tmp_path: Path) -> None:
    targets = 1e9 + 10.0 * np.arange(32)
    pq.write_table(pa.table({"x": np.arange(32.0), "y": targets}), tmp_path / "far.parquet")
    document = {
        "job": {"name": "far"},
        "data": {"train": "far.parquet", "label": "y", "shards": 2, "scale": "standard", "scale_target": "standard"},
        "model": {"task": "regression"},
        "optimizer": {"learning_rate": 0.1},
        "training": {"epochs": 5},
    }
    run_job(document)
    model, data = load_model(tmp_path / "run-1"), str(tmp_path / "far.parquet")

    evaluation = evaluate(model, data, table=32)
    predict(model, data, tmp_path / "out.parquet")

    predicted = pq.read_table(tmp_path / "out.parquet")["prediction"].to_numpy()
    errors = np.abs(predicted - targets)
    assert predicted.dtype == np.float64
    assert len(np.unique(predicted)) == 32
    assert errors.min() > 0
    assert [row.desired for row in evaluation.table] == pytest.approx(targets, abs=1e-6)
    assert [row.absolute_error for row in evaluation.table] == pytest.approx(errors, rel=1e-6)
    assert evaluation.errors.mean_absolute_error == pytest.approx(errors.mean(), rel=1e-5)
    assert evaluation.errors.mean_squared_error == pytest.approx(np.square(errors).mean(), rel=1e-5)


@pytest.mark.parametrize("size", [1e-60, 1e60])
def test_errors_of_scaled_targets_may_be_smaller_or_larger_than_the_models_precision_has_numbers(
    run_job: Run, tmp_path: Path, size: float
) -> None:
    targets = size * np.arange(32.0)
    pq.write_table(pa.table({"x": np.arange(32.0), "y": targets}), tmp_path / "rows.parquet")
    document = {
        "job": {"name": "size"},
        "data": {"train": "rows.parquet", "label": "y", "shards": 2, "scale": "standard", "scale_target": "standard"},
        "model": {"task": "regression", "initial_weights": "zeros"},
        "optimizer": {"learning_rate": 0.0001},
        "training": {"epochs": 1},
    }

    _, summary = run_job(document)

    assert summary.train is not None
    assert summary.train.mean_absolute_error == pytest.approx(np.abs(targets - targets.mean()).mean(), rel=1e-3, abs=0)
    assert summary.train.mean_squared_error == pytest.approx(targets.var(), rel=1e-3, abs=0)


def test_dates_in_a_table_of_scored_rows_are_written_out_whatever_their_unit_and_year(run_job: Run, tmp_path: Path) -> None:
    columns = {
        "ns": pa.array([1, 10**18]).cast(pa.timestamp("ns")),
        "far": pa.array([2932897, None], pa.int32()).cast(pa.date32()),
        "zoned": pa.array([0, 60]).cast(pa.timestamp("s", "Asia/Tokyo")),
        "span": pa.array([-60, 10**15]).cast(pa.duration("s")),
        "y": [0.0, 1.0],
    }
    pq.write_table(pa.table(columns), tmp_path / "dates.parquet")
    document = {
        "job": {"name": "dates"},
        "data": {"train": "dates.parquet", "label": "y", "shards": 1, "scale": "minmax", "missing": "mean"},
        "model": {"task": "regression"},
        "training": {"epochs": 1},
        "workers": {"count": 1},
    }
    run_job(document)

    evaluation = evaluate(load_model(tmp_path / "run-1"), str(tmp_path / "dates.parquet"), table=2)

    assert [row.inputs for row in evaluation.table] == [
        ["1970-01-01 00:00", "10000-01-01", "1970-01-01 09:00", "-0:01:00"],
        ["2001-09-09 01:46:40", None, "1970-01-01 09:01", "11,574,074,074 days, 1:46:40"],
    ]


def test_what_is_odd_about_the_rows_is_told_and_training_goes_on(run_job: Run, rent_job: Document) -> None:
    events, summary = run_job(rent_job)

    assert [event.message.split(":")[0] for event in events if isinstance(event, Noticed)] == [
        "column 'country' has the same value in all training rows"
    ]
    assert summary.status == "completed"


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_weights_go_through_training_validation_and_scores(run_job: Run, rent_job: Document, tmp_path: Path, task: str) -> None:
    label = {"regression": "rent", "classification": "town"}[task]
    rent_job["data"] |= {"label": label, "unlabelled": "ignore", "weight": "size", "columns": {}, "missing": "mean"}
    rent_job["data"] |= {} if task == "regression" else {"class_weights": "balanced", "scale_target": "none"}
    rent_job["data"]["features"] = ["lift", "floor", "let"]
    rent_job["model"]["task"] = task
    table = pq.read_table(tmp_path / "rent.parquet")
    weighed = table.set_column(1, "size", pa.array(np.arange(ROWS) % 4 / 2))
    gappy = weighed.set_column(6, "rent", pa.array(weighed["rent"].to_numpy(), mask=np.arange(ROWS) % 7 == 0))
    pq.write_table(gappy, tmp_path / "rent.parquet")

    runs = [run_job(rent_job, {"data.train": "rent.parquet", "workers.count": workers}) for workers in (1, 2, 3)]
    _, unweighted = run_job(rent_job, {"data.train": "rent.parquet", "data.weight": None})

    assert len({summary.weights_digest for _, summary in runs}) == 1
    assert unweighted.weights_digest != runs[0][1].weights_digest
    told = [event.message for event in runs[0][0] if isinstance(event, Noticed)]
    assert any("training rows have no label; they are read and weigh nothing" in message for message in told)
    # The rows of all splits together, weighed by hand.
    model = load_model(tmp_path / "run-1")
    evaluation = evaluate(model, str(tmp_path / "rent.parquet"), table=3)
    errors = evaluation.errors
    predict(model, str(tmp_path / "rent.parquet"), tmp_path / "out.parquet")
    said, truth = pq.read_table(tmp_path / "out.parquet")["prediction"].to_pylist(), gappy[label].to_pylist()
    weights = np.array([0.0 if true is None else place % 4 / 2 for place, true in enumerate(truth)])
    shown = [place for place in range(ROWS) if weights[place] > 0][:3]
    for row, place in zip(evaluation.table, shown, strict=True):
        assert row.desired == (pytest.approx(truth[place], rel=1e-5) if task == "regression" else truth[place])
    if task == "regression":
        wrong = np.array([0.0 if true is None else abs(one - true) for one, true in zip(said, truth, strict=True)])
        assert errors.mean_absolute_error == pytest.approx((wrong * weights).sum() / weights.sum(), rel=1e-4)
        return
    known = model.encoding.label
    assert known.class_weights is not None and known.classes is not None
    weights *= [0.0 if true is None else known.class_weights[known.classes.index(true)] for true in truth]
    wrong = np.array([one != true for one, true in zip(said, truth, strict=True)])
    assert errors.error_rate == pytest.approx((wrong * weights).sum() / weights.sum(), rel=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_weighted_rows_and_classes_lead_to_the_weights_that_scikit_learn_finds(
    run_job: Run, tmp_path: Path, workers: int, balanced: bool
) -> None:
    draws = np.random.default_rng(2)
    x_NI, weight_N = draws.normal(size=(90, 2)), draws.integers(0, 4, 90) / 2
    label_N = (x_NI @ [1.0, -2.0] + draws.logistic(size=90) > 1.0).astype(int)
    pq.write_table(pa.table({"a": x_NI[:, 0], "b": x_NI[:, 1], "w": weight_N, "y": label_N}), tmp_path / "rows.parquet")
    document = {
        "job": {"name": "weighted"},
        "data": {"train": "rows.parquet", "label": "y", "shards": 3, "weight": "w"},
        "model": {"task": "binary", "dtype": "float64", "l2": 0.1},
        "optimizer": {"name": "sgd", "learning_rate": 2.0},
        "training": {"batch_size": 90, "epochs": 200},
        "workers": {"count": workers},
    }
    document["data"] |= {"class_weights": "balanced"} if balanced else {}

    run_job(document)

    weights_N = weight_N * (compute_sample_weight("balanced", label_N) if balanced else 1.0)
    # There, losses are added up and not averaged.
    oracle = LogisticRegression(C=1 / (0.1 * weights_N.sum()), tol=1e-10, max_iter=1000).fit(x_NI, label_N, weights_N)
    found = load_model(tmp_path / "run-1").weights_P
    np.testing.assert_allclose(found, [*oracle.coef_[0], *oracle.intercept_], atol=1e-6)


def test_rounds_in_which_nothing_has_any_weight_change_nothing(run_job: Run, rent_job: Document, tmp_path: Path) -> None:
    rent_job["data"] |= {"unlabelled": "ignore", "train": "gappy.parquet", "scale_target": "none"}
    del rent_job["data"]["validation"]
    rent_job["optimizer"] = {"name": "sgd", "learning_rate": 1e-6}
    rent_job["training"] |= {"batch_size": 1, "epochs": 1}
    table = pq.read_table(tmp_path / "rent.parquet").slice(0, 40)
    labelled = np.arange(40) < 3
    pq.write_table(table.set_column(6, "rent", pa.array(table["rent"].to_numpy(), mask=~labelled)), tmp_path / "gappy.parquet")

    events, summary = run_job(rent_job)

    rounds = [event for event in events if isinstance(event, RoundDone)]
    assert (len(rounds), summary.rows_trained) == (40, 40)
    idle = [event for event in rounds if not event.loss]
    assert len(idle) == 37
    assert all(event.gradient_norm == 0 for event in idle)
    # The mean is over the rows that have a label.
    assert summary.train is not None
    assert summary.train.loss == pytest.approx(sum(event.loss for event in rounds) / 3)


def test_validation_rows_without_any_weight_are_told_from_training_rows(run_job: Run, rent_job: Document, tmp_path: Path) -> None:
    rent_job["data"] |= {"train": "rent.parquet", "validation": "new.parquet", "weight": "lift"}
    table = pq.read_table(tmp_path / "rent.parquet")
    pq.write_table(table.set_column(2, "lift", pa.array([False] * ROWS)), tmp_path / "new.parquet")

    with pytest.raises(DataError, match="none of the validation rows has any weight; data"):
        run_job(rent_job)


def test_a_table_in_which_nothing_has_any_weight_has_no_errors(run_job: Run, rent_job: Document, tmp_path: Path) -> None:
    rent_job["data"] |= {"unlabelled": "ignore"}
    run_job(rent_job)
    table = pq.read_table(tmp_path / "rent.parquet")
    pq.write_table(table.set_column(6, "rent", pa.nulls(ROWS, pa.float64())), tmp_path / "new.parquet")

    with pytest.raises(DataError, match="none of the rows has any weight"):
        evaluate(load_model(tmp_path / "run-1"), str(tmp_path / "new.parquet"))


def test_other_tables_may_have_gaps_and_categories_that_training_did_not_show(
    run_job: Run, rent_job: Document, tmp_path: Path
) -> None:
    run_job(rent_job)
    row = {"town": "Emden", "size": None, "lift": None, "let": None, "floor": 99, "country": None}
    columns = {name: pa.array([value], type_) for (name, value), type_ in zip(row.items(), TYPES, strict=True)}
    pq.write_table(pa.table(columns), tmp_path / "new.parquet")

    told = predict(load_model(tmp_path / "run-1"), str(tmp_path / "new.parquet"), tmp_path / "out.parquet").findings

    assert np.isfinite(pq.read_table(tmp_path / "out.parquet")["prediction"][0].as_py())
    assert told == [
        "column 'town': 1 row has a category that no training row has; taken as (other)",
        "column 'floor': 1 row has a category that no training row has; taken as (other)",
        "column 'country': 1 row has no value, though every training row has one; taken as 0 in all of its inputs",
    ]


def test_evaluating_tells_of_rows_that_training_knows_nothing_like(run_job: Run, rent_job: Document, tmp_path: Path) -> None:
    rent_job["data"]["columns"]["country"] = {"missing": "constant", "fill": "unknown"}
    run_job(rent_job)
    table, model = pq.read_table(tmp_path / "rent.parquet"), load_model(tmp_path / "run-1")
    country = pa.array(["FR"] * 3 + [None] * 2 + ["DE"] * (ROWS - 5))
    pq.write_table(table.set_column(5, "country", country), tmp_path / "new.parquet")

    assert evaluate(model, str(tmp_path / "rent.parquet")).findings == []
    assert evaluate(model, str(tmp_path / "new.parquet")).findings == [
        "column 'country': 5 rows have a category that no training row has; taken as 0 in all of its inputs"
    ]


TYPES = [pa.string(), pa.float64(), pa.bool_(), pa.timestamp("us"), pa.int32(), pa.dictionary(pa.int8(), pa.string())]


def test_rows_too_far_away_for_a_finite_prediction_are_told_of(run_job: Run, rent_job: Document, tmp_path: Path) -> None:
    rent_job["data"] |= {"scale": "none", "missing": "mean", "columns": {}, "features": ["size"], "train": "rent.parquet"}
    rent_job["model"]["hidden"] = []
    run_job(rent_job)
    table, model = pq.read_table(tmp_path / "rent.parquet"), load_model(tmp_path / "run-1")
    model.weights_P[:] = [10.0, 0.0]
    sizes = pa.array([1e38, 20.0, -1e38] + [50.0] * (ROWS - 3))
    pq.write_table(table.set_column(1, "size", sizes), tmp_path / "new.parquet")

    told = predict(model, str(tmp_path / "new.parquet"), tmp_path / "out.parquet").findings
    errors = evaluate(model, str(tmp_path / "new.parquet")).errors

    assert told == ["2 of the predictions are no finite numbers: their rows lie too far from those of the training"]
    assert not np.isfinite(errors.mean_absolute_error)


def test_a_gap_in_another_table_where_training_allowed_none_is_refused(run_job: Run, rent_job: Document, tmp_path: Path) -> None:
    rent_job["data"]["columns"]["lift"] = {"missing": "error"}
    run_job(rent_job)
    table = pq.read_table(tmp_path / "rent.parquet")
    gappy = table.set_column(2, "lift", pa.array([True, True, None] + [False] * (ROWS - 3)))
    pq.write_table(gappy, tmp_path / "new.parquet")

    with pytest.raises(DataError, match=r"new\.parquet: row 3, column 'lift' has no value"):
        predict(load_model(tmp_path / "run-1"), str(tmp_path / "new.parquet"), tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_check_tells_what_becomes_of_each_column(rent_job: Document, tmp_path: Path) -> None:
    found = checked(rent_job, tmp_path)

    town, size, let = found["town"], found["size"], found["let"]
    assert (town.type, town.becomes, town.width) == ("text", "one-hot: 3, other, missing", 5)
    assert town.values.startswith("4: Aachen, Bonn, ")
    assert 0.05 < town.missing < 0.15
    assert (size.type, size.becomes, size.width) == ("integer", "scaled to 0…1, gaps median", 1)
    assert size.values == "20 to 118"
    assert (let.values, let.width) == ("2024-01-06 00:00 to 2024-12-30 00:00", 3)
    assert let.becomes == "days, month as sine and cosine: standardised, gaps mean"
    assert (found["floor"].type, found["floor"].becomes) == ("integer", "one-hot: 3, other")
    assert (found["lift"].type, found["lift"].values) == ("boolean", "false, true")
    assert (found["rent"].becomes, found["rent"].width) == ("target, standardised", 1)
    assert list(found)[-1] == "rent"


def test_check_tells_of_weights(rent_job: Document, tmp_path: Path) -> None:
    rent_job["data"] |= {"label": "town", "unlabelled": "ignore", "weight": "floor", "class_weights": "balanced", "columns": {}}
    rent_job["data"]["scale_target"] = "none"
    rent_job["model"]["task"] = "classification"

    found = checked(rent_job, tmp_path)

    assert (found["town"].becomes, found["town"].width) == ("target, classes balanced", 4)
    assert (found["floor"].becomes, found["floor"].values, found["floor"].width) == ("weight", "0 to 3", 0)


@pytest.mark.parametrize(
    ("values", "type_", "shown"),
    [
        (pa.array([date(2024, 2, 29), date(2023, 1, 1)]), "date", "2023-01-01 to 2024-02-29"),
        (pa.array([datetime(2024, 2, 29, 7, 30)] * 2, pa.timestamp("s")), "timestamp", "2024-02-29 07:30"),
        (pa.array([60, 3600], pa.int32()).cast(pa.time32("s")), "time", "0:01:00 to 1:00:00"),
        (pa.array([60, -60], pa.duration("s")), "duration", "-0:01:00 to 0:01:00"),
        (pa.array([2932896, 2932897], pa.int32()).cast(pa.date32()), "date", "9999-12-31 to 10000-01-01"),
        (pa.array([0, 4 * 10**11]).cast(pa.timestamp("s")), "timestamp", "1970-01-01 00:00 to 14645-06-30 15:06:40"),
        (pa.array([0, 10**15]).cast(pa.duration("s")), "duration", "0:00:00 to 11,574,074,074 days, 1:46:40"),
        (pa.array([[1.5, 2.0], [0.0, 3.0]], pa.list_(pa.float32(), 2)), "2 × number", "0 to 3"),
        (pa.array(["b", "a"]).dictionary_encode(), "text, dictionary", "2: a, b"),
        (pa.array([True, True]), "boolean", "true"),
        (pa.array([0.123456789, 5e10]), "number", "0.12346 to 5e+10"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_check_shows_values_as_a_person_writes_them(values: pa.Array, type_: str, shown: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": values, "y": ["no", "yes"]}), tmp_path / "rows.parquet")
    document = {
        "job": {"name": "small"},
        "data": {"train": "rows.parquet", "label": "y", "shards": 1},
        "model": {"task": "binary"},
        "training": {"epochs": 1},
        "workers": {"count": 1},
    }

    found = checked(document, tmp_path)

    assert (found["x"].type, found["x"].values) == (type_, shown)
    assert (found["y"].values, found["y"].becomes, found["y"].width) == ("2: no, yes", "target", 1)
