"""Held against scikit-learn on the same tables, fitted in one shard and in three."""

from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, StandardScaler

from worker.arrays import Floats
from worker.choice import choose_columns
from worker.data import ColumnSpec, DataSpec
from worker.encoding import Encoding
from worker.errors import DataError, JobError
from worker.model import ModelSpec
from worker.scan import scan_rows, scan_sum

REGRESSION = ModelSpec(task="regression")
ROWS = 500


def where(row: int) -> str:
    return f"rows.csv: row {row + 1}"


def fit(features: dict[str, Any], shards: int = 3, **options: Any) -> Encoding:
    table = pa.table(features | {"y": np.zeros(len(next(iter(features.values()))))})
    columns = choose_columns(table.schema, DataSpec(train="rows.csv", label="y", **options), REGRESSION)
    bounds = np.linspace(0, table.num_rows, shards + 1).astype(int)
    parts = [table.slice(first, last - first) for first, last in pairwise(bounds)]
    scan = scan_sum((scan_rows([part], columns, REGRESSION, where) for part in parts), columns)
    return Encoding.fit(columns, REGRESSION, scan)


def encoded(encoding: Encoding, features: dict[str, Any]) -> Floats:
    return encoding.features(pa.table(features), where, "float64")


def gappy_matrix(rows: int = ROWS) -> Floats:
    draws = np.random.default_rng(1)
    values = np.round(draws.normal([0, 1e3, -20, 5e3], [1, 10, 1e2, 700], (rows, 4)))
    values[draws.random((rows, 4)) < [0.2, 0.0, 0.01, 0.5]] = np.nan
    return values


def as_columns(values_NF: Floats) -> dict[str, Any]:
    return {f"x{place}": pa.array(column, from_pandas=True) for place, column in enumerate(values_NF.T)}


