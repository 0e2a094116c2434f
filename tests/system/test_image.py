"""The image, the file of the cluster launcher, and that all who name a version of Ray or of isograd name the same."""

import json
import re
import subprocess
import sys
import tomllib
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError, validate
from ray import autoscaler
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def test_hadolint_has_nothing_against_the_dockerfile() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    ran = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_ray_has_one_version() -> None:
    (locked,) = re.findall(r"^ray==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    images = re.findall(r"rayproject/ray:(\S+?)-py311-cpu\b", DOCKERFILE)
    assert set(images) == {locked}
    for manifest in ("cluster/raycluster.yaml", "job/rayjob.yaml"):
        found = re.findall(r"rayVersion: (\S+)", (DEPLOY / "kubernetes" / manifest).read_text())
        assert found == [locked], manifest


def test_isograd_has_one_version() -> None:
    version = PROJECT["project"]["version"]
    component = yaml.safe_load((DEPLOY / "kubernetes" / "image" / "kustomization.yaml").read_text())
    assert [image["newTag"] for image in component["images"]] == [version]
    assert re.findall(r'image\.version="(\S+)"', DOCKERFILE) == [version]
    assert re.findall(r"--tag \S+:(\S+)", DOCKERFILE) == [version]


def test_the_image_is_nobodys_root_and_has_no_tools_to_build_with() -> None:
    *_, user = re.findall(r"^USER (\d+):\d+$", DOCKERFILE, re.MULTILINE)
    assert int(user) > 0  # a number, without which Kubernetes can't tell that it is not root
    # Ray's image lets its user become root by sudo.
    assert re.findall(r"^(?:USER|RUN rm) (\S+)$", DOCKERFILE, re.MULTILINE) == ["0", "/usr/bin/sudo", "1000:100"]
    tools = sorted(re.split(r"[<>=]", need)[0] for need in PROJECT["dependency-groups"]["build"])
    (removed,) = re.findall(r"pip uninstall --yes (.+?) \\$", DOCKERFILE, re.MULTILINE)
    assert removed.split() == tools


@pytest.mark.parametrize("line", re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE))
def test_what_is_copied_is_there_and_sent_to_the_builder(line: str) -> None:
    sent = [name.removeprefix("!") for name in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if name[:1] == "!"]
    *sources, _ = line.split()
    for source in sources:
        assert (REPOSITORY / source).exists()
        assert source in sent


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    """The file of Ray's cluster launcher."""
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    return content


def test_the_launchers_file_is_one_that_ray_up_takes(launcher: dict[str, Any]) -> None:
    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    validate(launcher, schema)
    with pytest.raises(ValidationError, match="setup_comands"):
        validate(launcher | {"setup_comands": []}, schema)
    validate_config(prepare_config(launcher))  # as `ray up` does, with Ray's defaults filled in


def test_the_launcher_starts_ray_closed_to_those_without_the_token(launcher: dict[str, Any]) -> None:
    commands = {"head": launcher["head_start_ray_commands"], "worker": launcher["worker_start_ray_commands"]}
    for name, (*_, start) in commands.items():
        assert "RAY_AUTH_MODE=token" in start, name
        assert "--dashboard-host" not in start, "the dashboard stays on the loopback address"
    assert "~/.ray/auth_token" in launcher["file_mounts"]
    assert "chmod 600 ~/.ray/auth_token" in launcher["setup_commands"]
    assert "RAY_enable_autoscaler_v2=0 ray start --head" in commands["head"][-1], "or the other machines are never started"
    addresses = [launcher["provider"]["head_ip"], *launcher["provider"]["worker_ips"]]
    assert all(address in ip_network("192.0.2.0/24") for address in map(ip_address, addresses)), "nobody's machines"
