"""The real Prometheus and the real Pushgateway: they find a run, and hold what its directory says."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

import pytest
import tomli_w
from prometheus_client.parser import text_string_to_metric_families

from coordinator.records import EpochDone, Event, Started

Document = dict[str, dict[str, Any]]
ENDLESS = 10_000_000
GAUGES = {
    "isograd_loss": "loss",
    "isograd_mean_absolute_error": "mean_absolute_error",
    "isograd_mean_squared_error": "mean_squared_error",
    "isograd_error_ratio": "error_rate",
}
SECONDS = 120.0
# A scrape may take as long as there is between two.
SCRAPES = """
global:
  scrape_interval: 500ms
scrape_configs:
  - job_name: isograd
    file_sd_configs:
      - files: [{folder}/*.json]
        refresh_interval: 1s
"""


@pytest.fixture
def announcements(tmp_path: Path) -> Path:
    (tmp_path / "sd").mkdir()
    return tmp_path / "sd"


@contextmanager
def training(job: Document, folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Train a job into the directory `run`, in a process without Ray."""
    (folder / "job.toml").write_text(tomli_w.dumps(job))
    command = [sys.executable, "-m", "cluster.cli", "train", "job.toml", "--run-dir", "run", "--address", "none"]
    with subprocess.Popen([*command, "--progress", "none", *options], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def history_of(run: Path) -> dict[int, dict[str, Any]]:
    records = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return {record["epoch"]: record for record in records}


def test_a_run_is_found_and_what_prometheus_holds_is_what_the_history_says(
    blobs_job: Document, start_prometheus: Callable[[str], Any], announcements: Path, tmp_path: Path
) -> None:
    blobs_job["training"]["epochs"] = ENDLESS
    blobs_job["data"]["validation"] = 0.2
    prometheus = start_prometheus(SCRAPES.format(folder=announcements))
    with training(blobs_job, tmp_path, "--metrics-sd-dir", "sd") as process:
        prometheus.wait_for('isograd_epoch{run="run"} > 3')
        prometheus.wait_for('count_over_time(isograd_loss{split="validation"}[1h]) > 3')

        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert list(announcements.iterdir()) == []
    # Taken back, the target is forgotten, and its series end.
    prometheus.wait_for("absent(up)")

    history = history_of(tmp_path / "run")
    (epochs,) = prometheus.query("isograd_epoch[1h]")
    epoch_at = {at: int(value) for at, value in epochs["values"]}
    compared = 0
    for metric, name in GAUGES.items():
        for series in prometheus.query(f"{metric}[1h]"):
            for at, value in series["values"]:
                assert float(value) == history[epoch_at[at]][series["metric"]["split"]][name]
                compared += 1
    assert compared >= len(GAUGES) * 2 * 4


def test_the_final_values_are_scraped_before_the_endpoint_goes_and_pushed_to_a_gateway(
    blobs_job: Document, start_prometheus: Callable[[str], Any], pushgateway: str, announcements: Path, tmp_path: Path
) -> None:
    blobs_job["metrics"] = {"sd_dir": "sd", "linger_seconds": 3600, "linger_scrapes": 2, "pushgateway": pushgateway}
    prometheus = start_prometheus(SCRAPES.format(folder=announcements))
    with training(blobs_job, tmp_path) as process:
        assert process.wait(timeout=SECONDS) == 0

    last = history_of(tmp_path / "run")[3]["train"]
    prometheus.wait_for('last_over_time(isograd_run_status{status="completed"}[1h]) == 1')
    pushed = list(text_string_to_metric_families(text_at(f"{pushgateway}/metrics")))
    for metric, name in GAUGES.items():
        (held,) = prometheus.query(f"last_over_time({metric}[1h])")
        assert float(held["value"][1]) == last[name]
        (sample,) = [sample for family in pushed for sample in family.samples if sample.name == metric]
        assert sample.value == last[name]
        assert sample.labels == {"instance": "", "job": "isograd", "run": "run", "split": "train"}


def test_prometheus_needs_certificate_and_token_where_the_job_says_so(
    blobs_job: Document, start_prometheus: Callable[[str], Any], announcements: Path, authority: Any, tmp_path: Path
) -> None:
    (certificate, key), (client, client_key) = authority.issue("server"), authority.issue("prometheus")
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("a secret")
    blobs_job["training"]["epochs"] = ENDLESS
    blobs_job["metrics"] = {"sd_dir": "sd", "certificate": certificate, "key": key, "client_ca": str(authority.path)}
    blobs_job["metrics"]["token_file"] = str(token)
    job = "  - job_name: {name}\n    file_sd_configs: [{{files: [{folder}/*.json]}}]\n    tls_config: {{ca_file: {ca}{own}}}\n"
    bearer = f"    authorization: {{credentials_file: {token}}}\n"
    own = f", cert_file: {client}, key_file: {client_key}"
    known = {"folder": announcements, "ca": authority.path}
    configuration = "global: {scrape_interval: 500ms}\nscrape_configs:\n"
    configuration += job.format(name="both", own=own, **known) + bearer
    configuration += job.format(name="no_token", own=own, **known)
    configuration += job.format(name="no_certificate", own="", **known) + bearer
    prometheus = start_prometheus(configuration)
    with training(blobs_job, tmp_path):
        for name, up in (("both", 1), ("no_token", 0), ("no_certificate", 0)):
            prometheus.wait_for(f'up{{job="{name}"}} == {up}')
        assert {series["metric"]["job"] for series in prometheus.wait_for("isograd_rounds_total")} == {"both"}


def test_promtool_finds_nothing_to_mend(
    program: Callable[[str], str], begin_job: Callable[..., Iterator[Event]], blobs_job: Document
) -> None:
    events = begin_job(blobs_job, {"metrics.port": 0, "data.validation": 0.2})
    started = next(events)
    assert isinstance(started, Started)
    while not isinstance(next(events), EpochDone):
        pass
    text = text_at(started.metrics_url)
    events.close()

    checked = subprocess.run(
        [program("promtool"), "check", "metrics"], input=text, text=True, capture_output=True, timeout=SECONDS
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def text_at(url: str | None) -> str:
    assert url is not None
    with build_opener(ProxyHandler({})).open(url, timeout=SECONDS) as answer:
        text: str = answer.read().decode()
        return text
