from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.choice import choose_columns
from worker.data import DataSpec
from worker.messages import SPLITS, Setup
from worker.model import ModelSpec
from worker.reading import consecutive, read_shards
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
    training, validation = ({shard: list(rows) for shard, rows in read_shards(setup, shards, split)} for split in SPLITS)

    assert list(training) == list(validation) == sorted(shards)
    for shard in shards:
        first, last = setup.plan.shard_range(shard)
        assert all(piece.table.column_names == ["x", "y"] for piece in training[shard])
        assert [x for piece in training[shard] for x in piece.table["x"].to_pylist()] == list(range(first, last))
        assert [place for piece in training[shard] for place in piece.positions_N.tolist()] == list(range(last - first))
        assert [x for piece in validation[shard] for x in piece.table["x"].to_pylist()] == ([100 + shard] if shard < 5 else [])
