"""Typed requests, and the one sentence that says what is wrong with one; `dpr.answers` has the answers."""

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from dpr.formats.lexical_entry import SearchMode
from dpr.search.filters import parse_filter
from ray_jobs.serve.answer_cache import SearchOptions

MAX_K = 1000
MAX_QUERIES = 256
MAX_HITS = 25_600
"""Hits of all questions of a request together, at most."""
MAX_QUERY_CHARS = 10_000
NOT_BLANK = r"^[^\x00]*[^\s\x00][^\x00]*$"
MAX_BODY_BYTES = 16 * 2**20
EXAMPLE = '{"query": "how do I sort a list?", "k": 5}'

Query = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY_CHARS, pattern=NOT_BLANK)]


class Message(BaseModel):
    """What all requests and refusals have in common."""

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
    """Let the service's cross-encoder re-rank the best passages. A service without one refuses such a request."""
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

    def options(self, k: int) -> SearchOptions:
        """Return how the best k are searched for. Raises RecipeError for an invalid filter."""
        where = None if self.filter is None else parse_filter(self.filter)
        return SearchOptions(k, self.mode, self.exact, where)

    def questions(self) -> Sequence[str]:
        """Return the questions in order, whichever field holds them."""
        return [self.query] if self.query is not None else self.queries or []


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
