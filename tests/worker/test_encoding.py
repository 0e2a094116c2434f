import pickle
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from worker.arrays import Floats
from worker.choice import choose_columns
from worker.data import DataSpec
from worker.encoding import BLOCK_ROWS, Encoding, Treatment
from worker.errors import DataError, JobError
from worker.model import ModelSpec
from worker.scan import scan_rows, scan_sum

REGRESSION, BINARY, CLASSIFICATION = (ModelSpec(task=task) for task in ("regression", "binary", "classification"))
ROWS = 2 * BLOCK_ROWS + 37
"""More than are converted at once."""


def where(row: int) -> str:
    return f"rows.csv: row {row + 1}"


def fit(table: pa.Table, model: ModelSpec = REGRESSION, label: str | tuple[str, ...] = "y", **options: Any) -> Encoding:
    columns = choose_columns(table.schema, DataSpec(train="rows.csv", label=label, **options), model)
    return Encoding.fit(columns, model, scan_rows([table], columns, model, where))


def with_label(features: Any, *, label: str = "y") -> pa.Table:
    table = features if isinstance(features, pa.Table) else pa.table(features)
    return table.append_column(label, pa.array(np.arange(table.num_rows, dtype=np.float64)))


def matrix_table(values_NF: Floats) -> pa.Table:
    return with_label({f"x{place}": values_NF[:, place] for place in range(values_NF.shape[1])})


def labelled(labels: pa.Array) -> pa.Table:
    return pa.table({"x": np.zeros(len(labels)), "y": labels})


def random_matrix(rows: int = ROWS) -> Floats:
    """Returns features of very different places and sizes."""
    return np.random.default_rng(1).normal([0, 1e3, -2e-3, 5e6], [1, 10, 1e-3, 7], (rows, 4))


# Features


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_booleans_decimals_and_lists_become_a_row_of_inputs(dtype: str) -> None:
    table = pa.table(
        {
            "half": pa.array(np.array([0.5, 1.5, -2.0], np.float16)),
            "count": pa.array([3, -4, 5], pa.int8()),
            "flag": [True, False, True],
            "price": [Decimal("1.25"), Decimal("-2.50"), Decimal("100")],
            "pixels": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.uint8(), 2)),
            "marks": pa.array([[True, False], [False, False], [False, True]], pa.list_(pa.bool_(), 2)),
            "level": pa.array([0.1, 0.2, 0.1]).dictionary_encode(),
            "when": pa.array([date(1970, 1, 2), date(1970, 1, 1), date(1969, 12, 31)]),
        }
    )
    expected = [
        [0.5, 3, 1, 1.25, 1, 2, 1, 0, 0.1, 1],
        [1.5, -4, 0, -2.5, 3, 4, 0, 0, 0.2, 0],
        [-2.0, 5, 1, 100, 5, 6, 0, 1, 0.1, -1],
    ]
    encoding = fit(with_label(table))
    halves = [table.slice(0, 1), table.slice(1)]

    found = encoding.features(table, where, dtype)

    assert found.dtype == dtype
    assert np.array_equal(found, np.array(expected, dtype))
    assert np.array_equal(encoding.features(pa.concat_tables(halves), where, dtype), found)
    assert np.array_equal(np.vstack([encoding.features(half, where, dtype) for half in halves]), found)


def test_chunks_whose_dictionaries_differ_are_one_column() -> None:
    chunks = [pa.array(values).dictionary_encode() for values in ([3.0, 1.0], [2.0, 3.0])]
    table = pa.table({"x": pa.chunked_array(chunks)})

    assert fit(with_label(table)).features(table, where, "float64").tolist() == [[3.0], [1.0], [2.0], [3.0]]


@pytest.mark.parametrize("scale", ["none", "standard", "minmax"])
@pytest.mark.parametrize(
    ("values", "column", "shown"),
    [
        (pa.array([1.0] * (ROWS - 1) + [None]), "x", "null"),
        (pa.array([True] * (ROWS - 1) + [None]), "x", "null"),
        (pa.array([1.0] * (ROWS - 1) + [None]).dictionary_encode(), "x", "null"),
        (pa.DictionaryArray.from_arrays([0] * (ROWS - 1) + [1], pa.array([1.5, None])), "x", "null"),
        (pa.array([1.0] * (ROWS - 1) + [float("nan")]), "x", "nan"),
        (pa.array([1.0] * (ROWS - 1) + [float("-inf")]), "x", "-inf"),
        (pa.array([[1.0, 2.0]] * (ROWS - 1) + [[3.0, float("nan")]], pa.list_(pa.float32(), 2)), "x[1]", "nan"),
        (pa.array([[1.0, 2.0]] * (ROWS - 1) + [[3.0, None]], pa.list_(pa.float32(), 2)), "x", "null"),
        (pa.array([[1.0, 2.0]] * (ROWS - 1) + [None], pa.list_(pa.float32(), 2)), "x", "null"),
    ],
)
def test_a_feature_without_a_finite_value_is_named_by_file_row_and_column(
    values: pa.Array, column: str, shown: str, scale: Any
) -> None:
    bad = pa.table({"other": np.ones(ROWS), "x": values})
    encoding = fit(with_label(bad.slice(0, ROWS - 1)), scale=scale)

    with pytest.raises(DataError) as caught:
        encoding.features(bad, where, "float32")

    assert str(caught.value).startswith(f"rows.csv: row {ROWS}, column '{column}")
    assert shown in str(caught.value)


