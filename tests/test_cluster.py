"""What cluster/ holds is valid by KubeRay's own definitions, and every name in it exists in this repository."""

import copy
import functools
import gzip
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from dpr.recipe_file import load_recipe
from tests.data import data_folder

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"

DOCKERFILE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DOCUMENTS: list[Json] = [
    document
    for path in sorted(CLUSTER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]
(RECIPE_MAP,), (JOB,), (SERVICE,) = (
    [document for document in DOCUMENTS if document["kind"] == kind] for kind in ("ConfigMap", "RayJob", "RayService")
)
CLUSTERS: dict[str, Json] = {
    "RayJob": JOB["spec"]["rayClusterSpec"],
    "RayService": SERVICE["spec"]["rayClusterConfig"],
}


# KubeRay's definitions


def strict(schema: Json) -> Json:
    """A CRD's schema as a JSON Schema that refuses what an API server would drop without a word: unknown fields."""
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
def validator(api_version: str, kind: str) -> jsonschema.Draft202012Validator:
    """Checks documents of this kind and version."""
    path = data_folder("kuberay-crds") / f"ray.io_{kind.lower()}s.yaml.gz"
    crd = yaml.load(gzip.decompress(path.read_bytes()), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["spec"]
    group, version = api_version.split("/")
    assert group == crd["group"]
    (schema,) = (one["schema"]["openAPIV3Schema"] for one in crd["versions"] if one["name"] == version)
    schema["properties"]["metadata"]["properties"] = {"name": {"type": "string", "maxLength": 47}}
    return jsonschema.Draft202012Validator(strict(schema))


@pytest.mark.parametrize("document", [JOB, SERVICE], ids=lambda document: str(document["kind"]))
def test_kuberay_accepts_it(document: Json) -> None:
    errors = validator(document["apiVersion"], document["kind"]).iter_errors(document)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("spec.shutdownAfterJobsFinish", True, "'shutdownAfterJobsFinish' was unexpected"),
        ("spec.backoffLimit", "1", "'1' is not of type 'integer'"),
        ("spec.rayClusterSpec.rayVersion", 2.6, "2.6 is not of type 'string'"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens", "'tokens' is not one of"),
        ("spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.tolerances", [], "'tolerances' was unexpected"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.image", None, "is not of type 'string'"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory", "32 GB", "match"),
    ],
)
def test_kuberay_refuses_a_broken_one(place: str, value: object, message: str) -> None:
    broken = copy.deepcopy(JOB)
    *parents, field = place.split(".")
    inner: Any = broken
    for parent in parents:
        inner = inner[int(parent) if parent.isdigit() else parent]
    inner[field] = value
    (error,) = validator(JOB["apiVersion"], JOB["kind"]).iter_errors(broken)
    assert message in error.message


# what the manifests name


@pytest.mark.slow
def test_the_entrypoint_runs() -> None:
    program, *arguments = shlex.split(JOB["spec"]["entrypoint"])
    assert program == "python"
    job = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    # module and flags are right: what is missing here is the recipe, which is mounted there
    assert f"error: recipe {arguments[-1]} cannot be read" in job.stderr
    head = JOB["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,), (volume,) = head["containers"][0]["volumeMounts"], head["volumes"]
    assert (mount["name"], volume["configMap"]["name"]) == (volume["name"], RECIPE_MAP["metadata"]["name"])
    assert [f"{mount['mountPath']}/{name}" for name in RECIPE_MAP["data"]] == [arguments[-1]]


def test_the_recipe_is_valid_and_fits_the_cluster(tmp_path: Path) -> None:
    (text,) = RECIPE_MAP["data"].values()
    path = tmp_path / "nightly.yaml"
    path.write_text(text, encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.encoder.model.startswith(f"package:{PROJECT['optional-dependencies']['demo'][0].replace('-', '_')}/")
    (gpu,) = (group for group in JOB["spec"]["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu")
    gpus = int(gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]) * gpu["maxReplicas"]
    wanted = recipe.resources
    assert 0 < (wanted.max_encoders or wanted.encoders) * (wanted.gpus_per_encoder or 0) <= gpus


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # of Ray's own models
def test_the_service_is_one_that_ray_serve_can_build() -> None:
    from ray import serve
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(SERVICE["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    builder = getattr(importlib.import_module(module), name)
    assert isinstance(build(builder, application.args), serve.Application)
    with pytest.raises(ValueError, match="storage"):
        build(builder, {**application.args, "storage": "s3://elsewhere"})
    (deployment,) = application.deployments
    assert deployment.name == importlib.import_module(module).SearchReplica.name

    spec = SERVICE["spec"]["rayClusterConfig"]
    (group,) = spec["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert (deployment.num_replicas, deployment.ray_actor_options.num_cpus) == (group["minReplicas"], cpus)
    for pod in (spec["headGroupSpec"], group):
        ports = {port["name"]: port["containerPort"] for port in pod["template"]["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == config.http_options.port


def test_job_and_service_meet_in_one_store() -> None:
    (application,) = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["applications"]
    (recipe,) = RECIPE_MAP["data"].values()
    assert application["args"]["store"] == yaml.safe_load(recipe)["store"]


@pytest.mark.parametrize("kind", CLUSTERS)
def test_every_cluster_is_of_the_pinned_ray_and_closed(kind: str) -> None:
    spec = CLUSTERS[kind]
    assert f"ray=={spec['rayVersion']}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["authOptions"] == {"mode": "token"}


# what holds for every pod


def pods(node: object) -> Iterator[Json]:
    """Every pod specification within a document."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for inner in node.values():
            yield from pods(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from pods(inner)


def containers() -> list[Json]:
    """Every container, with the autoscaler's: it is one that KubeRay completes."""
    found = [container for document in DOCUMENTS for pod in pods(document) for container in pod["containers"]]
    return [*found, JOB["spec"]["rayClusterSpec"]["autoscalerOptions"]]


def test_no_container_runs_as_root_or_gains_privileges() -> None:
    user, group = map(int, re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[-1])
    assert min(user, group) > 0
    for pod in (pod for document in DOCUMENTS for pod in pods(document)):
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": group,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    for container in containers():
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_containers_get_what_they_ask_for_and_leave_probes_to_kuberay() -> None:
    for container in containers():
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
        assert not [field for field in container if field.endswith("Probe")]


# the image


def test_all_run_the_image_that_the_dockerfile_makes() -> None:
    image = f"dpr:{PROJECT['version']}"
    assert {container["image"] for container in containers() if "image" in container} == {image}
    for name in ("Dockerfile", "README.md"):
        assert f"docker build -f cluster/Dockerfile -t {image}" in (CLUSTER / name).read_text(encoding="utf-8")


def test_the_image_is_made_of_what_is_here() -> None:
    copied = [source for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]]
    sources = {source.rstrip("/") for source in copied if not source.startswith("--")}
    assert sources == {"constraints.txt", "dpr", "pyproject.toml", "ray_jobs", "README.md", "recipes"}
    assert [source for source in sources if not (ROOT / source).exists()] == []
    ignored, *kept = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignored == "*"
    assert {line[1:].rstrip("/") for line in kept if line.startswith("!")} == sources


def test_the_image_starts_with_a_command_of_this_project() -> None:
    (command,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', DOCKERFILE, re.MULTILINE)
    module, _, function = PROJECT["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    (extra,) = re.findall(r"'\.\[(\w+)\]'", DOCKERFILE)
    assert extra in PROJECT["optional-dependencies"]


def test_base_images_are_plain_names() -> None:
    named = re.findall(r"^(?:ARG BASE=|FROM )(\S+)$", DOCKERFILE, re.MULTILINE)
    assert named[-1] == "${BASE}"
    assert all(re.fullmatch(r"[a-z0-9-]+:[a-z0-9.-]+", name) for name in named[:-1])
