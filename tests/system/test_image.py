"""The image, and that all who name a version of Ray or of isograd name the same."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

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