@pytest.mark.parametrize("scale", ["none", "standard", "minmax"])
def test_a_number_too_large_for_the_models_precision_is_named(scale: Any) -> None:
    encoding = fit(with_label({"other": np.arange(3.0), "x": np.arange(3.0)}), scale=scale)
    large = pa.table({"other": np.zeros(2), "x": [1.0, -1e300]})

    with pytest.raises(DataError, match=r"^rows\.csv: row 2, column 'x': -1e\+300 is not a finite float32 number; "):
        encoding.features(large, where, "float32")

    assert np.isfinite(encoding.features(large, where, "float64")).all()


@pytest.mark.parametrize("scale", ["standard", "minmax"])
def test_what_cannot_be_scaled_is_named_when_the_training_rows_are_scanned(scale: Any) -> None:
    with pytest.raises(DataError, match=r"^rows\.csv: row 3, column 'x1': nan is not a finite float32 number"):
        fit(matrix_table(np.array([[1.0, 2.0], [3.0, 4.0], [5.0, np.nan]])), scale=scale)


# Scaling


@pytest.mark.parametrize("scale", ["none", "standard"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"a": pa.array([1, 2, 250], pa.uint8()), "b": pa.array([True, False, True])}, "uint8"),
        ({"a": pa.array([[1, 2], [3, 4], [5, 250]], pa.list_(pa.uint8(), 2)), "b": pa.array([-3, 2, 9], pa.int8())}, "int16"),
        ({"a": pa.array([-300, 2, 3], pa.int16()), "b": ["ant", "bee", "ant"]}, "int16"),
        ({"a": pa.array(np.array([0.5, 65504, -7], np.float16)), "b": pa.array([1, 2, 250], pa.uint8())}, "float16"),
        ({"a": pa.array(np.array([0.5, 2, -7], np.float16)), "b": pa.array([1, 2, 300], pa.int16())}, "float32"),
        ({"a": pa.array([0.1, 2, 3], pa.float32())}, "float32"),
        ({"a": pa.array([1, 2, 1 << 30], pa.int32())}, "int32"),
        ({"a": pa.array([1, 2, 3], pa.int64())}, "int64"),
        ({"a": pa.array([1, 2, 3], pa.uint8()), "b": [date(2020, 1, 1), date(2021, 1, 1), date(2022, 2, 2)]}, "float64"),
        ({"b": ["ant", "bee", "ant"]}, "bool"),
    ],
)
def test_inputs_kept_raw_in_a_narrower_type_become_the_very_same_ones(
    columns: dict[str, Any], expected: str, dtype: str, scale: str
) -> None:
    table = with_label(columns)
    encoding = fit(table, scale=scale)
    narrower = np.dtype(expected).itemsize < np.dtype(dtype).itemsize

    raw = encoding.raw_type(table.schema, dtype)

    assert raw == (expected if narrower else None)
    if raw is not None:
        raw_NF, x_NF = (np.empty((3, len(encoding.input_names)), kind) for kind in (raw, dtype))
        encoding.fill_raw(raw_NF, table, where)
        Treatment(encoding.inputs).convert(raw_NF, x_NF)
        assert x_NF.tobytes() == encoding.features(table, where, dtype).tobytes()
        assert encoding.row_bytes(dtype, raw) < encoding.row_bytes(dtype)


def test_inputs_with_gaps_are_not_kept_raw() -> None:
    table = with_label({"a": pa.array([1, None, 250], pa.uint8())})

    assert fit(table, missing="mean").raw_type(table.schema, "float32") is None


def test_a_raw_number_that_is_none_is_told_by_its_place() -> None:
    table = with_label({"a": pa.array(np.array([0.5, 2, 1], np.float16)), "b": pa.array(np.array([1, 2, 3], np.float16))})
    encoding, raw_NF = fit(table), np.empty((3, 2), np.float16)
    bad = table.set_column(1, "b", pa.array(np.array([1, np.inf, 3], np.float16)))

    with pytest.raises(DataError, match=r"^rows\.csv: row 2, column 'b': inf is not a finite float16 number"):
        encoding.fill_raw(raw_NF, bad, where)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("scale", "scaler"), [("standard", StandardScaler()), ("minmax", MinMaxScaler())])
