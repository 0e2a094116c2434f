from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batch import Target
from worker.choice import choose_columns
from worker.data import DataSpec
from worker.messages import Setup
from worker.model import ModelSpec
from worker.shard import Rows, consecutive, gather, read_shards
from worker.sharding import ShardPlan
from worker.sources import open_source


@given(numbers=st.sets(st.integers(0, 40)))
def test_neighbours_are_put_together_in_runs_without_a_gap(numbers: set[int]) -> None:
    runs = consecutive(numbers)

    assert [number for run in runs for number in run] == sorted(numbers)
    assert all(run == list(range(run[0], run[-1] + 1)) for run in runs)
    assert all(run[-1] + 1 not in numbers for run in runs)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Seven shards of 40 rows `x`, and of 5 rows to validate on."""
    folder: Path = tmp_path_factory.mktemp("rows")
    for name, values in (("train", np.arange(40.0)), ("validation", np.arange(100.0, 105.0))):
        pq.write_table(pa.table({"x": values, "y": values, "more": values}), folder / f"{name}.parquet", row_group_size=9)
    train, validation = (open_source(str(folder / f"{name}.parquet"), "data.train") for name in ("train", "validation"))
    model = ModelSpec(task="regression")
    columns = choose_columns(train.schema, DataSpec(train="rows", features=("x",), label="y"), model)
    plan = ShardPlan(rows=40, validation_rows=0, shards=7, batch_size=8, seed=1)
    return Setup(model=model, columns=columns, plan=plan, train=train, validation=validation)


@given(shards=st.lists(st.integers(0, 6), unique=True))
def test_shards_read_in_one_go_are_those_of_the_plan(setup: Setup, shards: list[int]) -> None:
    training, validation = read_shards(setup, shards), read_shards(setup, shards, "validation")

    assert set(training) == set(validation) == set(shards)
    for shard in shards:
        assert training[shard].column_names == ["x", "y"]
        assert training[shard]["x"].to_pylist() == list(range(*setup.plan.shard_range(shard)))
        assert validation[shard]["x"].to_pylist() == ([100 + shard] if shard < 5 else [])


@pytest.mark.parametrize(
    ("targets", "outputs", "expected"),
    [
        (np.array([2, 0, 1, 1]), 3, [[0, 1, 0], [0, 0, 1], [0, 1, 0]]),
        (np.array([20, 0, 17, 3]), 21, [[float(place == one) for place in range(21)] for one in (3, 20, 17)]),
        (np.array([0, 0, 1, 1]), 1, [[1], [0], [1]]),
        (np.array([[0.5, 1], [1.5, 2], [2.5, 3], [3.5, 4]], np.float32), 2, [[3.5, 4], [0.5, 1], [2.5, 3]]),
    ],
    ids=["one of several classes", "one of many classes", "one of two classes", "values"],
)
def test_chosen_rows_are_gathered_with_their_targets(targets: np.ndarray, outputs: int, expected: list[list[float]]) -> None:
    rows = Rows(np.arange(8, dtype=np.float32).reshape(4, 2), targets)
    x_BI, t_OB = np.full((3, 2), np.nan, np.float32), np.full((outputs, 3), np.nan, np.float32)

    gather(rows, np.array([3, 0, 2]), x_BI, Target(t_OB, None))

    assert x_BI.tolist() == [[6, 7], [0, 1], [4, 5]]
    assert t_OB.T.tolist() == expected


@pytest.mark.parametrize("shape", [(), (2,)], ids=["classes", "values"])
def test_weights_go_with_the_targets(shape: tuple[int, ...]) -> None:
    targets = np.zeros(4, [("target", np.intp if not shape else np.float32, shape), ("weight", np.float32)])
    targets["target"] = np.arange(4).reshape(4, *[1] * len(shape))
    targets["weight"] = [0.5, 1, 1.5, 2]
    x_BI, t_OB, w_B = np.empty((2, 2), np.float32), np.empty((4 if not shape else 2, 2), np.float32), np.empty(2, np.float32)

    gather(Rows(np.zeros((4, 2), np.float32), targets), np.array([3, 1]), x_BI, Target(t_OB, w_B))

    assert w_B.tolist() == [2, 1]
    assert (t_OB.argmax(axis=0) if not shape else t_OB[0]).tolist() == [3, 1]
