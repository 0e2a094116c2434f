"""CSV files whose beginning looks like something else than what they hold."""

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coordinator.model_files import load_model
from coordinator.records import Event, Summary
from coordinator.scoring import evaluate, predict
from worker.errors import DataError, JobError
from worker.inputs import CategoryInputs

Document = dict[str, dict[str, Any]]
Run = Callable[..., tuple[list[Event], Summary]]
LONG = 300_000
"""Rows that fill the block of a CSV by which types are guessed."""


def job(folder: Path, **data: Any) -> Document:
    return {
        "job": {"name": "types"},
        "data": {"train": str(folder), "label": "y", "shards": 3, **data},
        "model": {"task": "binary"},
        "training": {"epochs": 1, "batch_size": 1 << 20},
        "workers": {"count": 2},
    }


def write(folder: Path, *files: str) -> None:
    for place, content in enumerate(files):
        folder.mkdir(exist_ok=True)
        (folder / f"{place}.csv").write_text(content)


def categories(run: Path) -> tuple[Any, ...]:
    (given,) = load_model(run).encoding.inputs
    assert isinstance(given, CategoryInputs)
    return given.categories


@pytest.mark.parametrize(
    ("files", "kind", "found"),
    [
        (["A1", "12"], None, ("12", "A1")),
        (["", "A1"], None, ("A1",)),
        (["A1", "12"], "category", ("12", "A1")),
        (["12", "A1"], "category", ("12", "A1")),
        (["", "12", "A1"], "category", ("12", "A1")),
        (["12", "7"], "category", (7, 12)),
        (["true", "maybe"], "category", ("maybe", "true")),
    ],
)
def test_a_category_may_look_like_a_number_in_some_files(
    run_job: Run, tmp_path: Path, files: list[str], kind: str | None, found: tuple[Any, ...]
) -> None:
    write(tmp_path / "rows", *(f"x,y\n{value},no\n{value},yes\n" for value in files))
    columns = {"x": {"kind": kind}} if kind else {}

    run_job(job(tmp_path / "rows", missing="indicator", columns=columns, shards=2))

    assert categories(tmp_path / "run-1") == found


@pytest.mark.parametrize("beginning", ["12", ""])
def test_a_category_and_a_class_may_look_like_numbers_or_nothing_at_the_beginning(
    run_job: Run, tmp_path: Path, beginning: str
) -> None:
    content = "x,y,id\n" + f"{beginning},0,1\n" * LONG + "A1,one,z9\n"
    write(tmp_path / "rows", content)

    options = {"missing": "indicator", "features": ["x"], "columns": {"x": {"kind": "category"}}}
    run_job(job(tmp_path / "rows", **options))

    model = load_model(tmp_path / "run-1")
    assert categories(tmp_path / "run-1") == ((beginning, "A1") if beginning else ("A1",))
    assert model.encoding.label.classes == ("0", "one")
    write(tmp_path / "other", content, "id,y,x\n7,0,12\n")
    assert evaluate(model, str(tmp_path / "other")).rows == LONG + 2
    assert predict(model, str(tmp_path / "other"), tmp_path / "out.parquet").rows == LONG + 2


def test_a_validation_file_may_look_like_something_else_than_the_training_file(run_job: Run, tmp_path: Path) -> None:
    write(tmp_path / "rows", "x,z,y\nA1,1,no\n" * 1 + "12,2.5,yes\nB,3,no\n")
    write(tmp_path / "held", "y,x,z\nyes,12,\nno,7,4\n")

    _, summary = run_job(job(tmp_path / "rows", validation=str(tmp_path / "held"), missing="mean"))

    assert summary.validation is not None


def test_a_validation_file_may_have_decimals_where_it_begins_with_whole_numbers(run_job: Run, tmp_path: Path) -> None:
    write(tmp_path / "rows", "x,y\n1.5,no\n2,yes\n3,yes\n")
    write(tmp_path / "held", "x,y\n" + "1,no\n" * LONG + "2.5,yes\n")

    _, summary = run_job(job(tmp_path / "rows", validation=str(tmp_path / "held")))

    assert summary.validation is not None


def test_text_where_numbers_were_is_named_by_file_row_and_column(run_job: Run, tmp_path: Path) -> None:
    write(tmp_path / "rows", "x,y\n1,no\n2,yes\n", "y,x\nno,3\nyes,n.a.\n")

    with pytest.raises(DataError) as caught:
        run_job(job(tmp_path / "rows"))

    path = tmp_path / "rows" / "1.csv"
    assert str(caught.value).startswith(
        f"{path}: row 2, column 'x': 'n.a.' is no number, as the column's other values are; mend the row"
    )


