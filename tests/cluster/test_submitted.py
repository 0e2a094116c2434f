"""What Ray is told of a job, and what the job looks at before it trains."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from cluster import submitted
from cluster.submission import Submission, check_id, new_id, run_directory
from cluster.submitted import lacking, needs
from coordinator.job import JobSpec, parse_job
from worker.errors import UserError


def job(**sections: object) -> JobSpec:
    smallest = {"job": {"name": "small"}, "data": {"train": "/rows.parquet", "label": "y"}, "model": {"task": "regression"}}
    return parse_job(smallest | {"training": {"epochs": 1}} | sections)


def test_the_command_is_the_process_that_ray_starts_and_stops() -> None:
    request = Submission(id="a", job=job(), directory="~/runs/a b", options=["--auto-resume"]).request(Path("/parcel"))
    assert request["entrypoint"] == "exec python3 -m cluster.submitted a --run-dir '~/runs/a b' --auto-resume"
    assert request["submission_id"] == "a"
    assert request["runtime_env"] == {"working_dir": "/parcel", "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}
    assert request["metadata"] == {
        "isograd": importlib.metadata.version("isograd"),
        "job_name": "small",
        "run_directory": "~/runs/a b",
    }


def test_a_job_that_is_stopped_may_linger() -> None:
    request = Submission(id="a", job=job(metrics={"linger_seconds": 30.5}), directory="/a").request(Path("/parcel"))
    assert request["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "631"


def test_packages_are_installed_if_asked() -> None:
    request = Submission(id="a", job=job(), directory="/a", packages=["click==8.1"]).request(Path("/parcel"))
    assert request["runtime_env"]["pip"] == ["click==8.1"]


def test_an_id_is_readable_and_new() -> None:
    first, second = new_id("digits"), new_id("digits")
    assert first.startswith("isograd-digits-")
    assert first != second
    assert check_id(first) == first


@pytest.mark.parametrize("text", ["", "a/b", "a b", "-a", "..", "é", "a" * 151])
def test_an_id_can_name_a_file(text: str) -> None:
    with pytest.raises(UserError, match=r"--submission-id: .* can't name a file; accepted are"):
        check_id(text)


@pytest.mark.parametrize(
    ("given", "directory"),
    [
        (None, "~/isograd-runs/id"),
        ("/shared/run", "/shared/run"),
        ("~/run", "~/run"),
        ("s3://bucket/a//run", "s3://bucket/a//run"),
    ],
)
def test_the_run_directory_is_the_clusters(given: str | None, directory: str) -> None:
    assert run_directory(given, "id", same_machine=False) == directory


def test_a_relative_run_directory_means_something_on_the_same_machine_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_directory("runs/a", "id", same_machine=True) == str(tmp_path / "runs" / "a")
    with pytest.raises(UserError, match="--run-dir: runs/a is relative to a folder here, which the cluster does not see"):
        run_directory("runs/a", "id", same_machine=False)


def test_this_python_lacks_nothing() -> None:
    assert lacking() is None
    assert {"ray", "pydantic"} <= {need.name for need in needs()}
    assert "torch" not in {need.name for need in needs()}


def test_what_is_missing_or_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def known(name: str) -> str:
        if name == "safetensors":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.26.4" if name == "numpy" else version(name)

    monkeypatch.setattr(submitted.importlib.metadata, "version", known)
    sentence = lacking()
    assert sentence is not None
    assert f"the cluster's {sys.executable} lacks numpy <3,>=2.0, safetensors >=0.4.5; " in sentence
    assert "--pip" in sentence


def test_a_python_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitted.platform, "python_version", lambda: "3.10.14")
    assert lacking() == f"the cluster has Python 3.10.14, and isograd {importlib.metadata.version('isograd')} needs >=3.11"
