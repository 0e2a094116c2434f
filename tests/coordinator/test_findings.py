from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from coordinator.findings import findings
from worker.choice import choose_columns
from worker.data import ColumnSpec, DataSpec
from worker.model import ModelSpec
from worker.scan import scan_rows, scan_sum

IDS = np.arange(30)


def found(features: dict[str, Any], dtype: Any = "float32", **options: Any) -> list[str]:
    table = pa.table({"y": np.arange(len(next(iter(features.values()))))} | features)
    model = ModelSpec(task="regression", dtype=dtype)
    columns = choose_columns(table.schema, DataSpec(train="rows.csv", label="y", **options), model)
    return findings(columns, model, scan_rows([table], columns, model, lambda row: f"row {row + 1}"))


CONSTANT = "the same value in all training rows: nothing to learn from, best left out of data.features"
INEXACT = "whole numbers that differ by less than float32 can tell; scale it, make it a category, or use float64"
COARSE = "values that differ by less than float32 can tell; scale it or use float64"
UNREADABLE = "that differ by less than float64 can tell; subtract a number near all of them"
TARGET = 'that differ by less than float32 can tell; set data.scale_target = "standard" or use float64'
HOUR = pa.array([1_700_000_000 + 60 * minute for minute in range(60)]).cast(pa.timestamp("s"))
YEAR = pa.array([1_700_000_000 + 86400 * day for day in range(365)]).cast(pa.timestamp("s"))


@pytest.mark.parametrize(
    ("features", "options", "told"),
    [
        ({"x": [1.0, 2.0], "k": ["a", "b"], "big": [0, 2**24]}, {}, []),
        ({"x": [5, 5]}, {}, [f"column 'x' has {CONSTANT}"]),
        ({"k": ["a", "a"]}, {}, [f"column 'k' has {CONSTANT}"]),
        ({"k": pa.array(["a", None])}, {"missing": "indicator"}, []),
        ({"x": pa.array([5, None])}, {"missing": "indicator"}, []),
        ({"x": pa.array([5, None])}, {"missing": "mean"}, [f"column 'x' has {CONSTANT}"]),
        ({"p": pa.array([[1, 2], [1, 3]], pa.list_(pa.int8(), 2))}, {}, []),
        ({"p": pa.array([[1, 2], [1, 2]], pa.list_(pa.int8(), 2))}, {}, [f"column 'p' has {CONSTANT}"]),
        ({"x": [1, 2**24 + 1]}, {}, [f"column 'x' has {INEXACT}"]),
        ({"x": [1, -(2**24) - 1]}, {}, [f"column 'x' has {INEXACT}"]),
        ({"x": [1, 2**24 + 1]}, {"dtype": "float64"}, []),
        ({"x": [1.5, 2.0**30]}, {}, []),
        ({"x": [2**40, 2**40 + 1]}, {"scale": "standard"}, []),
        ({"x": [0, 2**40]}, {"scale": "standard"}, [f"column 'x' has {INEXACT}"]),
        ({"x": [2**60, 2**60 + 1]}, {"scale": "standard"}, [f"column 'x' has whole numbers {UNREADABLE}, or make it a category"]),
        ({"x": [2**60, 2**60 + 1]}, {"dtype": "float64"}, [f"column 'x' has whole numbers {UNREADABLE}, or make it a category"]),
        ({"x": [2**30, 2**30]}, {}, [f"column 'x' has {CONSTANT}"]),
        ({"x": 1e6 + np.arange(30) / 30}, {}, [f"column 'x' has {COARSE}"]),
        ({"x": 1e6 + np.arange(30) / 30}, {"scale": "minmax"}, []),
        ({"x": 1e6 + np.arange(30) / 30}, {"dtype": "float64"}, []),
        ({"x": 1e4 + np.arange(30) / 30}, {}, []),
        ({"x": 1e12 + np.arange(30) / 1e4}, {"scale": "standard"}, [f"column 'x' has values {UNREADABLE}"]),
        ({"x": pa.array([[0.5, 1e6], [0.1, 1e6 + 1]], pa.list_(pa.float64(), 2))}, {}, [f"column 'x' has {COARSE}"]),
        (
            {"x": pa.array([[1, 2], [2**24 + 1, 0]], pa.list_(pa.int64(), 2))},
            {},
            ["column 'x' has whole numbers that differ by less than float32 can tell; scale it or use float64"],
        ),
        ({"x": HOUR}, {}, [f"column 'x' has {COARSE}"]),
        ({"x": HOUR}, {"scale": "standard"}, []),
        ({"x": HOUR}, {"columns": {"x": ColumnSpec(parts=("hour", "minute"))}}, []),
        ({"x": YEAR}, {}, []),
        ({"x": [1, 2], "y": [1, 2**24 + 1]}, {}, [f"column 'y' has whole numbers {TARGET}"]),
        ({"x": [1, 2], "y": [10**9, 10**9 + 1]}, {"scale_target": "standard"}, []),
        ({"x": np.arange(30), "y": 1e6 + np.arange(30) / 30}, {}, [f"column 'y' has values {TARGET}"]),
        ({"x": [1, 2], "y": [2**60, 2**60 + 1]}, {}, [f"column 'y' has whole numbers {UNREADABLE}"]),
        (
            {"x": [1, 2], "y": [0.5, 0.5]},
            {},
            ["column 'y' has the same value in all training rows: the only one that can be learnt"],
        ),
        ({"k": [f"id{number}" for number in IDS]}, {}, ["column 'k' has another category in every training row: "]),
        ({"k": [f"id{number % 29}" for number in IDS]}, {}, []),
        ({name: [1, 1] for name in "abcde"}, {}, [f"columns 'a', 'b', 'c' and 2 more have {CONSTANT}"]),
    ],
)
def test_what_is_odd_about_the_rows_is_told(features: dict[str, Any], options: dict[str, Any], told: list[str]) -> None:
    sentences = found(features, **options)

    assert len(sentences) == len(told)
    assert all(sentence.startswith(wanted) for sentence, wanted in zip(sentences, told, strict=True))


