"""Check, before work starts on a cluster, that its machines can do a run's work, as far as seconds allow.

`dpr doctor` checks more, and lists all its findings. Machines that an autoscaling cluster adds later are not inspected.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dpr.encoder.spec import resolve_same
from dpr.errors import ClusterError, CorpusError, DprError, MissingObjectError, StoreError
from dpr.recipe import EncoderConfig
from dpr.run import Plan
from dpr.store import open_store
from dpr.store.base import probe_name
from ray_jobs.connect import named_cluster
from ray_jobs.node_facts import versions_here
from ray_jobs.oversight import Listener

ANSWER_SECONDS = 60.0
"""After this, it is left to Ray to find out whether a machine is lost."""
_GROUP_LABEL = "ray.io/node-group"


@dataclass(frozen=True)
class Needs:
    """What each machine must have for a run."""

    versions: dict[str, str]
    """Versions on the driver's machine."""
    encoder: EncoderConfig
    encoder_id: str
    store: str
    probe: str
    """Name of an object that the driver has put into the store."""
    corpus_file: str | None
    """Path of a file of the corpus; None if the corpus lies elsewhere."""


def inspect_cluster(plan: Plan, listener: Listener) -> None:
    """Raise the error that a run of the plan would end with on a machine of the connected Ray.

    The machines of a cluster that RAY_ADDRESS names are asked, all at once. Writes and deletes one small object in the
    store.
    """
    check_gpus(plan.recipe.resources.gpus_per_encoder or 0.0)
    if named_cluster() is None:
        return
    store, probe = open_store(plan.recipe.store), probe_name()
    store.put(probe, b"")
    try:
        faults = _ask(needs_of(plan, store.url, probe), listener)
    finally:
        store.delete(probe)
    if faults:
        name, error = faults[0]
        others = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        error.args = (f"machine {name}{others}: {error}",)
        raise error


def check_gpus(gpus_per_encoder: float) -> None:
    """Raise ClusterError if no machine has the GPUs of one encoder, and none can be added that has."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    most = max((node["Resources"].get("GPU", 0.0) for node in nodes), default=0.0)
    if gpus_per_encoder <= most or _may_grow(nodes):
        return
    raise ClusterError(
        f"resources.gpus_per_encoder is {gpus_per_encoder:g}, and no machine of this Ray has more than {most:g} GPUs; "
        "add a machine that has them, or lower the setting (0: encode on CPUs)"
    )


def faults_here(needs: Needs) -> tuple[str, DprError | None]:
    """Return this machine's name, and what keeps it from doing its share of a run."""
    looks: Sequence[Callable[[], object]] = (
        partial(_check_versions, needs.versions),
        partial(_check_store, needs.store, needs.probe),
        partial(resolve_same, needs.encoder, needs.encoder_id),
        partial(_check_corpus, needs.corpus_file),
    )
    try:
        for look in looks:
            look()
    except DprError as error:
        return socket.gethostname(), type(error)(str(error))  # without its causes, which may not be picklable
    return socket.gethostname(), None


def needs_of(plan: Plan, store_url: str, probe: str) -> Needs:
    """Return what each machine needs for a run of the plan. The object `probe` is in the store."""
    path = next((slice_.path for slice_ in plan.slices if "://" not in slice_.path), None)
    return Needs(versions_here(), plan.spec.config, plan.spec.encoder_id, store_url, probe, path)


def _ask(needs: Needs, listener: Listener) -> list[tuple[str, DprError]]:
    """Return name and fault of the machines that have one. A machine that was lost meanwhile is left out."""
    workers = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    names = {_start_look(needs, node["NodeID"]): node["NodeManagerHostname"] for node in workers}
    until, faults = time.monotonic() + ANSWER_SECONDS, []
    while names and (left := until - time.monotonic()) > 0:
        done, _ = ray.wait(list(names), timeout=left)
        for answer in done:
            del names[answer]
            try:
                name, error = ray.get(answer)
            except ray.exceptions.RayError:
                continue
            if error is not None:
                faults.append((name, error))
    if names:
        listener.message("machines", f"{', '.join(names.values())} did not answer within {ANSWER_SECONDS:.0f} s")
    return sorted(faults, key=lambda fault: fault[0])


def _start_look(needs: Needs, node_id: str) -> "ray.ObjectRef[tuple[str, DprError | None]]":
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    options = {"num_cpus": 0, "max_retries": 0, "name": "inspect", "scheduling_strategy": there}
    return ray.remote(faults_here).options(**options).remote(needs)


def _may_grow(nodes: Sequence[dict[str, dict[str, str]]]) -> bool:
    """Return whether an autoscaler may add machines: the cloud's gives each node a group, and KubeRay runs in pods."""
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(_GROUP_LABEL in node.get("Labels", {}) for node in nodes)


def _check_versions(wanted: dict[str, str]) -> None:
    found = versions_here()
    for package, version in wanted.items():
        if found.get(package) != version:
            raise ClusterError(
                f"{package} is {found.get(package, 'not installed')} there and {version} where the run was started; "
                "install the same versions everywhere (dpr doctor lists them)"
            )


def _check_store(url: str, probe: str) -> None:
    try:
        open_store(url).get(probe)
    except MissingObjectError as error:
        raise StoreError(
            f"store {url} is another folder there than where the run was started; name a folder that all machines "
            "share, or s3://bucket/prefix"
        ) from error


def _check_corpus(path: str | None) -> None:
    if path is not None and not os.access(path, os.R_OK):
        raise CorpusError(
            f"corpus file {path} cannot be read there; name a folder that all machines share, or an address"
        )
