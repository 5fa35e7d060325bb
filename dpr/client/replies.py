"""Typed answers of the service. What a newer service says beyond them is left out; a test compares all of them with its
OpenAPI document.
"""

import base64
import sys
from array import array
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

Tower = Literal["question", "passage"]


class Answered(BaseModel):
    """What all parts of answers have in common."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Side(Answered):
    """What one kind of search, or the search before re-ranking, says of a passage."""

    rank: int | None
    """1 is the best; None if only the other kind of search found it."""
    score: float


class SearchHit(Answered):
    """One passage of an answer."""

    rank: int
    """1 is the best."""
    score: float
    """What the rank follows from; higher is better."""
    id: str
    title: str
    text: str
    """Its whole text; of a long text that is split into windows, the window that scores best."""
    extra: Mapping[str, str | int | float | bool | None]
    """The extra columns that the recipe names; times in ISO 8601, in UTC."""
    dense: Side | None
    """By vectors; None in mode `bm25`."""
    bm25: Side | None
    """By words; None in mode `dense`."""
    before: Side | None
    """Before re-ranking; None if it was not asked for."""


class SearchResult(Answered):
    """The answer to one question."""

    query: str
    hits: list[SearchHit]
    """The best first."""
    lost_tokens: int
    """Tokens of the question beyond the encoder's token limit."""


class Timings(Answered):
    """Milliseconds that the steps of a search took in the service."""

    filter: float
    encode: float
    search: float
    rerank: float
    total: float


class StepTimings(Answered):
    """Milliseconds that a request took in the service which is no search."""

    work: float
    total: float


class NamedReranker(Answered):
    """The cross-encoder that ordered the hits."""

    model: str
    reranker_id: str
    top: int
    """How many of the best passages of each question it read."""


class SearchAnswer(Answered):
    """Answers to one question or several, all from one snapshot."""

    snapshot: int
    encoder_id: str
    reranker: NamedReranker | None
    results: list[SearchResult]
    """One for each question, in their order."""
    timings_ms: Timings

    @property
    def hits(self) -> list[SearchHit]:
        """Return the hits of the only question. Raises ValueError if there were several."""
        (result,) = self.results
        return result.hits

    def about(self, hit: SearchHit) -> dict[str, object]:
        """Return all that is known of a hit beside its id and text, by name: what frameworks call metadata."""
        known = hit.model_dump(exclude={"id", "text"})
        return known | {"snapshot": self.snapshot, "encoder_id": self.encoder_id}


class PassageAnswer(Answered):
    """A stored passage."""

    snapshot: int
    encoder_id: str
    id: str
    title: str
    texts: list[str]
    """Its text; of a long text that is split, its windows in their order."""
    extra: Mapping[str, str | int | float | bool | None]
    timings_ms: StepTimings


class Embedding(Answered):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    """Place of the text in the request, from 0."""
    embedding: list[float] | str
    """Components; or base64 of them as float32, little endian, which the client asks for."""


class Usage(Answered):
    """What texts came to in tokens."""

    prompt_tokens: int
    total_tokens: int
    lost_tokens: int
    """Tokens that the encoder did not read, since texts are longer than its limit."""


class EmbeddingAnswer(Answered):
    """Vectors of texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: Tower
    usage: Usage
    snapshot: int
    encoder_id: str
    timings_ms: StepTimings

    def vectors(self) -> list[list[float]]:
        """Return the vectors in the order of the texts."""
        return [_components(one.embedding) for one in self.data]


class SnapshotSummary(Answered):
    """One snapshot of the store."""

    number: int
    """The highest one is live."""
    parent: int | None
    published_at: str
    """UTC, ISO 8601."""
    passages: int
    encoder_id: str
    recall: float
    """Recall of its index against exact search, as its gate measured it."""
    new_recall: float | None
    """The same for passages that came since its index was trained; None if there were none to ask for."""
    accuracy: Mapping[str, float]
    """Rank → share of the gate's questions that were answered within it; empty without questions of the recipe."""
    note: str
    """Why it was published if it is not the result of a run, such as a rollback."""


class SnapshotList(Answered):
    """The newest snapshots of the store."""

    serving: int
    """Number of the snapshot that answers come from."""
    encoder_id: str
    snapshots: list[SnapshotSummary]
    """The newest first."""
    timings_ms: StepTimings


class Health(Answered):
    """What the service answers from, and whether it is the newest."""

    ready: bool
    snapshot: int
    encoder_id: str
    passages: int
    since: str
    """When it began to answer from this snapshot: UTC, ISO 8601."""
    live: int
    """Number of the newest snapshot that it has seen in the store."""
    loading: int | None
    """Number of the snapshot that it is opening."""
    problem: str
    """Why it does not answer from the newest snapshot; empty: it does."""
    timings_ms: StepTimings


class LatencyBucket(Answered):
    """How many searches took about as long."""

    up_to_ms: float | None
    """They were answered within so many milliseconds, and not within those of the bucket before; None: no bound."""
    searches: int


class ShadowSample(Answered):
    """Some questions of users, whose answers were compared with those of exact search."""

    compared: int
    skipped: int
    failed: int
    recall: float | None
    """Share of the hits of exact search that the answers had; None as long as nothing was compared."""


class Status(Answered):
    """One replica of the service: what it serves, and what it has done since it started."""

    replica: str
    replicas: Mapping[str, int] | None
    """State → how many replicas of the service are in it; None outside of Ray Serve."""
    started_at: str
    """UTC, ISO 8601."""
    health: Health
    published_at: str
    """When the snapshot that it serves was published: UTC, ISO 8601."""
    waiting: int
    """Questions that wait for a batch."""
    requests: Mapping[str, int]
    """HTTP status → how many requests were answered with it."""
    latency: list[LatencyBucket]
    shadow: ShadowSample


class Ready(Answered):
    """A service that takes requests."""

    ready: bool
    snapshot: int


def _components(embedding: list[float] | str) -> list[float]:
    if not isinstance(embedding, str):
        return embedding
    components = array("f", base64.b64decode(embedding))
    if sys.byteorder == "big":
        components.byteswap()
    return components.tolist()
