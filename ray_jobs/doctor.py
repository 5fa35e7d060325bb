"""`dpr doctor`: whether a cluster and a store are fit for the nights, and what to do about what is not."""

import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dpr.errors import ClusterError
from dpr.operations.check import Finding
from dpr.store import open_store
from dpr.store.proof import prove_put_if_absent
from ray_jobs.connect import connected, named_cluster
from ray_jobs.node_facts import NodeFacts, facts_here

ANSWER_SECONDS = 120.0
"""A machine that has not answered by then counts as lost."""
MAX_SKEW_SECONDS = 5.0
"""Clocks may differ by this much: a lease lives for minutes, and only people read the times of snapshots."""
MIN_SHARED_BYTES = 1_000_000_000
"""For results and batches that processes pass to each other; with less, Ray puts them on a disk."""
MIN_CACHE_BYTES = 5_000_000_000
"""A model, and the segments that one unit reads."""


@dataclass(frozen=True)
class Cluster:
    """The machines that answered, and those that did not."""

    nodes: tuple[NodeFacts, ...]
    silent: tuple[str, ...]
    address: str | None
    """The address that RAY_ADDRESS names; None for a Ray of this process alone."""
    has_token: bool
    """Whether this process sends a token to the cluster."""


def examine(store: str | None) -> list[Finding]:
    """Look at every machine of the cluster that RAY_ADDRESS names, or at this one; and at a store, if one is named.

    Writes and deletes one small object in the store. Raises ClusterError if the cluster cannot be joined.
    """
    with connected():
        cluster = _ask()
    findings = diagnose(cluster)
    return findings if store is None else [*findings, _store(store)]


def diagnose(cluster: Cluster) -> list[Finding]:
    """Return what the facts mean. Pure."""
    topics: dict[str, Callable[[Cluster], str]] = {"machines": _machines}
    others: dict[str, Callable[[Cluster], str]] = {
        "versions": _versions,
        "clocks": _clocks,
        "memory": _shared_memory,
        "cache": _cache,
        "GPUs": _gpus,
        "ports": _ports,
        "rights": _rights,
    }
    topics |= others if cluster.nodes else {}
    return [Finding.of(topic, partial(look, cluster)) for topic, look in topics.items()]


def _ask() -> Cluster:
    """Ask all machines for their facts at once; the reading of a clock counts for the middle of the request."""
    ask = ray.remote(facts_here)
    alive = [node for node in ray.nodes() if node["Alive"]]
    started = time.time()
    names = {
        ask.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(): node["NodeManagerHostname"]
        for node in alive
    }
    facts, waiting = [], list(names)
    while waiting and (left := ANSWER_SECONDS - (time.time() - started)) > 0:
        done, waiting = ray.wait(waiting, timeout=left)
        for reference in done:
            with suppress(ray.exceptions.RayError):
                found: NodeFacts = ray.get(reference)
                # a process had to start first, which takes seconds, so only the time of the answer's return counts
                facts.append(replace(found, clock=found.clock - time.time()))
                del names[reference]
    has_token = os.environ.get("RAY_AUTH_MODE") == "token"
    return Cluster(tuple(sorted(facts, key=lambda each: each.name)), tuple(names.values()), named_cluster(), has_token)


def _machines(cluster: Cluster) -> str:
    if cluster.silent:
        raise ClusterError(
            f"{', '.join(cluster.silent)} did not answer within {ANSWER_SECONDS:.0f} s; look at the logs of Ray there "
            "(/tmp/ray/session_latest/logs), and restart it"
        )
    where = f"of {cluster.address}" if cluster.address else "(no RAY_ADDRESS: a Ray of its own)"
    return f"{len(cluster.nodes)} {where}: {', '.join(node.name for node in cluster.nodes)}"


def _versions(cluster: Cluster) -> str:
    first = cluster.nodes[0].versions
    for package in first | {name: "" for node in cluster.nodes for name in node.versions}:
        found = {node.name: node.versions.get(package, "none") for node in cluster.nodes}
        (usual, _), *others = Counter(found.values()).most_common()
        if others:
            odd = [f"{name} has {each}" for name, each in found.items() if each != usual]
            raise ClusterError(f"{package} is {usual}, and {', '.join(odd)}; install the same versions everywhere")
    return ", ".join(f"{package} {each}" for package, each in first.items())


