"""The answer to questions: hits and how they were found; and a single passage."""

from collections.abc import Mapping

from pydantic import Field

from dpr.answers.answered import Answered, StepTimings


class HitSide(Answered):
    """Rank and score of a passage in one kind of search, or in the search before re-ranking."""

    rank: int | None
    """1 is the best; null if only the other kind of search found it."""
    score: float
    """Inner product of the vectors, BM25, or both fused; higher is better."""


class SearchHit(Answered):
    """One passage of an answer."""

    rank: int
    """1 is the best."""
    score: float
    """The score that decides the rank: inner product, BM25, both fused, or that of the re-ranker; higher is better."""
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
    """Rank and score by words; null in mode `dense`. In mode `hybrid`, BM25 has a k1 of its own, and this is its score
    without pairs and before the floor."""
    before: HitSide | None
    """Rank and score before re-ranking; null if it was not requested."""


class SearchResult(Answered):
    """The answer to one question."""

    query: str
    """The question, as it was sent."""
    hits: list[SearchHit]
    """The best passages, best first; fewer than `k` if the index found no more."""
    lost_tokens: int
    """Tokens of the question that the encoder did not read, since it is longer than the encoder's token limit."""


class Timings(Answered):
    """Time taken, in milliseconds. Questions that arrive together are encoded and searched as one batch."""

    filter: float
    """Time to find the passages that match the filter; almost none if it was used before, 0 without a filter."""
    encode: float
    """Time to encode the batch that these questions were part of."""
    search: float
    """Time to search the index and to fetch the texts."""
    rerank: float
    """Time to re-rank the hits of these questions; 0 if it was not requested."""
    total: float
    """Time from the request's arrival in the replica to its answer, with the wait for the batch before."""


class NamedReranker(Answered):
    """The cross-encoder that ordered the hits."""

    model: str
    """Where it comes from, as the recipe names it, with the commit of a hub model."""
    reranker_id: str
    """Fingerprint of all that its scores depend on."""
    top: int
    """How many of the best passages of each question it read."""


class SearchAnswer(Answered):
    """Answers, and what they were made with."""

    snapshot: int
    """Number of the snapshot that was searched."""
    encoder_id: str
    """Fingerprint of the encoder of question and passages."""
    partial: bool
    """Whether passages may be missing, since some of the processes that hold the index did not answer in time."""
    missing_shards: list[int]
    """The numbers of these processes; empty unless the service is divided among several (`topology: sharded`)."""
    reranker: NamedReranker | None
    """The re-ranker that ordered the hits; null if re-ranking was not requested."""
    results: list[SearchResult]
    """One for each question, in the order of the request; a single `query` gives a list of one."""
    timings_ms: Timings
    """Time taken."""

    @property
    def hits(self) -> list[SearchHit]:
        """Return the hits of the only question. Raises ValueError if there were several."""
        (result,) = self.results
        return result.hits

    def about(self, hit: SearchHit) -> dict[str, object]:
        """Return everything else about a hit than its id and text, by name: what frameworks call metadata."""
        known = hit.model_dump(exclude={"id", "text"})
        return known | {"snapshot": self.snapshot, "encoder_id": self.encoder_id}


class PassageAnswer(Answered):
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
