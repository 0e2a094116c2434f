"""What a submitted job takes along, and what it is refused for."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cluster import parcel as parcels
from cluster.parcel import packed, pins
from coordinator.job import JobSpec, load_job, read_job
from worker.errors import JobError
from worker.sources import open_source, read_rows

Document = dict[str, dict[str, Any]]
WriteTable = Callable[[str, Mapping[str, Any]], Path]


def job_of(document: Document, tmp_path: Path) -> JobSpec:
    (tmp_path / "job.toml").write_text(tomli_w.dumps(document))
    return read_job(tmp_path / "job.toml", {})


def placed(document: Document, tmp_path: Path, *, upload: bool = False, same_machine: bool = False) -> JobSpec:
    """The job as the cluster reads it, its paths as they are in the parcel."""
    with packed(job_of(document, tmp_path), tmp_path, upload=upload, same_machine=same_machine) as parcel:
        return read_job(parcel / "job.toml", {})


def test_uris_and_full_paths_go_as_they_are(blobs_job: Document, tmp_path: Path) -> None:
    blobs_job["data"] |= {"train": "s3://bucket/rows.parquet", "validation": "/shared/held-out.parquet"}
    blobs_job["metrics"] = {"token_file": "/etc/isograd/token"}
    job = placed(blobs_job, tmp_path)
    assert (job.data.train, job.data.validation) == ("s3://bucket/rows.parquet", "/shared/held-out.parquet")
    assert job.metrics is not None
    assert job.metrics.token_file == "/etc/isograd/token"


def test_rows_that_the_cluster_does_not_see_are_refused(blobs_job: Document, tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        placed(blobs_job, tmp_path)
    assert str(caught.value) == (
        "data.train: blobs.parquet is relative to the job file, whose folder the cluster does not see; give a URI or a full path "
        "that all its machines see, such as --set data.train=/shared/blobs.parquet, or take up to 50 MB along with --upload-data"
    )


def test_secrets_are_not_taken_along(blobs_job: Document, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    blobs_job["metrics"] = {"token_file": "token"}
    with pytest.raises(JobError, match=r"metrics.token_file: token is relative .*; give the full path that it has there"):
        placed(blobs_job, tmp_path, upload=True)


def test_the_same_machine_sees_all(blobs_job: Document, tmp_path: Path) -> None:
    blobs_job["metrics"] = {"sd_dir": "announced"}
    job = placed(blobs_job, tmp_path, same_machine=True)
    assert job == load_job(tmp_path / "job.toml", {})
    assert job.data.train == str(tmp_path / "blobs.parquet")


def test_uploaded_rows_are_in_the_parcel(blobs_job: Document, tmp_path: Path) -> None:
    blobs_job["data"]["validation"] = str(tmp_path / "blobs.parquet")
    with packed(job_of(blobs_job, tmp_path), tmp_path, upload=True, same_machine=False) as parcel:
        job = load_job(parcel / "job.toml", {})
        assert isinstance(job.data.validation, str)
        for path in (job.data.train, job.data.validation):
            assert Path(path).is_relative_to(parcel)
            assert Path(path).read_bytes() == (tmp_path / "blobs.parquet").read_bytes()
    assert not parcel.exists()


@pytest.mark.parametrize("towns", [["Aachen", "Bonn"], ["Aachen"]])
def test_folders_that_make_up_columns_are_in_the_parcel(
    blobs_job: Document, write_table: WriteTable, tmp_path: Path, towns: list[str]
) -> None:
    for place, town in enumerate(towns):
        (tmp_path / "rows" / f"town={town}" / "more").mkdir(parents=True)
        write_table(f"rows/town={town}/more/_rows.parquet", {"x": [place]})
    blobs_job["data"]["train"] = "rows/*/*/*.parquet"
    with packed(job_of(blobs_job, tmp_path), tmp_path, upload=True, same_machine=False) as parcel:
        source = open_source(load_job(parcel / "job.toml", {}).data.train, "data.train")
        found = read_rows(source, 0, source.rows, ["x", "town"]).to_pydict()
    assert found == {"x": [*range(len(towns))], "town": towns}


def test_csv_files_are_uploaded_whatever_their_delimiter(blobs_job: Document, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("x0;kind\n1,5;a\n")
    blobs_job["data"] |= {"train": "rows.csv", "delimiter": ";", "decimal": ","}
    with packed(job_of(blobs_job, tmp_path), tmp_path, upload=True, same_machine=False) as parcel:
        data = load_job(parcel / "job.toml", {}).data
        assert Path(data.train).read_text() == (tmp_path / "rows.csv").read_text()
    assert (data.delimiter, data.decimal) == (";", ",")


def test_a_full_path_that_is_not_here_is_the_clusters(blobs_job: Document, tmp_path: Path) -> None:
    blobs_job["data"]["train"] = "/shared/rows-*.parquet"
    assert placed(blobs_job, tmp_path, upload=True).data.train == "/shared/rows-*.parquet"


@pytest.mark.parametrize("train", ["parts", "parts/**/*.parquet"])
def test_rows_of_several_files_keep_their_order(blobs_job: Document, write_table: WriteTable, tmp_path: Path, train: str) -> None:
    (tmp_path / "parts" / "b").mkdir(parents=True)
    (tmp_path / "parts" / "a-later").mkdir()
    for number, name in enumerate(("parts/z.parquet", "parts/b/rows.parquet", "parts/a-later/rows.parquet")):
        write_table(name, {"x": [number]})
    blobs_job["data"]["train"] = train

    def rows(path: str) -> list[int]:
        source = open_source(path, "data.train")
        found: list[int] = read_rows(source, 0, source.rows, ["x"]).column("x").to_pylist()
        return found

    with packed(job_of(blobs_job, tmp_path), tmp_path, upload=True, same_machine=False) as parcel:
        uploaded = rows(load_job(parcel / "job.toml", {}).data.train)
    assert uploaded == rows(str(tmp_path / train)) == [2, 1, 0]


def test_starting_weights_are_taken_along(blobs_job: Document, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    blobs_job["model"]["initial_weights"] = "weights.safetensors"
    with packed(job_of(blobs_job, tmp_path), tmp_path, upload=True, same_machine=False) as parcel:
        weights = load_job(parcel / "job.toml", {}).model.initial_weights
        assert weights is not None
        assert Path(weights).read_bytes() == b"weights"


@pytest.mark.parametrize(("key", "name"), [("data.train", "none.parquet"), ("model.initial_weights", "none.safetensors")])
def test_what_is_not_there_can_not_be_uploaded(blobs_job: Document, tmp_path: Path, key: str, name: str) -> None:
    section, _, entry = key.partition(".")
    blobs_job[section][entry] = name
    with pytest.raises(JobError, match=f"^{key}: no such file.*{tmp_path}/{name}"):
        placed(blobs_job, tmp_path, upload=True)


def test_what_is_large_is_not_uploaded(blobs_job: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs_job["data"]["validation"] = "blobs.parquet"
    bytes_each = (tmp_path / "blobs.parquet").stat().st_size
    monkeypatch.setattr(parcels, "MOST_BYTES", 2 * bytes_each)
    placed(blobs_job, tmp_path, upload=True)
    monkeypatch.setattr(parcels, "MOST_BYTES", 2 * bytes_each - 1)
    with pytest.raises(
        JobError, match=r"^data.validation: --upload-data takes up to .* along, and with .*blobs.parquet it would be"
    ):
        placed(blobs_job, tmp_path, upload=True)


def test_the_parcel_trains_in_a_python_that_has_no_isograd(blobs_job: Document, tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", "import sys, runpy; sys.path.insert(0, '.'); from cluster.cli import main; main()"]
    with packed(job_of(blobs_job, tmp_path), tmp_path, upload=True, same_machine=False) as parcel:
        arguments = ["train", "job.toml", "--address", "none", "--progress", "none", "--run-dir", str(tmp_path / "run")]
        subprocess.run([*command, *arguments], cwd=parcel, check=True, capture_output=True, timeout=300)
        probe = (
            "import sys; sys.path.insert(0, ''); import importlib.metadata as m; print(m.distribution('isograd').locate_file(''))"
        )
        found = subprocess.run([sys.executable, "-I", "-c", probe], cwd=parcel, check=True, capture_output=True, text=True)
        assert os.path.samefile(parcel, parcel / found.stdout.strip())
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_nodes_install_what_is_here() -> None:
    import numpy

    assert f"numpy=={numpy.__version__}" in pins()
    names = {pin.partition("==")[0] for pin in pins()}
    assert {"pydantic", "safetensors", "click"} <= names
    assert not {"ray", "torch", "isograd"} & names
