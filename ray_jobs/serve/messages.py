"""Typed requests and answers, and the one sentence that says what is wrong with a request."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from dpr.formats.lexical_entry import SearchMode
from dpr.search.filters import parse_filter
from ray_jobs.serve.answer_cache import Way

MAX_K = 1000
MAX_QUERIES = 256
MAX_HITS = 25_600
"""Of all questions of a request together."""
MAX_QUERY_CHARS = 10_000
NOT_BLANK = r"^[^\x00]*[^\s\x00][^\x00]*$"
MAX_BODY_BYTES = 16 * 2**20
EXAMPLE = '{"query": "how do I sort a list?", "k": 5}'

Query = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY_CHARS, pattern=NOT_BLANK)]


class Message(BaseModel):
    """What all requests and answers have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class SearchRequest(Message):
    """Questions to answer: exactly one of `query` and `queries`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "how do I sort a list?", "k": 5},
                {"queries": ["how do I sort a list?", "what is a tuple?"], "mode": "hybrid"},
                {"query": "how do I sort a list?", "filter": {"lang": "de", "year": {"gte": 1990, "lt": 2000}}},
            ]
        }
    )

    query: Query | None = Field(None, examples=["how do I sort a list?"])
    """One question. The encoder cuts a question that is longer than its own token limit."""
    queries: list[Query] | None = Field(None, min_length=1, max_length=MAX_QUERIES)
    """Several questions, encoded together."""
    k: int = Field(10, ge=1, le=MAX_K)
    """Hits per question."""
    mode: SearchMode | None = None
    """Search by vectors (`dense`), by words (`bm25`) or by both (`hybrid`). Without it, as the snapshot says."""
    exact: bool = False
    """Compare with every stored vector instead of using the index: slower, and exact. Without effect on `bm25`."""
    rerank: bool = False
    """Let the cross-encoder of the service order the best passages anew. Without one, such a request is refused."""
    filter: dict[str, object] | None = Field(None, examples=[{"lang": "de", "year": {"gte": 1990, "lt": 2000}}])
    """Rank only passages whose extra columns match: a value, `{"in": […]}`, or a range with `gt`, `gte`, `lt`, `lte`;
    `and` and `or` take lists of filters, and `not` takes one."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.query is None) == (self.queries is None):
            which = "neither query nor queries" if self.query is None else "both query and queries"
            raise ValueError(f"the body has {which}; it must have exactly one of them, such as {EXAMPLE}")
        hits = len(self.questions()) * self.k
        if hits > MAX_HITS:
            raise ValueError(
                f"{len(self.questions())} questions with k {self.k} ask for {hits:,} hits, and a request may ask for "
                f"{MAX_HITS:,}; send fewer at once, or a smaller k"
            )
        return self

    def way(self, k: int) -> Way:
        """Return how the best k are searched for. Raises RecipeError for a filter that is none."""
        where = None if self.filter is None else parse_filter(self.filter)
        return Way(k, self.mode, self.exact, where)

    def questions(self) -> Sequence[str]:
        """Return the questions in order, whichever field holds them."""
        return [self.query] if self.query is not None else self.queries or []


class HitSide(Message):
    """What one kind of search, or the search before re-ranking, says of a passage."""

    rank: int | None
    """1 is the best; null if only the other kind of search found it."""
    score: float
    """Inner product of the vectors, BM25, or both fused; higher is better."""


class SearchHit(Message):
    """One passage of an answer."""

    rank: int
    """1 is the best."""
    score: float
    """What the rank follows from: inner product, BM25, both fused, or that of the re-ranker; higher is better."""
    id: str
    """The passage's own id, as the corpus gave it."""
    title: str
    """Its title, empty if it has none."""
    text: str
    """Its whole text; of a long text that is split into windows, the window that scores best."""
    extra: Mapping[str, str | int | float | bool | None] = Field(default_factory=dict)
    """The extra columns that the recipe names, by name; times in ISO 8601, in UTC."""
    dense: HitSide | None
    """Rank and inner product by vectors; null in mode `bm25`."""
    bm25: HitSide | None
    """Rank and score by words; null in mode `dense`."""
    before: HitSide | None
    """Rank and score before re-ranking; null if it was not asked for."""


class SearchResult(Message):
    """The answer to one question."""

    query: str
    """The question, as it was sent."""
    hits: list[SearchHit]
    """The best passages, best first; fewer than `k` if the index found no more."""
    lost_tokens: int
    """Tokens of the question that the encoder did not read, since it is longer than the encoder's token limit."""


