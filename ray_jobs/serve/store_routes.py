"""Routes on the store and the replica: GET /v1/passages/{id}, /v1/snapshots, /v1/health, /v1/ready."""

import asyncio
import time
from functools import lru_cache, partial
from typing import Annotated

from fastapi import FastAPI, Path, Query, Response

from dpr.answers.answered import StepTimings
from dpr.answers.search_answer import PassageAnswer
from dpr.answers.state_answer import Health, Ready, SnapshotList, SnapshotSummary, UnreadableSnapshot
from dpr.errors import StoreError
from dpr.formats.snapshots import DamagedSnapshot, numbers, read_each, read_snapshot
from dpr.operations.follow import Follower, Following
from dpr.search.filters import shown
from dpr.search.hits import Passage
from dpr.search.retrieve import Retriever
from dpr.store import Store
from ray_jobs.serve.api_examples import HEALTH, PASSAGE, READY, SNAPSHOTS, answers
from ray_jobs.serve.keys import KeyRing
from ray_jobs.serve.messages import ErrorBody, milliseconds
from ray_jobs.serve.refusals import ERRORS, Responses, refusal

MAX_LISTED = 100
_NO_PASSAGE: Responses = {404: {"model": ErrorBody, "description": "There is no passage with this id."}}


def add_store_routes(app: FastAPI, follower: Follower, keys: KeyRing | None = None) -> None:
    """Add the routes; `keys`: who may ask, None: everybody."""
    _add_health(app, follower, keys)

    @app.get(
        "/v1/passages/{passage_id:path}",
        response_model=PassageAnswer,
        responses=ERRORS | _NO_PASSAGE | answers(PASSAGE),
    )
    async def passage(
        passage_id: Annotated[str, Path(description="The passage's own id.", examples=["42"])],
    ) -> Response:
        """Return a passage by its id; the ids of all segments are read for it."""
        started = time.perf_counter()

        def find() -> tuple[Passage | None, int, str]:
            with follower.snapshot() as retriever:
                return retriever.passage(passage_id), retriever.number, retriever.body.encoder_id

        found, number, encoder_id = await asyncio.to_thread(find)
        if found is None:
            return refusal(404, f"snapshot {number} has no passage {shown(passage_id)}; ids are those of the corpus")
        answer = PassageAnswer(
            snapshot=number,
            encoder_id=encoder_id,
            id=found.id,
            title=found.title,
            texts=found.texts,
            extra=found.extra,
            timings_ms=_taken_since(started),
        )
        return Response(answer.model_dump_json(), media_type="application/json")

    # a document is written once, and pages request the same ones repeatedly
    summary = lru_cache(MAX_LISTED)(partial(_summary, follower.store))

    @app.get("/v1/snapshots", responses=ERRORS | answers(SNAPSHOTS))
    async def snapshots(
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="How many snapshots, at most.")] = 20,
    ) -> SnapshotList:
        """List the newest snapshots of the store."""

        started = time.perf_counter()

        def read() -> tuple[list[SnapshotSummary], list[DamagedSnapshot]]:
            there = numbers(follower.store)
            if not there:
                raise StoreError(
                    f"store {follower.store.url} holds no snapshot any more, so none can be listed; answers still come "
                    f"from snapshot {follower.number}"
                )
            return read_each(there[-limit:], summary)

        found, damaged = await asyncio.to_thread(read)
        with follower.snapshot() as retriever:
            return SnapshotList(
                serving=retriever.number,
                encoder_id=retriever.body.encoder_id,
                snapshots=found[::-1],
                damaged=[UnreadableSnapshot(number=each.number, problem=each.problem) for each in damaged[::-1]],
                timings_ms=_taken_since(started),
            )


def _add_health(app: FastAPI, follower: Follower, keys: KeyRing | None) -> None:
    @app.get("/v1/health", responses=answers(HEALTH))
    async def health() -> Health:
        """Tell what is served, and whether it is the newest. Answers as soon as a replica is ready."""
        started = time.perf_counter()
        state = follower.state
        with follower.snapshot() as retriever:
            return health_of(state, retriever, keys, started)

    @app.get("/v1/ready", responses=answers(READY))
    async def ready() -> Ready:
        """Tell that requests are taken, for probes."""
        with follower.snapshot() as retriever:
            return Ready(ready=True, snapshot=retriever.number)


def health_of(state: Following, retriever: Retriever, keys: KeyRing | None, started: float) -> Health:
    """Return what a replica serves, and whether it is the newest; `started` is when the request came."""
    return Health(
        ready=True,
        snapshot=retriever.number,
        encoder_id=retriever.body.encoder_id,
        passages=retriever.body.passages,
        since=state.since,
        live=state.live,
        loading=state.loading,
        problem=state.problem,
        keys_problem="" if keys is None else keys.problem,
        fetched=state.is_fetched,
        timings_ms=_taken_since(started),
    )


def _taken_since(started: float) -> StepTimings:
    """Return the time of a request that waited for nobody."""
    taken = milliseconds(time.perf_counter() - started)
    return StepTimings(work=taken, total=taken)


def _summary(store: Store, number: int) -> SnapshotSummary:
    snapshot = read_snapshot(store, number)
    return SnapshotSummary(
        number=number,
        parent=snapshot.parent,
        published_at=snapshot.published_at,
        passages=snapshot.body.passages,
        encoder_id=snapshot.body.encoder_id,
        recall=snapshot.body.gate.recall,
        new_recall=snapshot.body.gate.new_recall,
        accuracy=snapshot.body.gate.accuracy_index,
        note=snapshot.note,
    )
