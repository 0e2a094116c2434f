from typing import Any

import pytest

from worker.data import ColumnSpec, DataSpec
from worker.errors import JobError


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"validation": 0}, "data.validation"),
        ({"validation": 1}, "data.validation"),
        ({"validation": 1.5}, "data.validation"),
        ({"validation": float("nan")}, "data.validation"),
        ({"shards": 0}, "data.shards"),
        ({"features": ()}, "data.features"),
        ({"label": ""}, "data.label"),
        ({"label": ()}, "data.label"),
        ({"fill": float("nan")}, "data.fill"),
        ({"categories": 0}, "data.categories"),
        ({"columns": {"x": ColumnSpec(categories=0)}}, "data.columns.x.categories"),
        ({"columns": {"x": ColumnSpec(fill=float("inf"))}}, "data.columns.x.fill"),
        ({"columns": {"x": ColumnSpec(parts=())}}, "data.columns.x.parts"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(options: dict[str, Any], key: str) -> None:
    with pytest.raises(JobError) as caught:
        DataSpec(**{"train": "rows.parquet", "label": "size"} | options)

    assert caught.value.key == key