class Timings(Message):
    """Time taken, in milliseconds. Questions that arrive together are encoded and searched as one batch."""

    filter: float
    """Time to find the passages that match the filter; hardly any if it was asked for before, 0 without one."""
    encode: float
    """Time to encode the batch that these questions were part of."""
    search: float
    """Time to search the index and to fetch the texts."""
    rerank: float
    """Time to re-rank these questions; 0 if it was not asked for."""
    total: float
    """Time from the request's arrival in the replica to its answer, with the wait for the batch before."""

    def steps(self) -> Mapping[str, float]:
        """Return the time of each step, in their order."""
        return {"filter": self.filter, "encode": self.encode, "search": self.search, "rerank": self.rerank}


class StepTimings(Message):
    """Time taken by a request that is no search, in milliseconds."""

    work: float
    """Time of the work itself."""
    total: float
    """Time from the request's arrival in the replica to its answer, with the wait for others."""


class NamedReranker(Message):
    """The cross-encoder that ordered the hits."""

    model: str
    """Where it comes from, as the recipe names it, with the commit of a hub model."""
    reranker_id: str
    """Fingerprint of all that its scores depend on."""
    top: int
    """How many of the best passages of each question it read."""


class SearchResponse(Message):
    """Answers, and what they were made with."""

    snapshot: int
    """Number of the snapshot that was searched."""
    encoder_id: str
    """Fingerprint of the encoder of question and passages."""
    reranker: NamedReranker | None
    """What ordered the hits anew; null if that was not asked for."""
    results: list[SearchResult]
    """One for each question, in the order of the request; a single `query` gives a list of one."""
    timings_ms: Timings
    """Time taken."""


class Health(Message):
    """A replica that is ready to answer."""

    ready: bool
    """Always true: before it is ready, a replica gets no requests."""
    snapshot: int
    """Number of the snapshot it serves."""
    encoder_id: str
    """Fingerprint of its encoder."""
    passages: int
    """Passages that can be found."""
    since: str
    """When it began to answer from this snapshot: UTC, ISO 8601."""
    live: int
    """Number of the newest snapshot that it has seen in the store."""
    loading: int | None
    """Number of the snapshot that it is opening, to answer from it next."""
    problem: str
    """Why it does not answer from the newest snapshot; empty: it does."""
    timings_ms: StepTimings
    """Time taken."""


class Ready(Message):
    """A replica that takes requests."""

    ready: bool
    """Always true: before it is ready, a replica gets no requests, and the service answers 503."""
    snapshot: int
    """Number of the snapshot it serves."""


class PassageAnswer(Message):
    """A stored passage."""

    snapshot: int
    """Number of the snapshot that it was read from."""
    encoder_id: str
    """Fingerprint of the encoder of that snapshot."""
    id: str
    """The passage's own id, as the corpus gave it."""
    title: str
    """Its title, empty if it has none."""
    texts: list[str]
    """Its text; of a long text that is split, its windows in their order."""
    extra: Mapping[str, str | int | float | bool | None]
    """The extra columns that the recipe names, by name; times in ISO 8601, in UTC."""
    timings_ms: StepTimings
    """Time taken."""


class SnapshotSummary(Message):
    """One snapshot of the store."""

    number: int
    """Its number; the highest one is live."""
    parent: int | None
    """Number of the snapshot that was live before it."""
    published_at: str
    """When it was published: UTC, ISO 8601."""
    passages: int
    """Passages that can be found."""
    encoder_id: str
    """Fingerprint of its encoder."""
    recall: float
    """Recall of its index against exact search, as its gate measured it."""
    new_recall: float | None
    """The same for passages that came since its index was trained; null if there were none to ask for."""
    accuracy: Mapping[str, float]
    """Rank → share of the gate's questions that were answered within it; empty without questions of the recipe."""
    note: str
    """Why it was published if it is not the result of a run, such as a rollback."""


class SnapshotList(Message):
    """The newest snapshots of the store."""

    serving: int
    """Number of the snapshot that this replica serves."""
    encoder_id: str
    """Fingerprint of the encoder of that snapshot."""
    snapshots: list[SnapshotSummary]
    """The newest first."""
    timings_ms: StepTimings
    """Time taken."""


def milliseconds(seconds: float) -> float:
    """Return seconds as answers give them."""
    return round(seconds * 1000, 3)


class ErrorBody(Message):
    """What every answer other than 200 holds."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"error": "field k is 0; it must be an integer from 1 to 1000"}]}
    )

    error: str
    """One sentence: what is wrong, which value, what is allowed."""
