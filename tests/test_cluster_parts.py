"""The documents that cluster/ gives Kubernetes fit together, and name what exists in this repository."""

import importlib
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dpr.recipe_file import load_recipe
from dpr.recipe_service import ServeConfig
from ray_jobs.serve.doors import OPEN_PATHS
from ray_jobs.serve.haproxy import RETRY_ON
from tests.manifests import (
    BUILDS,
    CLUSTER,
    CONTAINERS,
    DOCUMENTS,
    OVERLAYS,
    PODS,
    ROOT,
    amount,
    container_of,
    every,
    inside,
    one,
)


def test_the_nightly_run_is_submitted_to_its_cluster_with_its_token_and_recipe() -> None:
    cron, cluster = one("CronJob")["spec"], one("RayCluster")
    name = cluster["metadata"]["name"]
    assert (cron["concurrencyPolicy"], len(cron["schedule"].split())) == ("Forbid", 5)
    (submitter,) = cron["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container_of(cluster["spec"]["headGroupSpec"])["ports"]}
    assert submitter["args"][0] == f"--address=http://{name}-head-svc:{ports['dashboard']}"
    token = next(env for env in submitter["env"] if env["name"] == "RAY_AUTH_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": name, "key": "auth_token"}
    folder, _, file = submitter["args"][-1].rpartition("/")
    for group in cluster["spec"]["workerGroupSpecs"]:
        mount = next(mount for mount in container_of(group)["volumeMounts"] if mount["name"] == "recipe")
        assert (mount["mountPath"], mount["readOnly"]) == (folder, True)
    assert list(one("ConfigMap")["data"]) == [file]


def test_the_submitter_waits_for_a_job_that_holds_a_cpu() -> None:
    from typer.main import get_command

    from ray_jobs.submit import app

    (submitter,) = one("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert submitter["command"] == ["python", "-m", "ray_jobs.submit"]
    parsed = get_command(app).make_context("submit", list(submitter["args"])).params
    assert parsed["entrypoint_num_cpus"] == 1
    assert parsed["command"][:3] == ["python", "-m", "ray_jobs.nightly"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_recipe_is_valid_and_fits_the_cluster(overlay: str, tmp_path: Path) -> None:
    (text,) = one("ConfigMap", overlay)["data"].values()
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    wanted = load_recipe(path).resources
    groups = {group["groupName"]: group for group in one("RayCluster", overlay)["spec"]["workerGroupSpecs"]}
    gpus = 0
    if overlay == "cpu":
        assert groups.keys() == {"cpu"}
        # the driver holds one CPU of the same machine
        assert (wanted.cpus_per_encoder or 0) + 1 <= int(container_of(groups["cpu"])["resources"]["limits"]["cpu"])
    else:
        limits = container_of(groups["gpu"])["resources"]["limits"]
        gpus = int(limits["nvidia.com/gpu"]) * groups["gpu"]["maxReplicas"]
    assert wanted.gpus_per_encoder is not None
    assert (wanted.max_encoders or wanted.encoders) * wanted.gpus_per_encoder <= gpus
    (application,) = yaml.safe_load(one("RayService", overlay)["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["store"] == yaml.safe_load(text)["store"]  # job and service meet in one store


def test_only_gpu_workers_are_on_machines_that_can_be_taken_back() -> None:
    placed = [
        group["groupName"]
        for group in one("RayCluster", "spot")["spec"]["workerGroupSpecs"]
        if "affinity" in group["template"]["spec"]
    ]
    assert placed == ["gpu"]


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # of Ray's own models
def test_the_service_is_one_that_ray_serve_can_build() -> None:
    from ray import serve
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build_application
    from ray.serve.schema import ServeDeploySchema

    spec = one("RayService")["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    builder = getattr(importlib.import_module(module), name)
    assert isinstance(build_application(builder, application.args), serve.Application)
    with pytest.raises(ValueError, match="storage"):
        build_application(builder, {**application.args, "storage": "s3://elsewhere"})
    (deployment,) = application.deployments
    assert deployment.name == importlib.import_module(module).SearchReplica.name

    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    worker, scaling = container_of(group), deployment.autoscaling_config
    assert deployment.ray_actor_options.num_cpus == int(worker["resources"]["limits"]["cpu"])
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (group["minReplicas"], group["maxReplicas"])
    assert 0 < scaling["target_ongoing_requests"] < importlib.import_module(module).MAX_ONGOING_REQUESTS
    (keys,) = (mount for mount in worker["volumeMounts"] if mount["name"] == "keys")
    assert application.args["keys_file"] == f"{keys['mountPath']}/keys"
    # requests under way are answered before the pod is ended
    wait = deployment.graceful_shutdown_timeout_s + int(worker["lifecycle"]["preStop"]["exec"]["command"][1])
    assert wait <= group["template"]["spec"]["terminationGracePeriodSeconds"]


def test_probes_ask_open_routes_at_the_port_of_the_service() -> None:
    from fastapi import FastAPI

    from ray_jobs.serve.store_routes import add_store_routes

    app = FastAPI()
    add_store_routes(app, SimpleNamespace(store=None))  # type: ignore[arg-type]  # it is asked nothing
    found = [container for container in CONTAINERS if any(name.endswith("Probe") for name in container)]
    assert len(found) == len(BUILDS)
    for container in found:
        get = container["readinessProbe"]["httpGet"]
        assert get["path"] in OPEN_PATHS
        assert get["path"] in app.openapi()["paths"]
        assert {"name": "serve", "containerPort": get["port"]} in container["ports"]


def test_ports_agree() -> None:
    port = ServeConfig().port  # Ray Serve's, too
    (path,) = one("Ingress")["spec"]["rules"][0]["http"]["paths"]
    service = {"name": f"{one('RayService')['metadata']['name']}-serve-svc", "port": {"number": port}}
    assert path["backend"]["service"] == service
    assert one("Ingress")["spec"]["tls"][0]["hosts"] == [one("Ingress")["spec"]["rules"][0]["host"]]
    listening = {port["containerPort"] for port in inside(DOCUMENTS, "containerPort")}
    rules = (policy["spec"].get("ingress", []) for policy in every("NetworkPolicy"))
    named = {rule["port"] for rule in inside(list(rules), "port")}
    assert port in listening
    assert named <= listening


def labels_of_pods() -> list[dict[str, str]]:
    """The labels of every pod template."""
    return [pod["metadata"]["labels"] for pod in inside(DOCUMENTS, "metadata") if "containers" in pod.get("spec", {})]


def test_selectors_find_pods() -> None:
    labels = labels_of_pods()
    assert len(labels) == len(PODS)
    assert {label["dpr/part"] for label in labels} == {"nightly", "search"}  # each is behind a network policy
    for selector in itertools.chain(
        (one("PodDisruptionBudget")["spec"]["selector"],),
        (spread["labelSelector"] for spread in inside(DOCUMENTS, "topologyKey")),
        (policy["spec"]["podSelector"] for policy in every("NetworkPolicy")),
    ):
        wanted = dict(selector.get("matchLabels", {}))
        for expression in selector.get("matchExpressions", []):
            assert set(expression["values"]) == {label[expression["key"]] for label in labels}
        assert any(wanted.items() <= label.items() for label in labels)


def test_secrets_and_config_maps_are_named_and_made() -> None:
    guide = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    secrets = {ref["secretRef"]["name"] for ref in inside(DOCUMENTS, "secretRef")}
    secrets |= {volume["secret"]["secretName"] for volume in inside(DOCUMENTS, "secret")}
    assert secrets == set(re.findall(r"kubectl create secret generic (\S+)", guide))
    (tls,) = one("Ingress")["spec"]["tls"]
    assert f"kubectl create secret tls {tls['secretName']}" in guide
    assert "kind: Secret" not in "".join(path.read_text(encoding="utf-8") for path in CLUSTER.rglob("*.yaml"))
    maps = {volume["configMap"]["name"] for volume in inside(DOCUMENTS, "configMap")}
    assert maps == {document["metadata"]["name"] for document in every("ConfigMap")}


# what holds for every pod


def test_volumes_are_mounted_and_large_enough() -> None:
    for pod in PODS:
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
            assert mounts.keys() == volumes.keys()
            limits = container["resources"]["limits"]
            if "shm" in volumes:
                shared = volumes["shm"]["emptyDir"]
                assert (mounts["shm"], shared["medium"]) == ("/dev/shm", "Memory")
                assert amount(shared["sizeLimit"]) <= amount(limits["memory"]) / 4
            if "tmp" in volumes:
                assert amount(volumes["tmp"]["emptyDir"]["sizeLimit"]) < amount(limits["ephemeral-storage"])
            if "cache" in volumes:
                env = {variable["name"]: variable.get("value") for variable in container["env"]}
                claim = volumes["cache"]["ephemeral"]["volumeClaimTemplate"]["spec"]["resources"]["requests"]
                assert env["DPR_CACHE"] == mounts["cache"]
                assert float(env["DPR_CACHE_GB"]) * 1e9 < 0.9 * amount(claim["storage"])
    for group in inside(DOCUMENTS, "rayStartParams"):
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        # else Ray would keep the object store on the disk
        assert int(group["rayStartParams"]["object-store-memory"]) < amount(volumes["shm"]["emptyDir"]["sizeLimit"])


def test_no_container_runs_as_root_or_gains_privileges() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    user, group = map(int, re.findall(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)[-1])
    assert min(user, group) > 0
    for pod in PODS:
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": group,
            "fsGroup": group,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    for container in [*CONTAINERS, *(spec["autoscalerOptions"] for spec in inside(DOCUMENTS, "autoscalerOptions"))]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert container["resources"]["limits"].keys() >= {"cpu", "memory"}


def test_environment_variables_are_ones_that_code_reads() -> None:
    import ray

    package = Path(ray.__file__).parent
    read_in = [*(ROOT / "dpr").rglob("*.py"), package / "serve" / "_private" / "constants.py"]
    read_in += [package / "exceptions.py", *(package / "_private" / "authentication").glob("*.py")]
    code = "".join(path.read_text(encoding="utf-8") for path in read_in)
    names = {variable["name"] for container in CONTAINERS for variable in container.get("env", [])}
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []


def test_pods_of_the_service_repeat_the_requests_that_dpr_serve_repeats() -> None:
    groups = [one("RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]]
    groups += one("RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    for group in groups:
        environment = {variable["name"]: variable["value"] for variable in container_of(group)["env"]}
        assert environment["RAY_SERVE_HAPROXY_RETRY_ON"] == RETRY_ON