def test_features_are_scaled_as_by_scikit_learn(scale: Any, scaler: Any, dtype: str) -> None:
    training, other = random_matrix(549), random_matrix(50) * 1.5
    encoding = fit(matrix_table(training), scale=scale)
    scaler.fit(training)

    for values in (training, other):
        found = encoding.features(matrix_table(values), where, dtype)
        assert found.dtype == dtype
        tolerance = 1e-9 if dtype == "float64" else 1e-6
        np.testing.assert_allclose(found, scaler.transform(values), rtol=tolerance, atol=tolerance)


def test_nothing_is_scaled_unless_asked_for() -> None:
    values = random_matrix()

    assert np.array_equal(fit(matrix_table(values)).features(matrix_table(values), where, "float64"), values)


@pytest.mark.parametrize("scale", ["standard", "minmax"])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e-9, 1e6 / 3, 123456789.1])
def test_a_feature_that_never_changes_is_shifted_and_not_scaled(value: float, scale: Any) -> None:
    data = DataSpec(train="rows.csv", label="y", scale=scale)
    columns = choose_columns(matrix_table(np.zeros((1, 1))).schema, data, REGRESSION)
    shards = [matrix_table(np.full((rows, 1), value)) for rows in (7, 3, 11)]
    scan = scan_sum((scan_rows([shard], columns, REGRESSION, where) for shard in shards), columns)
    encoding = Encoding.fit(columns, REGRESSION, scan)

    found = encoding.features(matrix_table(np.array([[value], [value + 2.0]])), where, "float64")

    np.testing.assert_allclose(found, [[0.0], [2.0]], atol=1e-7)


# Labels


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (pa.array([30, -1, 30, 7], pa.int16()), (-1, 7, 30), [2, 0, 2, 1]),
        (pa.array([30, 1, 30, 7], pa.uint64()), (1, 7, 30), [2, 0, 2, 1]),
        (pa.array(["b", "a", "ä", "B"]), ("B", "a", "b", "ä"), [2, 1, 3, 0]),
        (pa.array(["b", "a", "b"], pa.large_string()), ("a", "b"), [1, 0, 1]),
        (pa.array(["b", "a", "b"], pa.string_view()), ("a", "b"), [1, 0, 1]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ("a", "b"), [1, 0, 1]),
        (pa.array(["b", "a", "b"], pa.large_string()).dictionary_encode(), ("a", "b"), [1, 0, 1]),
        (pa.array([8, 3, 8]).dictionary_encode(), (3, 8), [1, 0, 1]),
        (pa.array([True, False, True]), (False, True), [1, 0, 1]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_labels_become_the_numbers_of_their_sorted_classes(
    labels: pa.Array, classes: tuple[Any, ...], numbers: list[int]
) -> None:
    encoding = fit(labelled(labels), CLASSIFICATION)

    assert encoding.label.classes == classes
    assert [type(label) for label in encoding.label.classes] == [type(label) for label in classes]
    assert encoding.outputs == len(classes)
    assert encoding.targets(labelled(labels), where, "float32").tolist() == numbers


@pytest.mark.parametrize("labels", [[3, 7, 3], ["no", "yes", "no"], [False, True, False]])
def test_a_binary_task_has_one_output_for_two_classes(labels: list[Any]) -> None:
    encoding = fit(labelled(pa.array(labels)), BINARY)

    assert encoding.outputs == 1
    assert encoding.label.of(labelled(pa.array(labels)), where, "float32").tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("model", "labels", "message"),
    [
        (
            CLASSIFICATION,
            ["a", "a"],
            "data.label: column 'y' has only one class in the training rows ('a'); at least 2 are needed",
        ),
        (BINARY, [True, True], "data.label: column 'y' has only one class in the training rows (True); at least 2 are needed"),
        (
            BINARY,
            [1, 2, 3, 4, 5, 6],
            "model.task: binary takes a label of 2 classes, but column 'y' has 6 (1, 2, 3, 4, 5, …); use classification",
        ),
    ],
)
def test_classes_that_do_not_fit_the_task_are_refused(model: ModelSpec, labels: list[Any], message: str) -> None:
    with pytest.raises(JobError) as caught:
        fit(labelled(pa.array(labels)), model)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("trained", "other", "problem"),
    [
        (pa.array(["a", "b"]), pa.array(["b", "a", "c"]), "class 'c' does not occur in the training rows"),
        (pa.array(["a", "b"]), pa.array(["b", "a", "c"]).dictionary_encode(), "class 'c' does not occur"),
        (pa.array([1, 2]), pa.array([1, 2, 3], pa.int8()), "class 3 does not occur in the training rows"),
        (pa.array([1, 2], pa.int8()), pa.array([1, 2, 300]), "class 300 does not occur"),
        (pa.array([1, 2]), pa.array([1.0, 2.0, 1.5]), "1.5"),
        (pa.array([False, True]), pa.array([0, 1, 2]), "2"),
        (pa.array(["a", "b"]), pa.array(["a", "b", None]), "has no value (null)"),
        (pa.array(["a", "b"]), pa.DictionaryArray.from_arrays([0, 1, 2], pa.array(["a", "b", None])), "has no value (null)"),
        (pa.array([False, True]), pa.array([True, True, None]), "has no value (null)"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_a_label_that_is_no_known_class_is_named_by_file_row_and_column(trained: pa.Array, other: pa.Array, problem: str) -> None:
    encoding = fit(labelled(trained), CLASSIFICATION)

    with pytest.raises(DataError) as caught:
        encoding.label.of(labelled(other), where, "float32")

    assert str(caught.value).startswith("rows.csv: row 3, column 'y'")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([1, 2, None]),
        pa.array(["a", "b", None]).dictionary_encode(),
        pa.DictionaryArray.from_arrays([0, 1, 2], pa.array(["a", "b", None])),
    ],
)
def test_a_training_label_without_a_value_is_named(labels: pa.Array) -> None:
    with pytest.raises(DataError, match=r"^rows\.csv: row 3, column 'y' has no value \(null\); "):
        fit(labelled(labels), CLASSIFICATION)


