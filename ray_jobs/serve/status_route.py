"""GET /v1/status: what a replica serves, and what it has done, for people."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fastapi import FastAPI

from dpr.answers.state_answer import Health, LatencyBucket, ShadowSample, ShardStatus, Status
from dpr.operations.follow import Follower
from ray_jobs.serve.api_examples import STATUS, answers
from ray_jobs.serve.keys import KeyRing
from ray_jobs.serve.prometheus import Metrics
from ray_jobs.serve.refusals import ERRORS
from ray_jobs.serve.shadow import SHARE
from ray_jobs.serve.store_routes import health_of

Replicas = Callable[[], Mapping[str, int]]
"""Counts the replicas of this service by their states."""
SEARCH = "/v1/search"


@dataclass(frozen=True)
class Watch:
    """Facts about a service that a replica does not count by itself."""

    shadow_share: float = SHARE
    """Share of the questions that are drawn to be compared with exact search."""
    replicas: Replicas | None = None
    """None: unknown outside of Ray Serve."""
    shards: Callable[[], Sequence[ShardStatus]] | None = None
    """Returns the state of the processes that hold parts of the index; None: this process holds it."""


DEFAULT_WATCH = Watch()


def add_status(app: FastAPI, follower: Follower, metrics: Metrics, watch: Watch, keys: KeyRing | None = None) -> None:
    """Add the route; `keys` as for `add_store_routes`."""

    @app.get("/v1/status", responses=ERRORS | answers(STATUS))
    async def status() -> Status:
        """Tell what this replica serves and has done. Of several replicas behind one address, any one may answer."""
        started = time.perf_counter()
        counted = None if watch.replicas is None else await asyncio.to_thread(watch.replicas)
        shards = None if watch.shards is None else list(watch.shards())
        with follower.snapshot() as retriever:
            health, published_at = health_of(follower.state, retriever, keys, started), retriever.published_at
        return _status(metrics, counted, health, published_at).model_copy(update={"shards": shards})


def _status(metrics: Metrics, replicas: Mapping[str, int] | None, health: Health, published_at: str) -> Status:
    return Status(
        replica=metrics.replica,
        replicas=replicas,
        shards=None,
        started_at=metrics.started_at,
        health=health,
        published_at=published_at,
        waiting=int(metrics.total("dpr_waiting_questions")),
        requests={name: int(count) for name, count in metrics.totals("dpr_requests_total", "status").items()},
        latency=_latency(metrics),
        shadow=_shadow(metrics),
    )


def _latency(metrics: Metrics) -> list[LatencyBucket]:
    """Return the histogram of searches; Prometheus counts in each bucket those before it, too."""
    within = metrics.totals("dpr_request_seconds_bucket", "le", path=SEARCH)
    bounds = sorted(within, key=float)
    counts = [int(within[bound]) for bound in bounds]
    return [
        LatencyBucket(up_to_ms=None if bound == "+Inf" else float(bound) * 1000, searches=count - before)
        for bound, count, before in zip(bounds, counts, [0, *counts], strict=False)
    ]


def _shadow(metrics: Metrics) -> ShadowSample:
    questions = metrics.totals("dpr_shadow_questions_total", "result")
    hits = metrics.total("dpr_shadow_hits_total")
    return ShadowSample(
        compared=int(questions.get("compared", 0)),
        skipped=int(questions.get("skipped", 0)),
        failed=int(questions.get("failed", 0)),
        recall=metrics.total("dpr_shadow_hits_found_total") / hits if hits else None,
    )