@pytest.mark.parametrize(
    ("output", "targets", "options", "told"),
    [
        ("sigmoid", [0.0, 1.0], {}, None),
        ("sigmoid", [0.0, 1.5], {}, "outside 0 to 1"),
        ("sigmoid", [0.0, 1.0], {"scale_target": "standard"}, "outside 0 to 1"),
        ("tanh", [-1.0, 1.0], {}, None),
        ("tanh", [-1.0, 1.0, 0.0], {"scale_target": "standard"}, "outside -1 to 1"),
        ("tanh", [-1.5, 1.0], {}, "outside -1 to 1"),
        ("relu", [0.0, 1e9], {}, None),
        ("relu", [-0.5, 1.0], {}, "below 0"),
        ("identity", [-1e9, 1e9], {}, None),
    ],
)
def test_targets_that_no_output_reaches_are_told_of(output: Any, targets: list[float], options: Any, told: str | None) -> None:
    table = pa.table({"x": np.arange(len(targets)), "y": targets})
    model = ModelSpec(task="regression", output=output)
    columns = choose_columns(table.schema, DataSpec(train="rows.csv", label="y", **options), model)

    sentences = findings(columns, model, scan_rows([table], columns, model, str))

    expected = f"column 'y' has targets {told}, which model.output = \"{output}\" never gives; use another output"
    assert sentences == ([] if told is None else [expected])


def test_rows_without_a_label_are_counted() -> None:
    table = pa.table({"x": [1, 2, 3], "y": pa.array([None, "a", "b"])})
    model = ModelSpec(task="binary")
    columns = choose_columns(table.schema, DataSpec(train="rows.csv", label="y", unlabelled="ignore"), model)

    told = findings(columns, model, scan_rows([table], columns, model, lambda row: f"row {row + 1}"))

    assert told == ["1 of 3 training rows have no label; they are read and weigh nothing"]


def test_a_row_that_lacks_one_of_several_targets_is_one_without_a_label() -> None:
    table = pa.table({"x": [1, 2, 3, 4], "y": [None, 1.0, 2.0, None], "z": [0.5, None, float("nan"), 4.0]})
    model = ModelSpec(task="regression")
    columns = choose_columns(table.schema, DataSpec(train="rows.csv", label=("y", "z"), unlabelled="ignore"), model)
    halves = (scan_rows([half], columns, model, str) for half in (table.slice(0, 2), table.slice(2)))

    told = findings(columns, model, scan_sum(halves, columns))

    assert told == ["4 of 4 training rows have no label; they are read and weigh nothing"]