def _clocks(cluster: Cluster) -> str:
    ahead = {node.name: node.clock for node in cluster.nodes}
    name = max(ahead, key=lambda each: abs(ahead[each]))
    if abs(ahead[name]) > MAX_SKEW_SECONDS:
        way = "ahead of" if ahead[name] > 0 else "behind"
        raise ClusterError(
            f"the clock of {name} is {abs(ahead[name]):.0f} s {way} the one here (at most {MAX_SKEW_SECONDS:.0f} s); "
            "start a time service there (chrony, systemd-timesyncd)"
        )
    return f"differ by {abs(ahead[name]):.1f} s at most"


def _shared_memory(cluster: Cluster) -> str:
    least = min(cluster.nodes, key=lambda node: node.shared_bytes)
    if least.shared_bytes < MIN_SHARED_BYTES:
        raise ClusterError(
            f"/dev/shm of {least.name} has {least.shared_bytes / 1e6:,.0f} MB (at least "
            f"{MIN_SHARED_BYTES / 1e6:,.0f}), so Ray would share values through a disk; give the container more "
            "(--shm-size, or an emptyDir with medium: Memory)"
        )
    return f"/dev/shm has {least.shared_bytes / 1e9:,.1f} GB or more"


def _cache(cluster: Cluster) -> str:
    for node in cluster.nodes:
        if node.cache_free_bytes is None:
            raise ClusterError(
                f"the cache folder {node.cache} of {node.name} cannot be written; set DPR_CACHE there to another folder"
            )
    least = min(cluster.nodes, key=lambda node: node.cache_free_bytes or 0)
    free_bytes = least.cache_free_bytes or 0
    if free_bytes < MIN_CACHE_BYTES:
        raise ClusterError(
            f"{free_bytes / 1e9:,.1f} GB are free for the cache {least.cache} of {least.name} (at least "
            f"{MIN_CACHE_BYTES / 1e9:,.0f}); free space there, or set DPR_CACHE to a folder of a larger disk"
        )
    return f"{free_bytes / 1e9:,.1f} GB or more are free for it"


def _gpus(cluster: Cluster) -> str:
    faults = [f"{node.name}: {fault}" for node in cluster.nodes for fault in node.gpu_faults]
    if faults:
        raise ClusterError(f"{'; '.join(faults)}; take that machine out of the cluster, and reset or replace the GPU")
    kinds = Counter(gpu for node in cluster.nodes for gpu in node.gpus)
    there = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "none: encoders run on CPUs"
    return f"{there}; vectors of several kinds differ in their last bits" if len(kinds) > 1 else there


def _ports(cluster: Cluster) -> str:
    open_ = [f"{node.name}: {place}" for node in cluster.nodes for place in node.reachable]
    if not open_:
        return "Ray listens on loopback alone"
    if not cluster.has_token:
        raise ClusterError(
            f"anyone who reaches Ray's ports can run code there, and no token is required: {len(open_)} ports are open "
            f"beyond loopback, such as {open_[0]}; start every machine with RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN"
        )
    return f"{len(open_)} are open beyond loopback, behind Ray's token"


def _rights(cluster: Cluster) -> str:
    root = [node.name for node in cluster.nodes if node.is_root]
    if not root:
        return "Ray runs as root nowhere"
    return f"Ray runs as root on {', '.join(root)}, which nothing needs; start it as a user of its own"


def _store(url: str) -> Finding:
    def look() -> str:
        store = open_store(url)
        prove_put_if_absent(store)
        next(iter(store.list("")), None)
        found = f"{store.url} can be read, written, listed and deleted from, and refuses to replace an object"
        more = store.needless_rights()
        return f"{found}; its credentials can also {' and '.join(more)}, which no run needs" if more else found

    return Finding.of("store", look)
