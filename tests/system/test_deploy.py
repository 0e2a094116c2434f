"""What is in deploy/ fits together, and Prometheus's own checker has nothing to say against it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
MONITORING = REPOSITORY / "docs" / "monitoring.md"


def read(path: str) -> Any:
    """Return a YAML or JSON file below deploy/."""
    return yaml.safe_load((DEPLOY / path).read_text())


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana" / "isograd.json").read_text())


@pytest.fixture(scope="module")
def alerts() -> dict[str, dict[str, Any]]:
    (group,) = read("prometheus/rules/alerts.yml")["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


@pytest.fixture
def promtool(program: Callable[[str], str]) -> Callable[..., str]:
    """Returns what promtool prints when it has nothing to say against its arguments."""

    def call(*arguments: str) -> str:
        command = [program("promtool"), *arguments]
        ran = subprocess.run(command, cwd=DEPLOY / "prometheus", capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return call


def test_the_dashboard_is_what_its_script_builds() -> None:
    built = subprocess.run([sys.executable, str(DEPLOY / "grafana" / "build.py")], capture_output=True, text=True, check=True)
    assert (DEPLOY / "grafana" / "isograd.json").read_text() == built.stdout, "make dashboard brings isograd.json up to date"


def test_the_dashboard_works_wherever_it_is_imported(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] == 41  # of Grafana 11
    assert "id" not in dashboard
    source = {"type": "prometheus", "uid": "${datasource}"}
    data_source, run = dashboard["templating"]["list"]
    assert (data_source["name"], data_source["type"], data_source["query"]) == ("datasource", "datasource", "prometheus")
    assert (run["name"], run["datasource"]) == ("run", source)
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == source
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names) >= 1
        assert all(names)
        assert all('run=~"$run"' in target["expr"] for target in panel["targets"]), panel["title"]


def test_panels_with_one_value_show_the_last_that_is_known(dashboard: dict[str, Any]) -> None:
    panels = [panel for panel in dashboard["panels"] if panel["type"] in ("stat", "bargauge")]
    assert len(panels) >= 5
    for panel in panels:
        assert panel["options"]["reduceOptions"]["calcs"] == ["lastNotNull"], panel["title"]


def test_no_panel_covers_another_and_every_line_is_full(dashboard: dict[str, Any]) -> None:
    places = [(panel["title"], panel["gridPos"]) for panel in dashboard["panels"]]
    for (one, a), (other, b) in combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"] or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart, f"{one} and {other} overlap"
    bottom = max(place["y"] + place["h"] for _, place in places)
    assert sum(place["w"] * place["h"] for _, place in places) == 24 * bottom


def test_promtool_has_nothing_against_the_configuration_and_the_rules(promtool: Callable[..., str]) -> None:
    # That nobody has announced a run yet is no fault.
    printed = promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml").splitlines()
    assert [line for line in printed if "WARNING" in line and "discovery/*.json" not in line] == []
    promtool("check", "rules", "--lint=all", "--lint-fatal", "rules/recording.yml", "rules/alerts.yml")


def test_alerts_fire_when_they_should(promtool: Callable[..., str]) -> None:
    assert "SUCCESS" in promtool("test", "rules", "tests/alerts.yml")


def test_each_alert_is_tested_both_ways_and_explained(alerts: dict[str, dict[str, Any]]) -> None:
    cases = [case for test in read("prometheus/tests/alerts.yml")["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts)
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(alerts)
    headings = re.findall(r"^### (Isograd\w+)$", MONITORING.read_text(), re.MULTILINE)
    assert headings == list(alerts)
    for name, alert in alerts.items():
        assert set(alert["annotations"]) == {"summary", "description"}, name
        assert alert["labels"]["severity"] in ("warning", "critical"), name


def test_the_dashboard_draws_the_line_where_the_alert_does(dashboard: dict[str, Any], alerts: dict[str, dict[str, Any]]) -> None:
    (panel,) = [panel for panel in dashboard["panels"] if panel["title"] == "Checkpoint age"]
    line = panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"]
    assert f"run:isograd_checkpoint_age_seconds > {line:g}" in alerts["IsogradCheckpointOld"]["expr"]


def test_what_compose_mounts_is_there_and_only_this_machine_is_served() -> None:
    compose = read("compose.yaml")
    mounts = [mount.split(":") for service in compose["services"].values() for mount in service["volumes"]]
    for source, *_ in mounts:
        assert (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"], source
    for name, service in compose["services"].items():
        assert re.fullmatch(r".+:[\w.-]*\d[\w.-]*", service["image"]), f"the version of {name} is not pinned"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_in_compose_the_parts_find_each_other() -> None:
    services = read("compose.yaml")["services"]
    mounted = {name: dict(mount.split(":")[:2] for mount in service["volumes"]) for name, service in services.items()}
    (job,) = read("prometheus/prometheus.yml")["scrape_configs"]
    (announced,) = job["file_sd_configs"][0]["files"]
    assert f"/etc/prometheus/{Path(announced).parent}" == mounted["prometheus"]["discovery"]
    assert (DEPLOY / "prometheus" / announced).parent.is_dir(), "the point to mount on, in a folder that is read only"
    assert f"--metrics-sd-dir {mounted['train']['discovery']}" in services["train"]["command"][-1]
    assert services["train"]["network_mode"] == "service:prometheus", "the endpoint is on the loopback address"

    (provider,) = read("grafana/provisioning/dashboards/isograd.yml")["providers"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounted["grafana"]["./grafana/isograd.json"] == home == f"{provider['options']['path']}/isograd.json"
    (source,) = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    assert source["jsonData"]["timeInterval"] == read("prometheus/prometheus.yml")["global"]["scrape_interval"]


def test_alerts_know_the_runs_by_the_jobs_name_in_kubernetes_too(alerts: dict[str, dict[str, Any]]) -> None:
    (job,) = read("prometheus/prometheus.yml")["scrape_configs"]
    monitor = read("kubernetes/monitoring/podmonitor.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": job["job_name"]}]
    assert f'up{{job="{job["job_name"]}"}}' in alerts["IsogradUnreachable"]["expr"]
