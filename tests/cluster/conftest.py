"""One Ray for all tests of this folder, and a small job for them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.launch import LOCAL, connected
from coordinator.job import JobSpec, load_job
from coordinator.pool import WorkersSpec

JOB = """
[job]
name = "small"
seed = 3

[data]
train = "rows.parquet"
label = "kind"
validation = 0.2
scale = "standard"
shards = 6

[model]
task = "classification"
hidden = [8]
dropout = 0.2

[optimizer]
name = "adam"

[training]
epochs = 3
"""


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray with room for four workers, whose processes have credentials for the S3 store of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with connected(LOCAL, WorkersSpec(count=4), debug=False):
            yield


@pytest.fixture
def small_job(tmp_path: Path) -> Callable[..., JobSpec]:
    """Load a job over 300 rows of three classes, with values replaced: small_job({"workers.count": 3})."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    kinds = np.array(["a", "b", "c"])[(x[:, 0] + x[:, 1] > 0).astype(int) + (x[:, 2] > 0.5)]
    table = pa.table({f"x{column}": x[:, column] for column in range(4)} | {"kind": kinds})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=64)
    (tmp_path / "job.toml").write_text(JOB)

    def load(overrides: dict[str, object]) -> JobSpec:
        return load_job(tmp_path / "job.toml", overrides)

    return load
