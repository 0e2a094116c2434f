"""The manifests are what Kubernetes, KubeRay and the Prometheus operator accept, fit together, and open no more than need be."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from cluster.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
KUBERNETES = REPOSITORY / "deploy" / "kubernetes"
OVERLAYS = ("small/job", "small/cluster", "large/job", "large/cluster")
PART_OF = {"app.kubernetes.io/part-of": "isograd"}
Manifest = dict[str, Any]


@cache
def _kustomize(overlay: str) -> str:
    command = [str(Path(sys.executable).parent / "kubectl"), "kustomize", str(KUBERNETES / "overlays" / overlay)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def render(overlay: str) -> list[Manifest]:
    """What `kubectl apply -k` sends to Kubernetes."""
    return list(yaml.safe_load_all(_kustomize(overlay)))


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """The manifests of a kind by name."""
    return {manifest["metadata"]["name"]: manifest for manifest in manifests if manifest["kind"] == kind}


def ray(manifests: list[Manifest]) -> Manifest:
    """The specification of the Ray cluster, a job's or a standing one."""
    for job in of_kind(manifests, "RayJob").values():
        spec: Manifest = job["spec"]["rayClusterSpec"]
        return spec
    (cluster,) = of_kind(manifests, "RayCluster").values()
    return dict(cluster["spec"])


