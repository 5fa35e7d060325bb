"""What cluster/ gives Kubernetes is valid by kustomize, by KubeRay's own definitions, and by its checks."""

import copy
import functools
import gzip
import itertools
import shutil
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from tests.data import data_folder
from tests.kustomize import Json
from tests.manifests import BUILDS, CLUSTER, DOCUMENTS, OVERLAYS, ROOT, every, inside, one

CORE_FIELDS = {
    "CronJob": "schedule timeZone concurrencyPolicy startingDeadlineSeconds successfulJobsHistoryLimit"
    " failedJobsHistoryLimit jobTemplate",
    "PodDisruptionBudget": "maxUnavailable selector",
    "NetworkPolicy": "podSelector policyTypes ingress egress",
    "Ingress": "ingressClassName tls rules",
}
"""Fields of `spec` of the kinds that are not KubeRay's; of these, Kubernetes has more."""
VERSIONS = {
    "ConfigMap": "v1",
    "CronJob": "batch/v1",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "Ingress": "networking.k8s.io/v1",
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_builds_the_same(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl, which holds kustomize")
    made = subprocess.run(
        [kubectl, "kustomize", CLUSTER / "overlays" / overlay], capture_output=True, text=True, check=True
    )

    def named(document: Json) -> str:
        return f"{document['kind']} {document['metadata']['name']}"

    assert sorted(yaml.safe_load_all(made.stdout), key=named) == sorted(BUILDS[overlay], key=named)


def strict(schema: Json) -> Json:
    """A CRD's schema as a JSON Schema that refuses unknown fields, which an API server silently drops."""
    made = dict(schema)
    if "properties" in schema:
        made["properties"] = {name: strict(field) for name, field in schema["properties"].items()}
    if "items" in schema:
        made["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    if schema.get("nullable"):
        made["type"] = [schema["type"], "null"]
    return made


@functools.cache
def schema_of(kind: str) -> Json:
    """KubeRay's definition of a kind, strictly."""
    path = data_folder("kuberay-crds") / f"ray.io_{kind.lower()}s.yaml.gz"
    crd = yaml.load(gzip.decompress(path.read_bytes()), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
    assert crd["group"] == "ray.io"
    (schema,) = (one["schema"]["openAPIV3Schema"] for one in crd["versions"] if one["name"] == "v1")
    schema["properties"]["metadata"]["properties"] = {"name": {"type": "string", "maxLength": 47}}
    return strict(schema)


def problems(document: object, schema: Json) -> list[str]:
    """What a schema says about a document."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in errors]


def part(schema: Json, *path: str) -> Json:
    """The schema of a field within another."""
    for name in path:
        schema = schema["items"] if name == "items" else schema["properties"][name]
    return schema


@pytest.mark.parametrize("overlay", BUILDS)
def test_kuberay_accepts_it(overlay: str) -> None:
    own = [document for document in BUILDS[overlay] if document["apiVersion"].startswith("ray.io/")]
    assert {(document["apiVersion"], document["kind"]) for document in own} == {
        ("ray.io/v1", "RayCluster"),
        ("ray.io/v1", "RayService"),
    }
    for document in own:
        assert problems(document, schema_of(document["kind"])) == []


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("spec.enableTreeAutoscaling", True, "'enableTreeAutoscaling' was unexpected"),
        ("spec.rayVersion", 2.6, "2.6 is not of type 'string'"),
        ("spec.authOptions.mode", "tokens", "'tokens' is not one of"),
        ("spec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("spec.workerGroupSpecs.0.maxReplicas", "8", "'8' is not of type 'integer'"),
        ("spec.workerGroupSpecs.1.template.spec.tolerances", [], "'tolerances' was unexpected"),
        ("spec.workerGroupSpecs.1.template.spec.containers.0.image", None, "is not of type 'string'"),
        ("spec.workerGroupSpecs.1.template.spec.containers.0.resources.limits.memory", "32 GB", "match"),
    ],
)
def test_kuberay_refuses_a_broken_one(place: str, value: object, message: str) -> None:
    broken = copy.deepcopy(one("RayCluster"))
    *parents, field = place.split(".")
    inner: Any = broken
    for parent in parents:
        inner = inner[int(parent) if parent.isdigit() else parent]
    inner[field] = value
    (problem,) = problems(broken, schema_of("RayCluster"))
    assert message in problem


def test_other_kinds_have_parts_that_kuberay_knows() -> None:
    """KubeRay's definitions contain pods, selectors and network rules of Kubernetes, for which there are no others."""
    cluster = part(schema_of("RayCluster"), "spec")
    pod = part(cluster, "headGroupSpec", "template")
    selector = part(pod, "spec", "topologySpreadConstraints", "items", "labelSelector")
    network = part(cluster, "networkPolicy", "head")
    for document in DOCUMENTS:
        kind, spec = document["kind"], document.get("spec", {})
        if document["apiVersion"].startswith("ray.io/"):
            continue
        assert document["apiVersion"] == VERSIONS[kind]
        assert set(spec) <= set(CORE_FIELDS.get(kind, "").split())
        if kind == "CronJob":
            assert problems(spec["jobTemplate"]["spec"]["template"], pod) == []
        if kind == "PodDisruptionBudget":
            assert problems(spec["selector"], selector) == []
        if kind == "NetworkPolicy":
            assert problems(spec["podSelector"], selector) == []
            assert problems(spec.get("ingress", []), part(network, "ingressRules")) == []
            assert problems(spec.get("egress", []), part(network, "egressRules")) == []
            assert [way.lower() for way in spec["policyTypes"]] == [way for way in ("ingress", "egress") if way in spec]


def test_what_kuberay_checks_beyond_its_definitions() -> None:
    """These rules are those of its validation.go."""
    for spec in itertools.chain(
        (cluster["spec"] for cluster in every("RayCluster")),
        (service["spec"]["rayClusterConfig"] for service in every("RayService")),
    ):
        assert f"ray=={spec['rayVersion']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["enableInTreeAutoscaling"]
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert [pod for pod in inside(spec, "containers") if "restartPolicy" in pod] == []
        for group in spec["workerGroupSpecs"]:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    options = one("RayService", "gradual")["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100