# Numbers


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(("scale", "scaler"), [("none", None), ("standard", StandardScaler()), ("minmax", MinMaxScaler())])
@pytest.mark.parametrize("missing", ["mean", "median", "constant"])
def test_gaps_are_filled_and_numbers_scaled_as_by_scikit_learn(missing: Any, scale: Any, scaler: Any, shards: int) -> None:
    training, other = gappy_matrix(), gappy_matrix(40)[::-1]
    encoding = fit(as_columns(training), shards, missing=missing, scale=scale, fill=7.0)
    imputer = SimpleImputer(strategy=missing, fill_value=7.0).fit(training)
    # Scaling goes by the values that are there, as scikit-learn's does where it is fitted to gaps.
    expected = imputer.transform(other) if scaler is None else scaler.fit(training).transform(imputer.transform(other))

    np.testing.assert_allclose(encoded(encoding, as_columns(other)), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("values", [[1e-170, 2e-170], [1e300, -1e300]])
def test_numbers_whose_deviation_float64_cannot_tell_are_not_standardised(values: list[float]) -> None:
    with pytest.raises(JobError, match=r"^data\.features: column 'x' has numbers too large, or too close together, for what is"):
        fit({"x": values}, shards=1, scale="standard")

    found = encoded(fit({"x": [1e-170, 2e-170]}, shards=1, scale="minmax"), {"x": [1e-170, 2e-170]})

    assert found.tolist() == [[0], [1]]


def test_an_indicator_says_which_values_were_missing() -> None:
    training, other = gappy_matrix(), gappy_matrix(40)[::-1]
    encoding = fit(as_columns(training), missing="indicator")

    found = encoded(encoding, as_columns(other))

    assert encoding.input_names == ["x0", "x0[missing]", "x1", "x2", "x2[missing]", "x3", "x3[missing]"]
    np.testing.assert_allclose(found[:, [0, 2, 3, 5]], SimpleImputer().fit(training).transform(other))
    assert found[:, [1, 4, 6]].tolist() == MissingIndicator().fit(training).transform(other).tolist()


def test_nan_and_null_are_the_same_gap_in_floats_whole_numbers_booleans_lists_and_dates() -> None:
    features = {
        "float": pa.array([1.0, float("nan"), None]),
        "whole": pa.array([5, None, 7], pa.int8()),
        "flag": pa.array([True, None, True]),
        "list": pa.array([[1, 2], [None, 4], None], pa.list_(pa.int16(), 2)),
        "date": pa.array([10, None, 20], pa.int32()).cast(pa.date32()),
        "dictionary": pa.array([2.5, None, 2.5]).dictionary_encode(),
    }

    found = encoded(fit(features, missing="mean"), features)

    assert found.tolist() == [
        [1, 5, 1, 1, 2, 10, 2.5],
        [1, 6, 1, 1, 4, 15, 2.5],
        [1, 7, 1, 1, 3, 20, 2.5],
    ]


def test_parts_of_dates_are_filled_and_scaled_each_by_itself() -> None:
    features = {"when": pa.array([0, 36 * 3600, None], pa.timestamp("s"))}
    encoding = fit(
        features, shards=1, columns={"when": ColumnSpec(parts=("days", "hour"), missing="mean", scale="minmax", cyclical=True)}
    )

    assert encoding.input_names == ["when[days]", "when[hour sin]", "when[hour cos]"]
    np.testing.assert_allclose(encoded(encoding, features), [[0, 0, 1], [1, 1, 0], [0.5, 0.5, 0.5]], atol=1e-12)


def test_a_gap_that_training_did_not_show_is_filled_without_an_indicator() -> None:
    encoding = fit({"x": [1.0, 3.0]}, shards=1, missing="indicator")

    assert encoded(encoding, {"x": pa.array([None, 1.0])}).tolist() == [[2.0], [1.0]]


def test_a_gap_where_none_is_allowed_is_named() -> None:
    encoding = fit({"x": [1.0, 3.0], "z": [1.0, None]}, shards=1, columns={"z": ColumnSpec(missing="mean")})

    with pytest.raises(DataError, match=r"^rows\.csv: row 2, column 'x' has no value \(null\); "):
        encoded(encoding, {"x": pa.array([1.0, None]), "z": pa.array([1.0, None])})


@pytest.mark.parametrize("values", [pa.array([None, None], pa.float64()), pa.nulls(2), pa.array([None, None], pa.string())])
def test_a_column_without_any_value_is_refused(values: pa.Array) -> None:
    for kind in ("number", "category") if pa.types.is_null(values.type) else (None,):
        with pytest.raises(JobError, match=r"^data\.features: column 'x' has no value in any training row; leave it out"):
            fit({"x": values}, shards=1, missing="mean", columns={"x": ColumnSpec(kind=kind)})


@pytest.mark.parametrize("trained", [[1, 2, None], [True, False, None], ["a", "b", None]])
def test_a_column_of_categories_may_be_without_any_value_in_another_table(trained: list[Any]) -> None:
    encoding = fit({"x": trained}, shards=1, columns={"x": ColumnSpec(kind="category", missing="indicator")})

    assert encoded(encoding, {"x": pa.nulls(2)}).tolist() == [[0, 0, 1], [0, 0, 1]]


def test_all_gaps_of_another_table_are_filled() -> None:
    encoding = fit({"x": [1.0, 3.0], "t": pa.array([0, 86400], pa.timestamp("s")), "k": ["a", "b"]}, shards=1, missing="mean")

    assert encoded(encoding, {"x": pa.nulls(1), "t": pa.nulls(1), "k": pa.nulls(1)}).tolist() == [[2.0, 0.5, 0.0, 0.0]]


# Categories


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    "values",
    [
        pa.array(np.random.default_rng(1).choice(["ant", "bee", "cat", "dog"], ROWS)),
        pa.array(np.random.default_rng(1).choice(["ant", "bee", "cat", "dog"], ROWS)).dictionary_encode(),
        pa.array(np.random.default_rng(1).integers(-5, 5, ROWS)),
        pa.array(np.random.default_rng(1).random(ROWS) < 0.3),
    ],
    ids=lambda values: str(values.type),
)
def test_categories_have_an_input_each_as_by_scikit_learn(values: pa.Array, shards: int) -> None:
    encoding = fit({"x": values}, shards, columns={"x": ColumnSpec(kind="category")})
    expected = OneHotEncoder(sparse_output=False).fit_transform(np.array(values.to_pylist())[:, np.newaxis])

    assert encoded(encoding, {"x": values}).tolist() == expected.tolist()


@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_rare_and_unseen_categories_share_an_input_as_by_scikit_learn(most: int) -> None:
    training = np.array(list("aaaabbbccd"))[:, np.newaxis]
    other = np.array(list("dcbaz"))[:, np.newaxis]
    # scikit-learn counts the shared input among the most.
    oracle = OneHotEncoder(max_categories=most + 1, handle_unknown="infrequent_if_exist", sparse_output=False).fit(training)

    encoding = fit({"x": training[:, 0]}, categories=most)

    assert encoded(encoding, {"x": other[:, 0]}).tolist() == oracle.transform(other).tolist()


