from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from coordinator.findings import findings
from worker.choice import choose_columns
from worker.data import DataSpec
from worker.model import ModelSpec
from worker.scan import scan_rows

IDS = np.arange(30)


def found(features: dict[str, Any], dtype: Any = "float32", **options: Any) -> list[str]:
    table = pa.table(features | {"y": np.zeros(len(next(iter(features.values()))))})
    model = ModelSpec(task="regression", dtype=dtype)
    columns = choose_columns(table.schema, DataSpec(train="rows.csv", label="y", **options), model)
    return findings(columns, model, scan_rows([table], columns, model, lambda row: f"row {row + 1}"))


CONSTANT = "the same value in all training rows: nothing can be learnt of it; leave it out of data.features"
INEXACT = "whole numbers that differ by less than float32 can tell; scale it, make it a category, or use float64"


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
        ({"k": [f"id{number}" for number in IDS]}, {}, ["column 'k' has another category in every training row: "]),
        ({"k": [f"id{number % 29}" for number in IDS]}, {}, []),
        ({name: [1, 1] for name in "abcde"}, {}, [f"columns 'a', 'b', 'c' and 2 more have {CONSTANT}"]),
    ],
)
def test_what_is_odd_about_the_rows_is_told(features: dict[str, Any], options: dict[str, Any], told: list[str]) -> None:
    sentences = found(features, **options)

    assert len(sentences) == len(told)
    assert all(sentence.startswith(wanted) for sentence, wanted in zip(sentences, told, strict=True))


def test_rows_without_a_label_are_counted() -> None:
    table = pa.table({"x": [1, 2, 3], "y": pa.array([None, "a", "b"])})
    model = ModelSpec(task="binary")
    columns = choose_columns(table.schema, DataSpec(train="rows.csv", label="y", unlabelled="ignore"), model)

    told = findings(columns, model, scan_rows([table], columns, model, lambda row: f"row {row + 1}"))

    assert told == ["1 of 3 training rows have no label; they are read and weigh nothing"]
