"""How rows lie in files makes no difference: shards are ranges of rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from coordinator.records import Event, Summary

Document = dict[str, dict[str, Any]]
Run = Callable[..., tuple[list[Event], Summary]]


def one_row_group(table: pa.Table, folder: Path) -> None:
    pq.write_table(table, folder / "rows.parquet", row_group_size=len(table))


def a_file_a_row(table: pa.Table, folder: Path) -> None:
    for row in range(len(table)):
        pq.write_table(table.slice(row, 1), folder / f"{row:02}.parquet")


def one_batch(table: pa.Table, folder: Path) -> None:
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=len(table))


def many_batches(table: pa.Table, folder: Path) -> None:
    with pa.ipc.new_file(folder / "rows.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_table(table, max_chunksize=3)


def text(table: pa.Table, folder: Path) -> None:
    for part, first in enumerate((0, 7)):
        pa_csv.write_csv(table.slice(first, 7 if first == 0 else len(table)), folder / f"{part}.csv")


def columns_in_another_order(table: pa.Table, folder: Path) -> None:
    for part, first in enumerate((0, 30)):
        names = table.column_names if first == 0 else table.column_names[::-1]
        pq.write_table(table.slice(first, 30 if first == 0 else len(table)).select(names), folder / f"{part}.parquet")


LAYOUTS = (one_row_group, a_file_a_row, one_batch, many_batches, text, columns_in_another_order)


@pytest.fixture
def digest(run_job: Run, blobs_job: Document, tmp_path: Path) -> str:
    """That of rows in several row groups."""
    return run_job(blobs_job)[1].weights_digest


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("workers", [1, 3])
def test_files_row_groups_and_formats_make_no_difference(
    run_job: Run,
    blobs_job: Document,
    digest: str,
    tmp_path: Path,
    layout: Callable[[pa.Table, Path], None],
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.formats.BATCH_ROWS", 5)
    (tmp_path / "rows").mkdir()
    layout(pq.read_table(tmp_path / "blobs.parquet"), tmp_path / "rows")

    _, summary = run_job(blobs_job, {"data.train": "rows", "workers.count": workers})

    assert summary.weights_digest == digest


def test_row_groups_too_large_to_be_held_are_read_through_buffers(
    run_job: Run, blobs_job: Document, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.formats.GROUP_BYTES", 0)

    assert run_job(blobs_job)[1].weights_digest == digest