@pytest.mark.parametrize(
    ("options", "names", "codes"),
    [
        ({}, ["x=a", "x=b", "x=(other)", "x=(missing)"], [0, 1, 2, 3, 2]),
        ({"missing": "constant", "fill": "b"}, ["x=a", "x=b", "x=(other)"], [0, 1, 2, 1, 2]),
        ({"missing": "constant", "fill": "?"}, ["x=?", "x=a", "x=(other)"], [1, 2, 2, 0, 2]),
        ({"missing": "constant"}, ["x=a", "x=b", "x=(other)", "x=(missing)"], [0, 1, 2, 3, 2]),
    ],
)
def test_a_missing_category_is_one_of_its_own_or_the_one_that_is_named(
    options: dict[str, Any], names: list[str], codes: list[int]
) -> None:
    training = {"x": pa.array(["a", "a", "a", "b", "b", None, None, None, "c"])}
    encoding = fit(training, missing="mean", columns={"x": ColumnSpec(categories=2, **options)})

    found = encoded(encoding, {"x": pa.array(["a", "b", "c", None, "z"])})

    assert encoding.input_names == names
    assert found.argmax(axis=1).tolist() == codes
    assert found.sum(axis=1).tolist() == [1] * 5


def test_whole_numbers_with_gaps_can_be_categories() -> None:
    features = {"x": pa.array([3, None, 3, 8])}
    encoding = fit(features, columns={"x": ColumnSpec(kind="category", missing="constant", fill=8.0)})

    assert encoding.input_names == ["x=3", "x=8"]
    assert encoded(encoding, features).tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert encoded(encoding, {"x": pa.array([3.0, 8.0])}).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(("fill", "shown"), [(0.0, [[1, 0], [0, 1], [1, 0]]), (1.0, [[1, 0], [0, 1], [0, 1]])])
def test_booleans_with_gaps_can_be_categories(fill: float, shown: list[list[int]]) -> None:
    features = {"x": pa.array([False, True, None])}
    encoding = fit(features, columns={"x": ColumnSpec(kind="category", missing="constant", fill=fill)})

    assert encoding.input_names == ["x=False", "x=True"]
    for values in (features["x"], pa.array([0.0, 1.0, None]), pa.array([Decimal("0.00"), Decimal("1.00"), None])):
        assert encoded(encoding, {"x": values}).tolist() == shown


def test_whole_numbers_that_became_floating_point_for_their_gaps_are_still_categories() -> None:
    encoding = fit({"x": pa.array([3, None, 8])}, shards=1, columns={"x": ColumnSpec(kind="category", missing="indicator")})

    assert encoding.input_names == ["x=3", "x=8", "x=(missing)"]
    for precision in (np.float16, np.float32, np.float64):
        assert encoded(encoding, {"x": np.array([8.0, np.nan], precision)}).tolist() == [[0, 1, 0], [0, 0, 1]]
    with pytest.raises(DataError, match=r"^rows\.csv: row 2, column 'x': 3\.5 is no class; accepted are whole numbers"):
        encoded(encoding, {"x": [3.0, 3.5]})


def test_whole_numbers_beyond_64_bits_with_a_sign_are_no_categories() -> None:
    largest = {"x": pa.array([1, 2**63 - 1], pa.uint64())}
    encoding = fit(largest, shards=1, columns={"x": ColumnSpec(kind="category")})

    assert encoding.input_names == ["x=1", f"x={2**63 - 1}"]
    with pytest.raises(DataError, match=rf"^rows\.csv: row 2, column 'x': {2**63} is no class; accepted are whole numbers from "):
        encoded(encoding, {"x": pa.array([1, 2**63], pa.uint64())})


def test_what_was_never_seen_in_training_is_0_in_all_inputs() -> None:
    encoding = fit({"x": ["a", "b"]}, shards=1, missing="indicator")

    assert encoded(encoding, {"x": pa.array(["b", "z", None])}).tolist() == [[0, 1], [0, 0], [0, 0]]


def test_no_category_is_taken_for_all_others_or_for_missing_ones() -> None:
    values = ["(other)"] * 4 + ["(missing)"] * 3 + ["'(other)'"] * 2 + ["a", None]
    encoding = fit({"x": pa.array(values)}, shards=1, missing="indicator", categories=3)

    assert encoding.input_names == ["""x="'(other)'\"""", "x='(missing)'", "x='(other)'", "x=(other)", "x=(missing)"]
    assert encoded(encoding, {"x": pa.array(["(other)", "(missing)", "a", None])}).argmax(axis=1).tolist() == [2, 1, 3, 4]


def test_numbers_and_categories_stand_side_by_side_in_the_order_of_the_columns() -> None:
    features = {"a": [1.0, 2.0, 3.0], "k": ["x", "y", "x"], "b": pa.array([None, 5.0, 7.0])}
    encoding = fit(features, shards=1, columns={"b": ColumnSpec(missing="indicator", scale="minmax")})

    assert encoding.input_names == ["a", "k=x", "k=y", "b", "b[missing]"]
    assert encoded(encoding, features).tolist() == [[1, 1, 0, 0.5, 1], [2, 0, 1, 0, 0], [3, 1, 0, 1, 0]]
