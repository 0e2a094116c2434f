"""What a viewer of the dashboard and the receiver of alerts get, with the real Prometheus and real runs."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
import tomli_w
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
RULES = REPOSITORY / "deploy" / "prometheus" / "rules"
RUN = "watched"
SECONDS = 120.0
# In the place of what Grafana and the viewer fill in.
FILLED_IN = {"$__rate_interval": "5s", "$__range": "1m", "$run": RUN}


@contextmanager
def training(job: Path, directory: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Train a job in a session of its own, and interrupt it at the end."""
    command = [
        sys.executable,
        "-m",
        "cluster.cli",
        "train",
        str(job),
        "--run-dir",
        str(directory),
        "--progress",
        "none",
        *options,
    ]
    with (directory.parent / f"{directory.name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()


def workers_of(session: int) -> list[int]:
    """Return the worker processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and os.getsid(int(entry.name)) == session
                and (entry / "cmdline").read_bytes().startswith(b"ray::WorkerActor")
            ):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture(scope="module")
def prometheus(watcher: tuple[Any, Path]) -> Any:
    return watcher[0]


@pytest.fixture(scope="module")
def watched(watcher: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """A run on two workers that Prometheus watches, some epochs old."""
    prometheus, announcements = watcher
    options = ["--metrics-sd-dir", str(announcements), "--set", "training.epochs=1000000"]
    directory = tmp_path_factory.mktemp("runs") / RUN
    with training(REPOSITORY / "examples" / "digits" / "digits.toml", directory, *options) as process:
        prometheus.wait_for(f'isograd_epoch{{run="{RUN}"}} >= 3')
        yield process


def dashboard_expressions() -> list[str]:
    """Return every expression of the dashboard, ready to be asked."""
    dashboard = json.loads((REPOSITORY / "deploy" / "grafana" / "isograd.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    for name, value in FILLED_IN.items():
        expressions = [expression.replace(name, value) for expression in expressions]
    return expressions


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Return the rules of deploy/ of a kind, `record` or `alert`, by name."""
    groups = [group for path in sorted(RULES.iterdir()) for group in yaml.safe_load(path.read_text())["groups"]]
    return {rule[kind]: rule for group in groups for rule in group["rules"] if kind in rule}


def status(run: str) -> str:
    """Return the expression of the status panel for a run."""
    (expression,) = [expression for expression in dashboard_expressions() if "isograd_run_status" in expression]
    return expression.replace(RUN, run)


def firing(run: str) -> str:
    """Return an expression of a run's alerts that fire."""
    return f'ALERTS{{run="{run}", alertstate="firing"}}'


def ask(url: str) -> Any:
    """Return the data of an answer of Prometheus's HTTP interface."""
    with build_opener(ProxyHandler({})).open(url, timeout=SECONDS) as answer:
        return json.load(answer)["data"]


def alerts(prometheus: Any) -> dict[str, tuple[str, str]]:
    """Return the health and the state of each alert."""
    groups = ask(f"{prometheus.url}/api/v1/rules?type=alert")["groups"]
    return {rule["name"]: (rule["health"], rule["state"]) for group in groups for rule in group["rules"]}


@pytest.mark.usefixtures("watched")
def test_every_panel_of_the_dashboard_has_data(prometheus: Any) -> None:
    expressions = dashboard_expressions()
    assert len(expressions) > 20
    for expression in expressions:
        prometheus.wait_for(f"({expression}) >= -Inf")  # which NaN is not
    prometheus.wait_for(f"({status(RUN)}) == 5")
    assert ask(f"{prometheus.url}/api/v1/label/run/values?match[]=isograd_run_info") == [RUN]


@pytest.mark.usefixtures("watched")
def test_every_recording_rule_has_data(prometheus: Any) -> None:
    names = rules("record")
    assert len(names) > 10
    for name in names:
        prometheus.wait_for(f'{name}{{run="{RUN}"}} >= -Inf')


@pytest.mark.usefixtures("watched")
def test_a_run_that_is_well_sets_off_no_alert(prometheus: Any) -> None:
    prometheus.wait_for(f'run:isograd_running{{run="{RUN}"}}')
    until, pause = monotonic() + SECONDS, threading.Event()
    while "unknown" in {health for health, _ in alerts(prometheus).values()}:  # before it was evaluated for the first time
        assert monotonic() < until
        pause.wait(0.1)
    told = alerts(prometheus)
    assert {name: health for name, (health, _) in told.items()} == dict.fromkeys(rules("alert"), "ok")
    # On a busy machine a worker or a scrape may be slow for a moment; an alert that would fire if that lasted is pending.
    assert {state for _, state in told.values()} <= {"inactive", "pending"}


def test_lost_workers_are_seen_and_set_off_an_alert(watched: subprocess.Popen[bytes], prometheus: Any) -> None:
    ready = f'isograd_workers{{run="{RUN}", state="ready"}} == 2'
    for lost in (1, 2, 3):
        prometheus.wait_for(ready)
        os.kill(workers_of(watched.pid)[0], signal.SIGKILL)
        prometheus.wait_for(f'isograd_worker_failures_total{{run="{RUN}"}} >= {lost}')
    prometheus.wait_for(ready)
    prometheus.wait_for(f'isograd_shards_moved_total{{run="{RUN}"}} >= 3')
    (alert,) = prometheus.wait_for(firing(RUN))
    assert alert["metric"]["alertname"] == "IsogradWorkersFail"


def test_a_run_that_diverges_sets_off_an_alert(
    watcher: tuple[Any, Path], waves_job: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    prometheus, announcements = watcher
    waves_job["optimizer"]["learning_rate"] = 1e30
    waves_job["metrics"] = {"sd_dir": str(announcements), "linger_seconds": 3600.0}
    (tmp_path / "job.toml").write_text(tomli_w.dumps(waves_job))
    with training(tmp_path / "job.toml", tmp_path / "soaring", "--address", "none"):
        (alert,) = prometheus.wait_for(firing("soaring"))
        assert alert["metric"]["alertname"] == "IsogradDiverged"
        prometheus.wait_for(f"({status('soaring')}) == 3")