def test_a_regression_learns_several_columns_and_lists_in_order() -> None:
    table = pa.table(
        {"x": [0.0, 0.0], "b": [1, 2], "a": [True, False], "v": pa.array([[5.0, 6.0], [7.0, 8.0]], pa.list_(pa.float32(), 2))}
    )
    encoding = fit(table, label=("v", "a", "b"), scale="standard")

    assert (encoding.outputs, encoding.label.classes) == (4, None)
    assert encoding.label.names == ["v[0]", "v[1]", "a", "b"]
    assert encoding.targets(table, where, "float64").tolist() == [[5, 6, 1, 1], [7, 8, 0, 2]]


def test_targets_are_standardised_where_that_is_asked_for() -> None:
    values = np.random.default_rng(1).normal([0, 1e3, -2e-3], [1, 10, 1e-3], (40, 3))
    table = pa.table({"x": np.zeros(40), "a": pa.FixedSizeListArray.from_arrays(values[:, :2].ravel(), 2), "b": values[:, 2]})
    encoding = fit(table, label=("a", "b"), scale_target="standard")

    expected = StandardScaler().fit_transform(values)

    np.testing.assert_allclose(encoding.targets(table, where, "float64"), expected, rtol=1e-9, atol=1e-9)
    assert fit(table, label=("a", "b")).targets(table, where, "float64").tolist() == values.tolist()


@pytest.mark.parametrize(("value", "shown"), [(None, "null"), (float("nan"), "nan"), (float("inf"), "inf"), (1e300, "1e+300")])
def test_a_target_that_is_no_finite_number_is_named(value: float | None, shown: str) -> None:
    table = pa.table({"x": [0.0, 0.0], "y": [1.0, value]})
    encoding = fit(table.slice(0, 1))

    with pytest.raises(DataError) as caught:
        encoding.targets(table, where, "float32")

    assert str(caught.value).startswith("rows.csv: row 2, column 'y'")
    assert shown in str(caught.value)


@pytest.mark.parametrize("value", [-0.25, 1.25])
def test_targets_of_binary_cross_entropy_lie_within_0_and_1(value: float) -> None:
    model = ModelSpec(task="regression", output="sigmoid", loss="binary_cross_entropy")
    table = pa.table({"x": [0.0, 0.0], "y": pa.array([[0.0, 1.0], [0.5, value]], pa.list_(pa.float64(), 2))})
    encoding = fit(table, model)

    assert encoding.targets(table.slice(0, 1), where, "float32").tolist() == [[0.0, 1.0]]
    with pytest.raises(DataError, match=rf"^rows\.csv: row 2, column 'y\[1\]': {value} lies outside 0 to 1, which binary_cross"):
        encoding.targets(table, where, "float32")
    assert fit(table).targets(table, where, "float32")[1, 1] == value


def test_an_encoding_is_the_same_after_it_has_crossed_processes() -> None:
    encoding = fit(matrix_table(random_matrix()), scale="standard")
    crossed = pickle.loads(pickle.dumps(encoding))

    assert crossed == encoding
    assert np.array_equal(
        crossed.features(matrix_table(random_matrix()), where, "float32"),
        encoding.features(matrix_table(random_matrix()), where, "float32"),
    )