@pytest.mark.parametrize(
    ("values", "inputs"),
    [
        (["7", "0.5"], ["x"]),
        (["2024-02-29", "2024-03-01"], ["x"]),
        (["10:30", "11:45:30"], ["x"]),
        (["A1", "7"], ["x=7", "x=A1", "x=(missing)"]),
    ],
)
@pytest.mark.parametrize("gaps", [0, 2 * LONG])
def test_a_column_may_be_without_values_at_the_beginning(
    run_job: Run, tmp_path: Path, values: list[str], inputs: list[str], gaps: int
) -> None:
    write(tmp_path / "rows", "x,y\n" + ",0\n" * (2 * LONG) + "".join(f"{value},1\n" for value in values))
    write(tmp_path / "held", "x,y\n" + ",0\n" * gaps + f"{values[1]},1\n" * 3)

    _, summary = run_job(job(tmp_path / "rows", validation=str(tmp_path / "held"), missing="mean"))

    model = load_model(tmp_path / "run-1")
    assert model.encoding.input_names == inputs
    assert summary.validation is not None
    assert evaluate(model, str(tmp_path / "held")).rows == gaps + 3


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["2024-02-29", "2024-03-01"], None),
        (["2024-02-29 10:30", "2024-03-01 11:30"], None),
        (["7", "8"], "is for dates and times, and column 'x' holds whole numbers"),
        (["", ""], "column 'x[month]' has no value in any training row"),
    ],
)
def test_parts_may_be_taken_of_a_column_without_values_at_the_beginning(
    run_job: Run, tmp_path: Path, values: list[str], told: str | None
) -> None:
    write(tmp_path / "rows", "x,y\n" + ",0\n" * (2 * LONG) + "".join(f"{value},1\n" for value in values))
    document = job(tmp_path / "rows", missing="mean", columns={"x": {"parts": ["month", "day"]}})

    if told is None:
        run_job(document)
        assert load_model(tmp_path / "run-1").encoding.input_names == ["x[month]", "x[day]"]
    else:
        with pytest.raises(JobError, match=re.escape(told)):
            run_job(document)


def test_a_column_without_values_at_the_beginning_is_held_against_a_validation_file_when_it_is_known(
    run_job: Run, tmp_path: Path
) -> None:
    write(tmp_path / "rows", "x,y\n" + ",0\n" * (2 * LONG) + "2024-02-29,1\n2024-03-01,1\n")
    days = pa.array([date(2024, 2, 29), None, date(2024, 3, 1)])
    pq.write_table(pa.table({"x": days, "y": [0, 1, 0]}), tmp_path / "held.parquet")

    _, summary = run_job(job(tmp_path / "rows", validation=str(tmp_path / "held.parquet"), missing="mean"))

    assert summary.validation is not None


def test_a_validation_file_of_another_kind_further_on_is_named(run_job: Run, tmp_path: Path) -> None:
    write(tmp_path / "rows", "x,y\n2024-02-29,no\n2024-03-01,yes\n,yes\n")
    write(tmp_path / "held", "x,y\n" + ",no\n" * (2 * LONG) + "A1,yes\n")

    with pytest.raises(DataError) as caught:
        run_job(job(tmp_path / "rows", validation=str(tmp_path / "held"), missing="mean"))

    told = "column 'x' has type string, which does not match the training data's"
    assert str(caught.value) == f"{tmp_path / 'held' / '0.csv'}: {told}"


def test_evaluate_and_predict_read_csv_files_as_the_training_did(run_job: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("größe;ort;y\n1,5;Köln;no\n2;Bonn;yes\n-0,5;Ulm;yes\n")
    given = {"train": str(tmp_path / "rows.csv"), "delimiter": ";", "decimal": ","}

    run_job(job(tmp_path, **given))

    model = load_model(tmp_path / "run-1")
    assert model.encoding.input_names == ["größe", "ort=Bonn", "ort=Köln", "ort=Ulm"]
    assert evaluate(model, str(tmp_path / "rows.csv")).rows == 3
    assert predict(model, str(tmp_path / "rows.csv"), tmp_path / "out.parquet").rows == 3
    assert pq.read_table(tmp_path / "out.parquet")["y"].to_pylist() == ["no", "yes", "yes"]
