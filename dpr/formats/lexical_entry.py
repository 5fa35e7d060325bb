"""The index of words in a snapshot's document, and the settings of search by words and vectors together."""

from typing import Literal

from dpr.formats.records import Document, ObjectRef
from dpr.recipe_index import LexicalConfig

SearchMode = Literal["dense", "bm25", "hybrid"]


class LexicalPartEntry(Document):
    """The words of one segment."""

    segment: int
    """Number of the segment."""
    object: ObjectRef


class FusionSettings(Document):
    """How the results of dense search and of BM25 become one ranking (`dpr.lexical.fusion`)."""

    fusion: Literal["linear", "scaled", "rrf"]
    """`linear`: BM25 + weight * inner product; `scaled`: the same, BM25 divided by the square root of the number of the
    question's terms; `rrf`: reciprocal rank fusion."""
    weight: float
    """Of the inner product; without effect on `rrf`."""
    candidates: int
    """Best passages of each kind of search that are fused."""
    floor: float = 0.0
    """BM25 below this share of the question's reach counts as that share; without effect on `rrf`."""
    k1: float | None = None
    """BM25's k1 in hybrid search; null: that of the index of words."""
    pairs: float = 0.0
    """Weight of pairs, terms that stand side by side in question and passage; without effect on `rrf`."""


class LexicalEntry(Document):
    """The index of words: one part a segment.

    The counts of the whole corpus that BM25 needs are made when it is opened.
    """

    config: LexicalConfig
    """How texts become terms, and the constants of BM25."""
    parts: list[LexicalPartEntry]
    """In the order of the segments."""
    hybrid: FusionSettings
    mode: SearchMode
    """The mode of questions that name none."""

    @property
    def size_bytes(self) -> int:
        return sum(part.object.size_bytes for part in self.parts)


class ModesReport(Document):
    """How well each mode of search answers the questions of the recipe."""

    tuned_on: int
    """Questions that the fusion was tuned on; 0: it was not tuned."""
    measured_on: int
    """Other questions, on which everything below was measured."""
    ndcg: dict[SearchMode, float]
    """Mode → mean of 1 / log2(1 + rank) of the first right passage, if it is among the first ten."""
    accuracy: dict[SearchMode, dict[str, float]]
    """Mode → rank → share of questions answered within it."""
    difference: float
    """Hybrid minus dense, of `ndcg`."""
    difference_low: float
    difference_high: float
    """Its 95% interval, over pairs of the same question."""
    choice: str
    """What was chosen, in one sentence."""
