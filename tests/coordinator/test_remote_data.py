"""Training, evaluating and predicting from an S3 store on loopback, which fails at times."""

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import tomli_w
from safetensors.numpy import save_file

from coordinator.check import check_job
from coordinator.job import load_job, storage_of
from coordinator.model_files import load_model
from coordinator.records import Event, Summary
from coordinator.scoring import evaluate, predict
from worker.errors import DataError, JobError
from worker.sources import open_source, read_batches, read_rows
from worker.stores import StorageSpec

Document = dict[str, dict[str, Any]]
Run = Callable[..., tuple[list[Event], Summary]]


@pytest.fixture
def remote_job(blobs_job: Document, store: Any, tmp_path: Path) -> Document:
    """The job on blobs, whose rows lie in three Parquet files of a store."""
    table = pq.read_table(tmp_path / "blobs.parquet")
    for place, (first, last) in enumerate([(0, 20), (20, 21), (21, 61)]):
        pq.write_table(table.slice(first, last - first), tmp_path / "part.parquet", row_group_size=16)
        store.put(f"blobs/part-{place}.parquet", tmp_path / "part.parquet")
    store.requests.clear()
    return blobs_job | {
        "data": blobs_job["data"] | {"train": f"s3://{store.bucket}/blobs/*.parquet"},
        "storage": store.storage,
    }


@pytest.mark.parametrize("how", [None, "503 Slow Down", "500 Internal Server Error", "dropped", "cut"])
def test_a_store_gives_the_weights_of_local_files_whatever_fails_at_first(
    run_job: Run, blobs_job: Document, remote_job: Document, store: Any, how: str | None
) -> None:
    _, local = run_job(blobs_job)
    if how is not None:
        store.fail("GET", how)
        store.fail("part-1.parquet", how)

    _, remote = run_job(remote_job, {"workers.count": 2})

    assert remote.weights_digest == local.weights_digest
    assert store.requests


def test_a_store_that_goes_on_failing_ends_the_run_with_one_sentence(run_job: Run, remote_job: Document, store: Any) -> None:
    remote_job["storage"]["attempts"] = 1
    store.fail("part-2.parquet", "503 Slow Down", times=1000)

    with pytest.raises(DataError) as caught:
        run_job(remote_job)

    assert re.fullmatch(
        r"s3://bucket-\d+/blobs/part-2\.parquet: can't be read as Parquet: .*HTTP status 503.*", str(caught.value)
    )


@pytest.mark.parametrize("row_group", [1, 61])
def test_a_file_of_a_store_that_changes_during_a_run_is_refused(store: Any, tmp_path: Path, row_group: int) -> None:
    path, table = tmp_path / "blobs.parquet", pa.table({"x": range(61)})
    pq.write_table(table, path, row_group_size=row_group)
    address = store.put("blobs.parquet", path)
    source = open_source(address, "data.train", StorageSpec(**store.storage))

    store.put("blobs.parquet", path)
    assert read_rows(source, 10, 40, ["x"]).equals(table.slice(10, 30)), "it is the same"
    tables = read_batches(source, 0, 61, ["x"])
    next(tables)
    pq.write_table(pa.table({"x": [*range(60), 9]}), path, row_group_size=row_group)
    store.put("blobs.parquet", path)
    for reading in (tables, read_batches(source, 0, 61, ["x"])):
        with pytest.raises(DataError) as caught:
            list(reading)
        assert str(caught.value) == f"{address}: has changed since the run began; the files of a run must stay as they are"


def test_a_model_scores_rows_of_a_store_as_it_does_local_ones(
    run_job: Run, remote_job: Document, store: Any, tmp_path: Path
) -> None:
    run_job(remote_job)
    model, storage = load_model(tmp_path / "run-1"), storage_of(tmp_path / "run-1" / "job.toml")
    assert storage.endpoint == store.endpoint
    address, path = f"s3://{store.bucket}/blobs", str(tmp_path / "blobs.parquet")

    # Rows of other files are scored in other portions, in which some kernels of BLAS round otherwise.
    found, expected = evaluate(model, address, storage=storage), evaluate(model, path)
    assert (found.rows, found.findings) == (expected.rows, expected.findings)
    assert asdict(found.errors) == pytest.approx(asdict(expected.errors), rel=1e-6)
    (tmp_path / "remote").touch()  # what is there is written over
    for name, data in (("remote", address), ("local", path)):
        predict(model, data, tmp_path / name, storage)
    scored, wanted = (pq.read_table(tmp_path / name) for name in ("remote", "local"))
    assert scored.column_names == wanted.column_names
    assert scored["prediction"].equals(wanted["prediction"])
    for name in ("probability_ant", "probability_bee", "probability_cat"):
        np.testing.assert_allclose(scored[name], wanted[name], rtol=1e-5)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_folders_and_compressed_text_work_in_a_store_too(
    run_job: Run, blobs_job: Document, store: Any, tmp_path: Path, suffix: str
) -> None:
    table = pq.read_table(tmp_path / "blobs.parquet")
    for kind in ("ant", "bee", "cat"):
        rows = table.filter(pa.compute.equal(table["kind"], kind)).drop_columns("kind")
        path = tmp_path / "local" / f"kind={kind}" / f"rows.{suffix}"
        path.parent.mkdir(parents=True)
        with pa.output_stream(path, compression="gzip" if suffix == "csv.gz" else None) as file:
            pa_csv.write_csv(rows, file)
        store.put(f"remote/kind={kind}/rows.{suffix}", path)
    blobs_job |= {"storage": store.storage}

    digests = [
        run_job(blobs_job, {"data.train": data, "workers.count": workers})[1].weights_digest
        for data in ("local", f"s3://{store.bucket}/remote")
        for workers in (1, 2)
    ]

    assert len(set(digests)) == 1


def test_check_reads_a_store(remote_job: Document, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(tomli_w.dumps(remote_job))

    assert check_job(load_job(tmp_path / "job.toml", {})).files == "3 Parquet files"


def test_check_reads_starting_weights_from_a_store(remote_job: Document, store: Any, tmp_path: Path) -> None:
    save_file({"other": np.zeros(1, np.float32)}, tmp_path / "start.safetensors")
    remote_job["model"]["initial_weights"] = store.put("start.safetensors", tmp_path / "start.safetensors")
    (tmp_path / "job.toml").write_text(tomli_w.dumps(remote_job))

    with pytest.raises(JobError, match=r"^model\.initial_weights: s3://\S+/start\.safetensors: lacks 'layers\.0\.bias'"):
        check_job(load_job(tmp_path / "job.toml", {}))
