from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.utils.class_weight import compute_class_weight

from worker.choice import choose_columns
from worker.data import DataSpec
from worker.errors import DataError, JobError
from worker.model import ModelSpec
from worker.scan import scan_rows
from worker.targets import Targets

REGRESSION, CLASSIFICATION = ModelSpec(task="regression"), ModelSpec(task="classification")


def where(row: int) -> str:
    return f"rows.csv: row {row + 1}"


def fit(columns: dict[str, Any], model: ModelSpec = CLASSIFICATION, **options: Any) -> Targets:
    table = pa.table({"x": np.arange(len(columns["y"]))} | columns)
    chosen = choose_columns(table.schema, DataSpec(**{"train": "rows.csv", "label": "y", "features": ("x",)} | options), model)
    return Targets.fit(chosen, model, scan_rows([table], chosen, model, where))


def targets_of(targets: Targets, columns: dict[str, Any]) -> np.ndarray:
    found = targets.of(pa.table(columns), where, "float32")
    assert (found.dtype, found.shape) == ((room := targets.room(len(found), "float32")).dtype, room.shape)
    return found


def test_rows_weigh_what_their_column_says() -> None:
    columns = {"y": ["a", "b", "a"], "w": [1.5, 0.0, 2.0]}

    found = targets_of(fit(columns, weight="w"), columns)

    assert (found["target"].tolist(), found["weight"].tolist()) == ([0, 1, 0], [1.5, 0.0, 2.0])


def test_balanced_classes_weigh_as_by_scikit_learn() -> None:
    labels = ["a"] * 6 + ["b"] * 3 + ["c"]
    targets = fit({"y": labels, "w": np.arange(10)}, class_weights="balanced")

    assert targets.class_weights == pytest.approx(compute_class_weight("balanced", classes=np.array(list("abc")), y=labels))
    assert targets_of(targets, {"y": labels})["weight"].sum() == pytest.approx(10)
    both = fit({"y": labels, "w": np.arange(10)}, class_weights="balanced", weight="w")
    assert targets_of(both, {"y": ["c", "b"], "w": [2.0, 0.5]})["weight"].tolist() == pytest.approx([20 / 3, 5 / 9])


@pytest.mark.parametrize(
    ("model", "labels", "targets"),
    [
        (CLASSIFICATION, pa.array(["b", None, "a"]), [1, 0, 0]),
        (CLASSIFICATION, pa.array([7, None, 3]), [1, 0, 0]),
        (CLASSIFICATION, pa.array([True, None, False]), [1, 0, 0]),
        (REGRESSION, pa.array([2.5, None, -1.0]), [[2.5], [0], [-1]]),
        (REGRESSION, pa.array([2.5, float("nan"), -1.0]), [[2.5], [0], [-1]]),
        (REGRESSION, pa.array([[1, 2], [3, None], [5, 6]], pa.list_(pa.int8(), 2)), [[1, 2], [0, 0], [5, 6]]),
    ],
)
def test_rows_without_a_label_weigh_nothing_where_that_is_allowed(model: ModelSpec, labels: pa.Array, targets: list[Any]) -> None:
    found = targets_of(fit({"y": labels}, model, unlabelled="ignore"), {"y": labels})

    assert (found["target"].tolist(), found["weight"].tolist()) == (targets, [1, 0, 1])
    with pytest.raises(DataError, match=r"^rows\.csv: row 2, column 'y"):
        fit({"y": labels}, model)


def test_rows_without_a_label_do_not_count_for_the_scaling_of_targets_nor_for_class_weights() -> None:
    labels = pa.array([1.0, None, 3.0])
    targets = fit({"y": labels}, REGRESSION, unlabelled="ignore", scale_target="standard")

    assert targets.scaling == ((2.0,), (1.0,))
    assert targets_of(targets, {"y": labels})["target"].tolist() == [[-1], [0], [1]]
    assert fit({"y": pa.array(["a", "b", None])}, unlabelled="ignore", class_weights="balanced").class_weights == (1.0, 1.0)


