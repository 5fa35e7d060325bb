"""Examples for the OpenAPI document: one answer of each route. They are typed, so they cannot lack a field.

No field is null: FastAPI would leave it out.
"""

from collections.abc import Mapping
from typing import Any

from dpr.answers.answered import Answered, StepTimings
from dpr.answers.embedding_answer import Embedding, EmbeddingAnswer, Usage
from dpr.answers.search_answer import (
    HitSide,
    NamedReranker,
    PassageAnswer,
    SearchAnswer,
    SearchHit,
    SearchResult,
    Timings,
)
from dpr.answers.state_answer import (
    Health,
    LatencyBucket,
    Ready,
    ShadowSample,
    ShardStatus,
    SnapshotList,
    SnapshotSummary,
    Status,
    UnreadableSnapshot,
)
from ray_jobs.serve.refusals import Responses

_ENCODER = "3f9c1d5a7b2e8046"
_STEPS = StepTimings(work=1.204, total=1.251)
_EXTRA: Mapping[str, str | int] = {"lang": "de", "year": 1994}

SEARCHED = SearchAnswer(
    snapshot=7,
    encoder_id=_ENCODER,
    partial=False,
    missing_shards=[],
    reranker=NamedReranker(model="models/cross-encoder", reranker_id="a4d07e6c51b39f28", top=50),
    results=[
        SearchResult(
            query="how do I sort a list?",
            hits=[
                SearchHit(
                    rank=1,
                    score=7.902,
                    id="list.sort",
                    title="list.sort",
                    text="Sort the list in ascending order and return None.",
                    extra=_EXTRA,
                    dense=HitSide(rank=1, score=0.713),
                    bm25=HitSide(rank=3, score=11.48),
                    before=HitSide(rank=2, score=9.63),
                )
            ],
            lost_tokens=0,
        )
    ],
    timings_ms=Timings(filter=0.0, encode=8.7, search=0.9, rerank=1136.2, total=1146.1),
)
EMBEDDED = EmbeddingAnswer(
    data=[Embedding(index=0, embedding=[0.6, -0.8])],
    model="question",
    usage=Usage(prompt_tokens=9, total_tokens=9, lost_tokens=0),
    snapshot=7,
    encoder_id=_ENCODER,
    timings_ms=_STEPS,
)
PASSAGE = PassageAnswer(
    snapshot=7,
    encoder_id=_ENCODER,
    id="list.sort",
    title="list.sort",
    texts=["Sort the list in ascending order and return None."],
    extra=_EXTRA,
    timings_ms=_STEPS,
)
SNAPSHOTS = SnapshotList(
    serving=7,
    encoder_id=_ENCODER,
    snapshots=[
        SnapshotSummary(
            number=7,
            parent=6,
            published_at="2026-11-27T02:14:09+00:00",
            passages=15808,
            encoder_id=_ENCODER,
            recall=0.9912,
            new_recall=0.985,
            accuracy={"1": 0.541, "20": 0.932},
            note="",
        )
    ],
    damaged=[
        UnreadableSnapshot(number=5, problem="snapshot 5 of my-store is not a snapshot document of this version; …")
    ],
    timings_ms=_STEPS,
)
HEALTH = Health(
    ready=True,
    snapshot=7,
    encoder_id=_ENCODER,
    passages=15808,
    since="2026-11-27T02:14:20+00:00",
    live=8,
    loading=8,
    problem="",
    keys_problem="",
    fetched=True,
    timings_ms=_STEPS,
)
READY = Ready(ready=True, snapshot=7)
STATUS = Status(
    replica="search#9f2c",
    replicas={"running": 2},
    shards=[ShardStatus(number=0, answers=True, snapshots=[7])],
    started_at="2026-11-26T18:00:03+00:00",
    health=HEALTH,
    published_at="2026-11-27T02:14:09+00:00",
    waiting=0,
    requests={"200": 4210, "400": 3},
    latency=[LatencyBucket(up_to_ms=10.0, searches=3980), LatencyBucket(up_to_ms=25.0, searches=233)],
    shadow=ShadowSample(compared=40, skipped=2, failed=0, recall=0.9925),
)


def answers(example: Answered) -> Responses:
    """Return what `responses` of a route takes, so that the document has this example of its answer."""
    return {200: {"content": {"application/json": {"example": _plain(example)}}}}


def _plain(example: Answered) -> Mapping[str, Any]:  # JSON
    return example.model_dump(mode="json")
