"""What the words of Ray and of a run come to."""

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from ray.job_submission import JobDetails
from rich.console import Console

from cluster.job_display import jobs_table, print_report
from cluster.job_reports import describe
from cluster.status_file import RunStatus

RUNNING = RunStatus(
    state="running", run="a", run_directory="/runs/a", host="head", metrics_url="http://127.0.0.1:9/metrics", epoch=2, epochs=4,
    round=15, rounds=40, loss=0.5, validation_loss=0.25, error_rate=0.125, rows_per_second=12345.6, seconds_left=75.0, workers=2,
    worker_failures=1,
)  # fmt: skip


def details(status: str, **known: Any) -> JobDetails:
    known = {"start_time": 1000000, "end_time": 1060000, "metadata": {"job_name": "small", "run_directory": "~/runs/a"}} | known
    return JobDetails(type="SUBMISSION", submission_id="a", status=status, entrypoint="exec", **known)


@pytest.mark.parametrize(
    ("status", "code", "run", "state", "exit_code"),
    [
        ("PENDING", None, None, "pending", None),
        ("RUNNING", None, None, "starting", None),
        ("RUNNING", None, RUNNING, "running", None),
        ("RUNNING", None, replace(RUNNING, state="completed"), "completed", None),  # it lingers
        ("SUCCEEDED", 0, replace(RUNNING, state="completed", exit_code=0), "completed", 0),
        ("SUCCEEDED", 0, None, "completed", 0),
        ("SUCCEEDED", None, None, "completed", 0),
        ("FAILED", 2, None, "failed", 2),
        ("FAILED", 3, replace(RUNNING, state="diverged", exit_code=3), "diverged", 3),
        ("FAILED", 3, None, "diverged", 3),
        ("FAILED", 4, replace(RUNNING, state="failed", exit_code=4), "failed", 4),
        ("FAILED", 127, None, "failed", 127),
        ("FAILED", 130, None, "interrupted", 130),
        ("FAILED", -9, RUNNING, "failed", 4),
        ("FAILED", None, None, "failed", 4),
        ("STOPPED", None, replace(RUNNING, state="interrupted", exit_code=130), "interrupted", 130),
        ("STOPPED", None, replace(RUNNING, state="completed", exit_code=0), "completed", 0),  # it was over, and lingered
        ("STOPPED", None, RUNNING, "stopped", 130),
        ("STOPPED", None, None, "stopped", 130),
    ],
)
def test_state_and_exit_code(status: str, code: int | None, run: RunStatus | None, state: str, exit_code: int | None) -> None:
    report = describe(details(status, driver_exit_code=code), run)
    assert (report.state, report.exit_code, report.over) == (state, exit_code, exit_code is not None)
    assert (report.ended is not None) is report.over
    assert report.ray_status == status


@pytest.mark.parametrize(
    ("status", "known", "run", "error"),
    [
        ("SUCCEEDED", {"driver_exit_code": 0, "message": "Job finished successfully."}, None, None),
        ("FAILED", {"driver_exit_code": 2}, RunStatus(state="failed", exit_code=2, error="the run's"), "the run's"),
        ("FAILED", {"driver_exit_code": 1, "message": "Traceback"}, None, None),
        ("FAILED", {"driver_exit_code": -9}, None, "its process was ended by SIGKILL"),
        ("FAILED", {"message": "runtime_env setup failed:\n  no pip"}, None, "runtime_env setup failed: no pip"),
        ("STOPPED", {}, RUNNING, "it was ended before it could end in good order"),
        ("STOPPED", {}, None, "it was ended before its run had begun"),
        ("STOPPED", {}, replace(RUNNING, state="interrupted", exit_code=130), None),
    ],
)
def test_what_went_wrong(status: str, known: dict[str, Any], run: RunStatus | None, error: str | None) -> None:
    assert describe(details(status, **known), run).error == error


def test_the_run_directory_is_known_before_the_run_says_it() -> None:
    assert describe(details("PENDING"), None).run.run_directory == "~/runs/a"
    assert describe(details("RUNNING"), RUNNING).run.run_directory == "/runs/a"


def test_scripts_get_every_key_whatever_the_state() -> None:
    pending, running = describe(details("PENDING"), None).flat(), describe(details("RUNNING"), RUNNING).flat()
    assert list(pending) == list(running)
    assert running["state"] == "running"
    assert {"id", "name", "epoch", "loss", "rows_per_second", "seconds_left", "run_directory", "metrics_url"} <= set(running)
    assert (running["submitted"], running["ended"]) == (1000.0, None)


def shown(**known: Any) -> str:
    console = Console(file=StringIO(), width=200)
    print_report(console, describe(details(**known), known.get("run", RUNNING)))
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_what_a_person_sees_of_a_job_that_runs() -> None:
    text = shown(status="RUNNING")
    for part in (
        "a: running progress epoch 2/4, round 15/40 errors loss 0.5 validation 0.25 error 12.50%",
        "speed 12,346 rows/s on 2 workers failures 1 worker lost",
        "0:01:15 left",
        "directory /runs/a on head metrics http://127.0.0.1:9/metrics on head",
    ):
        assert part in text


def test_what_a_person_sees_of_a_job_that_is_over() -> None:
    text = shown(status="FAILED", driver_exit_code=-9)
    assert text.startswith("a: failed, exit code 4")
    assert "time 0:01:00" in text
    assert "left" not in text
    assert "metrics" not in text
    assert "error its process was ended by SIGKILL" in text


def test_jobs_are_rows_of_a_table() -> None:
    console = Console(file=StringIO(), width=200)
    console.print(jobs_table([describe(details("RUNNING"), RUNNING), describe(details("PENDING"), None)]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [part.strip() for part in lines[3].split("│")[1:]] == [
        "a", "running", lines[3].split("│")[3].strip(), "2/4", "0.5", "0.25", "12,346", "0:01:15", "",
    ]  # fmt: skip
    assert "pending" in lines[4]