def pods(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod template with its name."""
    spec = ray(manifests)
    yield "head", spec["headGroupSpec"]["template"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    for job in of_kind(manifests, "RayJob").values():
        yield "submitter", job["spec"]["submitterPodTemplate"]


def only(pod: Manifest) -> Manifest:
    """The one container of a pod."""
    (container,) = pod["spec"]["containers"]
    return dict(container)


@pytest.fixture(scope="module")
def faults() -> Callable[[Manifest], list[str]]:
    """What the schemas have against a manifest."""
    schemas = json.loads((REPOSITORY / "tests" / "data" / "kubernetes.json").read_text())

    def find(manifest: Manifest) -> list[str]:
        validator = Draft202012Validator(schemas | {"$ref": f"#/$defs/{manifest['kind']}"})
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]

    return find


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_manifest_keeps_to_its_schema(overlay: str, faults: Callable[[Manifest], list[str]]) -> None:
    for manifest in render(overlay):
        assert faults(manifest) == [], manifest["kind"]


WRONG: list[tuple[str, str, tuple[str | int, ...], object]] = [
    ("small/job", "RayJob", ("spec", "entryPoint"), "isograd"),
    ("small/job", "RayJob", ("spec", "submissionMode"), "Http"),
    ("small/job", "RayJob", ("spec", "managedBy"), "me"),
    ("small/job", "RayJob", ("spec", "submitterPodTemplate", "metadata", "generateName"), "submitter-"),
    ("small/job", "RayJob", ("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
    ("small/cluster", "RayCluster", ("spec", "authOptions", "mode"), "on"),
    ("small/cluster", "RayCluster", ("spec", "autoscalerOptions", "idleTimeout"), 300),
    ("small/cluster", "RayCluster", ("spec", "headGroupSpec", "template", "spec", "containers", 0, "livenesProbe"), {}),
    ("small/cluster", "RayCluster", ("spec", "workerGroupSpecs", 0, "template", "spec", "securityContext", "runAsRoot"), False),
    ("small/job", "NetworkPolicy", ("spec", "ingres"), []),
    ("small/job", "PersistentVolumeClaim", ("spec", "accessModes"), "ReadWriteMany"),
    ("large/job", "PodMonitor", ("spec", "podMetricsEndpoints", 0, "intervall"), "5s"),
]


@pytest.mark.parametrize(("overlay", "kind", "path", "value"), WRONG, ids=[".".join(map(str, case[2])) for case in WRONG])
def test_a_field_that_is_not_there_or_of_another_type_is_found(
    overlay: str, kind: str, path: tuple[str | int, ...], value: object, faults: Callable[[Manifest], list[str]]
) -> None:
    manifest = deepcopy(next(iter(of_kind(render(overlay), kind).values())))
    *way, last = path
    place: Any = manifest
    for step in way:
        place = place[step]
    place[last] = value
    assert faults(manifest) != []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_pod_may_do_more_than_it_must(overlay: str) -> None:
    for name, pod in pods(render(overlay)):
        spec, container = pod["spec"], only(pod)
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & set(spec), name
        assert not any("hostPath" in volume for volume in spec["volumes"]), name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        }, name
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"], name
        assert container["image"] == "registry.example.com/isograd:0.1.0", name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_pod_names_is_there(overlay: str) -> None:
    manifests = render(overlay)
    claims, maps = of_kind(manifests, "PersistentVolumeClaim"), of_kind(manifests, "ConfigMap")
    for name, pod in pods(manifests):
        spec, container = pod["spec"], only(pod)
        account = of_kind(manifests, "ServiceAccount")[spec["serviceAccountName"]]
        assert account["automountServiceAccountToken"] is False
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes), name
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], "the root can't be written"
        for volume in volumes.values():
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in (None, *claims), name
            assert volume.get("configMap", {}).get("name") in (None, *maps), name
    for manifest in manifests:
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "isograd"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_head_has_the_token_on_and_no_room_for_workers(overlay: str) -> None:
    spec = ray(render(overlay))
    assert spec["authOptions"]["mode"] == "token"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for name, pod in pods(render(overlay)):
        if name != "submitter":
            probes = {only(pod)[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
            assert probes == {"/api/healthz"}, name  # public where tokens are asked for, which the others are not


def chosen(selector: Manifest, labels: dict[str, str]) -> bool:
    """Whether a selector chooses what has these labels."""
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def let_in(manifests: list[Manifest], name: str, port: int, namespace: str, labels: dict[str, str]) -> bool:
    """Whether the network policies let a pod of a namespace, with these labels, reach a port of the pod called `name`."""
    pod = dict(pods(manifests))[name]
    ports = {"metrics": 8080} | {port["name"]: port["containerPort"] for port in only(pod)["ports"]}  # the operator adds that one
    specs = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy").values()]
    mine = [spec for spec in specs if "Ingress" in spec["policyTypes"] and chosen(spec["podSelector"], pod["metadata"]["labels"])]
    assert mine, "a pod that no policy chooses is open to all"
    key = "kubernetes.io/metadata.name"
    own = {"matchLabels": {key: "isograd"}}
    return any(
        chosen(peer.get("namespaceSelector", own), {key: namespace})
        and chosen(peer.get("podSelector", {}), labels)
        and ("ports" not in rule or port in [ports.get(opened["port"], opened["port"]) for opened in rule["ports"]])
        for spec in mine
        for rule in spec.get("ingress", ())
        for peer in rule["from"]
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_is_reached_by_its_own_pods_the_operator_and_prometheus_alone(overlay: str) -> None:
    manifests = render(overlay)
    operator, prometheus = {"app.kubernetes.io/name": "kuberay-operator"}, {"app.kubernetes.io/name": "prometheus"}
    strangers = [
        ("isograd", {}),
        ("default", PART_OF),
        ("default", operator),
        ("kuberay-system", prometheus),
        ("monitoring", operator),
    ]
    for name in ("head", "workers"):
        for port in (6379, 8080, 8265, 9464, 10001, 52365, 40000):
            assert let_in(manifests, name, port, "isograd", PART_OF), port
            assert let_in(manifests, name, port, "kuberay-system", operator) == (port == 8265), port
            scraped = overlay.startswith("large") and port in (8080, 9464)
            assert let_in(manifests, name, port, "monitoring", prometheus) == scraped, port
            assert not any(let_in(manifests, name, port, namespace, labels) for namespace, labels in strangers), port
    for name, pod in pods(manifests):
        assert pod["metadata"]["labels"] == PART_OF, name
    closed = of_kind(manifests, "NetworkPolicy")["deny-by-default"]["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_a_job_and_a_standing_cluster_may_be_there_at_once() -> None:
    # The operator names the service of a head after either, and a job takes over one of that name.
    (job,), (cluster,) = of_kind(render("small/job"), "RayJob"), of_kind(render("small/cluster"), "RayCluster")
    assert job != cluster


def test_prometheus_finds_the_port_on_which_a_run_serves() -> None:
    manifests = render("large/job")
    (monitor,) = of_kind(manifests, "PodMonitor").values()
    assert monitor["spec"]["selector"]["matchLabels"] == PART_OF
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (job,) = of_kind(manifests, "RayJob").values()
    for name, pod in pods(manifests):
        if name != "submitter":
            declared = {port["name"]: port["containerPort"] for port in only(pod)["ports"]}
            assert f"metrics.port={declared[endpoint['port']]}" in job["spec"]["entrypoint"], name


def test_only_the_autoscaler_may_talk_to_kubernetes() -> None:
    spec = ray(render("small/cluster"))
    (mount,) = [mount for mount in spec["autoscalerOptions"]["volumeMounts"] if "serviceaccount" in mount["mountPath"]]
    for name, pod in pods(render("small/cluster")):
        assert mount["name"] not in [mount["name"] for mount in only(pod)["volumeMounts"]], name
    volumes = {volume["name"]: volume for volume in spec["headGroupSpec"]["template"]["spec"]["volumes"]}
    assert set(volumes[mount["name"]]) == {"name", "projected"}
    assert {mount["name"] for mount in spec["autoscalerOptions"]["volumeMounts"]} <= set(volumes)


@pytest.mark.parametrize("overlay", ["small/job", "small/cluster"])
def test_the_small_size_fits_on_a_node_of_4_cores_and_8_gib(overlay: str) -> None:
    manifests = render(overlay)
    asked = [only(pod)["resources"]["requests"] for _, pod in pods(manifests)]
    spec = ray(manifests)
    assert [group["maxReplicas"] for group in spec["workerGroupSpecs"]] == [1]
    if "autoscalerOptions" in spec:
        asked.append(spec["autoscalerOptions"]["resources"]["requests"])
    cores = sum(float(of["cpu"].removesuffix("m")) / (1000 if of["cpu"].endswith("m") else 1) for of in asked)
    gib = sum(float(of["memory"][:-2]) / {"Mi": 1024, "Gi": 1}[of["memory"][-2:]] for of in asked)
    # The rest is for the operator and for what Kubernetes itself runs.
    assert cores <= 2.8
    assert gib <= 6.5


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_credentials_of_a_store_reach_those_who_read_data_and_may_be_missing(overlay: str) -> None:
    store = [{"secretRef": {"name": "isograd-store", "optional": True}}]
    given = {name: only(pod).get("envFrom") for name, pod in pods(render(overlay))}
    assert given.pop("submitter", None) is None
    assert given == {"head": store, "workers": store}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_names_are_resolved_wherever_the_clusters_dns_listens(overlay: str) -> None:
    # Without it no worker finds its head. A cache on the node is in no namespace.
    egress = of_kind(render(overlay), "NetworkPolicy")["ray"]["spec"]["egress"]
    anywhere = [port for rule in egress if "to" not in rule for port in rule["ports"]]
    assert {"port": 53, "protocol": "UDP"} in anywhere
    assert {"port": 53, "protocol": "TCP"} in anywhere


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_job_and_a_standing_cluster_have_the_same_pods(size: str) -> None:
    job, cluster = dict(pods(render(f"{size}/job"))), dict(pods(render(f"{size}/cluster")))
    assert job["workers"] == cluster["workers"]
    for head in (job["head"]["spec"], cluster["head"]["spec"]):
        head["serviceAccountName"] = "any"
        head["volumes"] = [volume for volume in head["volumes"] if volume["name"] in ("tmp", "runs")]
        (container,) = head["containers"]
        container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] in ("tmp", "runs")]
    assert job["head"] == cluster["head"]


def test_the_job_of_a_laptop_trains_by_the_rayjobs_entrypoint_and_goes_on_when_it_is_tried_again(tmp_path: Path) -> None:
    manifests = render("small/job")
    content = of_kind(manifests, "ConfigMap")["isograd-job"]["data"]["digits.toml"]
    assert content == (REPOSITORY / "examples" / "digits" / "digits.toml").read_text()
    (job,) = of_kind(manifests, "RayJob").values()
    assert job["spec"]["backoffLimit"] > 0 and "--auto-resume" in job["spec"]["entrypoint"]
    program, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "isograd"
    (tmp_path / "digits.toml").write_text(content)
    here = {
        "/etc/isograd/digits.toml": str(tmp_path / "digits.toml"),
        "data.train=/opt/isograd/examples/digits/digits.parquet": f"data.train={REPOSITORY}/examples/digits/digits.parquet",
        "/runs/digits": str(tmp_path / "digits"),
        "auto": "none",
        "metrics.port=9464": "metrics.port=0",
        "metrics.linger_seconds=15": "metrics.linger_seconds=0",
        "metrics.linger_scrapes=2": "metrics.linger_scrapes=0",
    }
    assert set(here) <= set(words)
    words = [here.get(word, word) for word in words] + ["--set", "training.epochs=1"]
    for _ in range(2):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "digits" / "summary.json").read_text())
    assert summary["rounds"] == 23
