"""The Ray Serve deployments: encoder, index and HTTP in one process, scaled by replicas; or the index in others.

A cluster's Serve config (a KubeRay RayService) names it as `import_path: ray_jobs.serve.deployment:application` with
`args: {store: s3://bucket/prefix}`.
"""

import gc
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from dpr.operations.follow import POLL_SECONDS, Follower
from dpr.recipe_service import RerankConfig, Topology
from dpr.search.rerank import Reranker
from dpr.search.shard_groups import GroupPlace
from dpr.store import open_store
from ray_jobs.serve.answer_cache import CACHE_MB
from ray_jobs.serve.app import make_app
from ray_jobs.serve.front import AccessLog
from ray_jobs.serve.keys import key_ring
from ray_jobs.serve.replica_log import log_with_serve
from ray_jobs.serve.shadow import SHARE
from ray_jobs.serve.shard_deployment import LOGGING, ShardReplica, shard_name
from ray_jobs.serve.shard_handles import HandleShards
from ray_jobs.serve.status_route import Watch

MAX_ONGOING_REQUESTS = 512
"""Requests in progress in a replica, at most; more are refused with 503 instead of piling up."""

GARBAGE_OBJECTS = 50_000
"""Objects that are made, beyond those that are dropped, before Python looks for garbage among them."""


class Arguments(BaseModel):
    """`args` of the application in a Serve config."""

    model_config = ConfigDict(extra="forbid")

    store: str
    """Folder or `s3://bucket/prefix`."""
    model: str | None = None
    """Path of the snapshot's model on these machines, if it differs from where it was made."""
    poll_seconds: float = Field(POLL_SECONDS, gt=0.0)
    """Seconds between two looks for a newer snapshot."""
    keys_file: str | None = None
    """File with hashed keys on the machines of the replicas, which is read again when it changes."""
    keys: str = ""
    """Lines of such a file; by default those of the environment variable DPR_SERVE_KEYS."""
    access_log: str | None = None
    """File to which each request adds a line of JSON."""
    cache_mb: float = Field(CACHE_MB, ge=0.0)
    """Memory for the answer cache, which is emptied when the snapshot changes, in 10⁶ bytes; 0: no cache."""
    rerank: RerankConfig | None = None
    """Section `rerank` of a recipe: the cross-encoder of requests that want to be re-ranked."""
    shadow_share: float = Field(SHARE, ge=0.0, le=1.0)
    """Share of the questions that are drawn to be compared with exact search."""
    topology: Topology = "single"
    """`single`: each replica holds the index; `sharded`: other processes hold it, each a part."""
    shards: int = Field(2, ge=1)
    """Number of these processes."""
    shard_deadline_seconds: float = Field(1.0, gt=0.0)
    """Seconds in which they must answer; an answer without some of them names the missing ones."""


class _Replica:
    """One process that answers questions from the live snapshot, and switches to the next one by itself."""

    def __init__(self, arguments: Arguments, *shards: DeploymentHandle) -> None:
        log_with_serve()
        gc.set_threshold(GARBAGE_OBJECTS)
        self._keys = key_ring(arguments.keys_file, arguments.keys)
        self._access_log = AccessLog(Path(arguments.access_log)) if arguments.access_log else None
        self._cache_mb = arguments.cache_mb
        self._reranker = Reranker.open(arguments.rerank) if arguments.rerank else None
        asked = HandleShards(shards, arguments.shard_deadline_seconds) if shards else None
        self._watch = Watch(arguments.shadow_share, _replica_states, asked.states if asked else None)
        self._follower = Follower(open_store(arguments.store), arguments.model, arguments.poll_seconds, asked)

    def __del__(self) -> None:
        """Close the snapshot. Serve calls this when a replica stops; Python also calls it if none was opened."""
        if hasattr(self, "_follower"):
            self._follower.close()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._follower, self._reranker, self._keys, self._access_log, self._cache_mb, self._watch)


def _replica_states() -> Mapping[str, int]:
    """Return state → how many replicas of the deployment that this process belongs to are in it."""
    context = serve.get_replica_context()
    deployment = serve.status().applications[context.app_name].deployments[context.deployment]
    return {state.lower(): count for state, count in deployment.replica_states.items()}


SearchReplica = serve.deployment(
    serve.ingress()(_Replica),
    name="search",
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    logging_config=LOGGING,
)


def application(arguments: Arguments) -> serve.Application:
    """Return the application of a Serve config."""
    return SearchReplica.bind(arguments, *_shards(arguments, {}))


def sized_application(arguments: Arguments, replicas: int, cpus: float) -> serve.Application:
    """Return the application with this many replicas, each process of which has `cpus` CPUs."""
    # Ray sets OMP_NUM_THREADS to it, and with that the threads of torch and faiss; rounded up, the last finds none
    actor_options = {"num_cpus": int(cpus) or math.floor(cpus * 10_000) / 10_000}
    replica = SearchReplica.options(
        num_replicas=replicas, max_constructor_retry_count=1, ray_actor_options=actor_options
    )
    return replica.bind(arguments, *_shards(arguments, actor_options))


def _shards(arguments: Arguments, actor_options: Mapping[str, float]) -> Sequence[serve.Application]:
    if arguments.topology == "single":
        return []
    places = [GroupPlace(number, arguments.shards) for number in range(arguments.shards)]
    return [
        ShardReplica.options(name=shard_name(place.number), ray_actor_options=dict(actor_options)).bind(
            arguments.store, place
        )
        for place in places
    ]
