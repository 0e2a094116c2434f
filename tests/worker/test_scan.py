import pickle
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.choice import choose_columns
from worker.columns import Columns
from worker.data import ColumnSpec, DataSpec
from worker.errors import DataError, JobError
from worker.model import ModelSpec
from worker.scan import BLOCK_VALUES, MOST_CATEGORIES, Scan, rechunk, scan_rows, scan_sum
from worker.statistics import Counts, Statistics

CLASSIFICATION, REGRESSION = ModelSpec(task="classification"), ModelSpec(task="regression")


def where(row: int) -> str:
    return f"rows.csv: row {row + 1}"


def columns_of(table: pa.Table, model: ModelSpec, **options: Any) -> Columns:
    return choose_columns(table.schema, DataSpec(train="rows.csv", label="y", **options), model)


def mixed_table(rows: int) -> pa.Table:
    draws = np.random.default_rng(1)
    return pa.table(
        {
            "number": pa.array(draws.normal(5, 3, rows), mask=draws.random(rows) < 0.1),
            "pixels": pa.FixedSizeListArray.from_arrays(draws.integers(0, 256, 3 * rows).astype(np.uint8), 3),
            "kind": pa.array(draws.choice(["ant", "bee", "cat"], rows), mask=draws.random(rows) < 0.1),
            "when": pa.array([datetime(2024, 1, 1) + timedelta(hours=int(hour)) for hour in draws.integers(0, 9999, rows)]),
            "y": draws.choice(["yes", "no"], rows),
        }
    )


def same(left: Scan, right: Scan) -> bool:
    """Returns whether two scans are the same to the bit."""
    return pickle.dumps(left) == pickle.dumps(right)


def test_a_scan_is_the_same_to_the_bit_in_whatever_pieces_the_rows_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.scan.BLOCK_VALUES", 0)  # blocks as small as they get
    table = mixed_table(1500)
    columns = columns_of(table, CLASSIFICATION, scale="standard", missing="median")
    whole = scan_rows([table], columns, CLASSIFICATION, where)

    for size in (1, 7, 256, 1000):
        pieces = [table.slice(first, size) for first in range(0, 1500, size)]
        assert same(scan_rows(pieces, columns, CLASSIFICATION, where), whole)
    assert same(scan_rows([table.slice(0, 0), table], columns, CLASSIFICATION, where), whole)


@given(sizes=st.lists(st.integers(0, 9), max_size=12), rows=st.integers(1, 8))
def test_rows_are_cut_anew_in_order(sizes: list[int], rows: int) -> None:
    numbers = iter(range(200))
    tables = [pa.table({"x": pa.array([next(numbers) for _ in range(size)], pa.int64())}) for size in sizes]

    found = [table["x"].to_pylist() for table in rechunk(tables, rows)]

    assert [number for numbers in found for number in numbers] == list(range(sum(sizes)))
    assert all(len(numbers) == rows for numbers in found[:-1])


def test_scans_tell_of_gaps_categories_classes_and_targets() -> None:
    table = pa.table({"x": [1.0, None, 3.0], "kind": ["b", "a", None], "y": [1, 1, 0]})

    found = scan_rows([table], columns_of(table, CLASSIFICATION, missing="mean"), CLASSIFICATION, where)
    numbers, kinds = found.features

    assert isinstance(numbers, Statistics)
    assert (numbers.rows, numbers.count_V.tolist(), numbers.mean_V.tolist()) == (3, [2], [2.0])
    assert kinds == Counts({"a": 1, "b": 1}, 1)
    assert (found.classes, found.targets) == (Counts({0: 1, 1: 2}), ())
    (targets,) = scan_rows([table], columns_of(table, REGRESSION, missing="mean"), REGRESSION, where).targets
    assert (targets.low_V.tolist(), targets.high_V.tolist()) == ([0.0], [1.0])


@pytest.mark.parametrize("missing", ["error", "mean"])
@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([1.0, 2.0, float("inf")], "column 'x': inf is not a finite float32 number; mend or leave out the row"),
        (pa.array([[1.0, 2.0], [0.0, 0.0], [3.0, -np.inf]], pa.list_(pa.float32(), 2)), "column 'x[1]': -inf is not a finite"),
    ],
)
def test_an_infinity_is_named_by_file_row_and_column(values: Any, problem: str, missing: Any) -> None:
    table = pa.table({"x": values, "y": [1, 2, 3]})

    with pytest.raises(DataError) as caught:
        scan_rows([table.slice(0, 1), table.slice(1)], columns_of(table, REGRESSION, missing=missing), REGRESSION, where)

    assert str(caught.value).startswith(f"rows.csv: row 3, {problem}")


@pytest.mark.parametrize("column", [[1.0, 2.0, None], ["a", "b", None], [1.0, 2.0, float("nan")]])
def test_what_is_missing_where_nothing_may_be_is_named(column: list[Any]) -> None:
    table = pa.table({"x": column, "y": [1, 2, 3]})

    with pytest.raises(DataError, match=r"^rows\.csv: row 3, column 'x'(:| has no value \(null\);) "):
        scan_rows([table], columns_of(table, REGRESSION), REGRESSION, where)


def test_an_unknown_time_zone_is_told_of_by_file_and_column() -> None:
    table = pa.table({"x": pa.array([0], pa.timestamp("s", "Mars/Base")), "y": [1]})

    with pytest.raises(DataError, match=r"^rows\.csv: row 1, column 'x': .*Mars/Base"):
        scan_rows([table], columns_of(table, REGRESSION), REGRESSION, where)


@pytest.mark.parametrize("days", [2**31 - 1, -(2**31)])
def test_a_date_whose_year_arrow_would_get_wrong_has_no_parts(days: int) -> None:
    table = pa.table({"x": pa.array([0, days], pa.int32()).cast(pa.date32()), "y": [1, 2]})
    parts = {"x": ColumnSpec(parts=("month",))}

    with pytest.raises(DataError, match=r"^rows\.csv: row 2, column 'x': the year of -?58\d+-\d\d-\d\d is out of reach of parts"):
        scan_rows([table], columns_of(table, REGRESSION, columns=parts), REGRESSION, where)

    assert scan_rows([table], columns_of(table, REGRESSION), REGRESSION, where).features[0].rows == 2


@pytest.mark.parametrize("together", [True, False])
def test_too_many_categories_are_refused_alike_in_one_shard_and_in_several(together: bool) -> None:
    table = pa.table({"x": np.arange(MOST_CATEGORIES + 1), "y": np.zeros(MOST_CATEGORIES + 1)})
    columns = columns_of(table, REGRESSION, columns={"x": ColumnSpec(kind="category")})
    shards = [table] if together else [table.slice(0, 7), table.slice(7)]

    with pytest.raises(JobError, match=r"^data\.features: column 'x' has more than 100,000 different values"):
        scan_sum((scan_rows([shard], columns, REGRESSION, where) for shard in shards), columns)


def test_blocks_of_wide_rows_are_small() -> None:
    assert BLOCK_VALUES * 8 <= 32 << 20
