"""Typed requests and answers, and the one sentence that says what is wrong with a request."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from dpr.formats.lexical_entry import SearchMode
from dpr.search.filters import EXAMPLE as FILTER_EXAMPLE
from dpr.search.filters import parse_filter
from ray_jobs.serve.batch import Way

MAX_K = 1000
MAX_QUERIES = 256
MAX_QUERY_CHARS = 10_000
MAX_BODY_BYTES = 16 * 2**20
EXAMPLE = '{"query": "how do I sort a list?", "k": 5}'

Query = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY_CHARS, pattern=r"\S")]

_TEXT = f"a text of 1 to {MAX_QUERY_CHARS:,} characters that is not blank"
ALLOWED = {
    "query": _TEXT,
    "queries": f"a list of 1 to {MAX_QUERIES} texts, each {_TEXT}",
    "k": f"an integer from 1 to {MAX_K}",
    "mode": "dense, bm25 or hybrid",
    "exact": "true or false",
    "rerank": "true or false",
    "filter": f"a filter over the extra columns, such as {FILTER_EXAMPLE}",
}


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class SearchRequest(_Message):
    """Questions to answer: exactly one of `query` and `queries`."""

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
        return self

    def way(self, k: int) -> Way:
        """Return how the best k are searched for. Raises RecipeError for a filter that is none."""
        where = None if self.filter is None else parse_filter(self.filter)
        return Way(k, self.mode, self.exact, where)

    def questions(self) -> Sequence[str]:
        """Return the questions in order, whichever field holds them."""
        return [self.query] if self.query is not None else self.queries or []


class HitSide(_Message):
    """What one kind of search, or the search before re-ranking, says of a passage."""

    rank: int | None
    """1 is the best; null if only the other kind of search found it."""
    score: float
    """Inner product of the vectors, BM25, or both fused; higher is better."""


class SearchHit(_Message):
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


class SearchResult(_Message):
    """The answer to one question."""

    query: str
    """The question, as it was sent."""
    hits: list[SearchHit]
    """The best passages, best first; fewer than `k` if the index found no more."""
    lost_tokens: int
    """Tokens of the question that the encoder did not read, since it is longer than the encoder's token limit."""


class Timings(_Message):
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


class NamedReranker(_Message):
    """The cross-encoder that ordered the hits."""

    model: str
    """Where it comes from, as the recipe names it, with the commit of a hub model."""
    reranker_id: str
    """Fingerprint of all that its scores depend on."""
    top: int
    """How many of the best passages of each question it read."""


class SearchResponse(_Message):
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


class Health(_Message):
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


class ErrorBody(_Message):
    """What every answer other than 200 holds."""

    error: str
    """One sentence: what is wrong, which value, what is allowed."""


def sentence(problem: Mapping[str, Any]) -> str:
    """Return one sentence on the first of pydantic's problems with a request's body."""
    kind, where, value = problem["type"], [str(part) for part in problem["loc"][1:]], problem["input"]
    if kind == "json_invalid":
        return f"the body is not JSON ({problem['ctx']['error']}, character {where[0]}); send one such as {EXAMPLE}"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind == "extra_forbidden":
        return f"field {_shown('.'.join(where))} is unknown; the fields are {', '.join(ALLOWED)}"
    if not where:
        return f"the body is not a JSON object; send one such as {EXAMPLE} as Content-Type application/json"
    allowed = ALLOWED[where[0]] if len(where) == 1 else _TEXT
    return f"field {'.'.join(where)} is {_shown(value)}; it must be {allowed}"


def _shown(value: object) -> str:
    # as JSON, cut if long; lone surrogates have no UTF-8 and would break the answer
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text):,} characters)"