@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf"), 1e31])
def test_what_can_be_no_weight_is_named_by_file_row_and_column(weight: float) -> None:
    targets = fit({"y": ["a", "b"], "w": [1.0, 2.0]}, weight="w")

    with pytest.raises(DataError, match=r"^rows\.csv: row 2, column 'w': .* is no weight; accepted are numbers from 0 on"):
        targets_of(targets, {"y": ["a", "b"], "w": [1.0, weight]})
    with pytest.raises(DataError, match=r"^rows\.csv: row 2, column 'w': .* is no weight"):
        fit({"y": ["a", "b"], "w": [1.0, weight]}, weight="w")


def test_a_row_without_a_weight_is_named() -> None:
    with pytest.raises(DataError, match=r"^rows\.csv: row 1, column 'w' has no value \(null\)"):
        fit({"y": ["a", "b"], "w": pa.array([None, 1.0])}, weight="w")


@pytest.mark.parametrize(
    ("columns", "model", "options", "message"),
    [
        ({"y": [1, 2], "w": [0, 0]}, CLASSIFICATION, {"weight": "w"}, "data.weight: no training row that has a label weighs"),
        ({"y": [1, 2], "w": [1e-60, 0]}, CLASSIFICATION, {"weight": "w"}, "data.weight: no training row that has a label weighs"),
        (
            {"y": ["a", "b", None], "w": [0, 0, 1]},
            CLASSIFICATION,
            {"weight": "w", "unlabelled": "ignore"},
            "data.weight: no training row that has a label weighs more than 0 in float32",
        ),
        (
            {"y": pa.array([[1.0, None], [1.0, 2.0]], pa.list_(pa.float64(), 2)), "w": [1, 0]},
            REGRESSION,
            {"weight": "w", "unlabelled": "ignore"},
            "data.weight: no training row that has a label weighs more than 0 in float32",
        ),
        (
            {"y": pa.array([[1.0, None], [None, 2.0]], pa.list_(pa.float64(), 2))},
            REGRESSION,
            {"unlabelled": "ignore"},
            "data.label: no training row has a value in all columns; choose fewer, or fill them in",
        ),
        (
            {"y": pa.array([None, None], pa.string())},
            CLASSIFICATION,
            {"unlabelled": "ignore"},
            "data.label: column 'y' has no value in any training row; at least 2 are needed",
        ),
        (
            {"y": [1e300, -1e300]},
            REGRESSION,
            {"scale_target": "standard"},
            "data.label: column 'y' has numbers too large, or too close together, for what is to be done with them; mend or ",
        ),
        ({"y": [1, 2], "w": ["a", "b"]}, CLASSIFICATION, {"weight": "w"}, "data.weight: column 'w' holds text; accepted are num"),
        ({"y": [1, 2], "w": [1, 2]}, CLASSIFICATION, {"weight": "v"}, "data.weight: no column matches 'v'; the columns are "),
        ({"y": [1, 2], "w1": [1, 2], "w2": [1, 2]}, CLASSIFICATION, {"weight": "w*"}, "data.weight: 'w*' picks 2 columns; name"),
        (
            {"y": pa.array([None, None], pa.float64())},
            REGRESSION,
            {"unlabelled": "ignore"},
            "data.label: column 'y' has no value in any training row",
        ),
    ],
)
def test_weights_and_labels_that_do_not_fit_are_refused(
    columns: dict[str, Any], model: ModelSpec, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError) as caught:
        fit(columns, model, **options)

    assert str(caught.value).startswith(message)


def test_the_weight_is_no_feature_unless_it_is_named() -> None:
    schema = pa.schema({"x": pa.float64(), "w": pa.float64(), "y": pa.int8()})
    data = {"train": "rows.csv", "label": "y", "weight": "w"}

    without, named = (choose_columns(schema, DataSpec(**data | more), REGRESSION) for more in ({}, {"features": ("w", "*")}))

    assert [feature.column.name for feature in without.features] == ["x"]
    assert without.needed == ["x", "y", "w"]
    assert [feature.column.name for feature in named.features] == ["w", "x"]
