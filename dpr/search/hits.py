"""The one form in which every kind of search answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Extra = Mapping[str, str | int | float | bool | None]
"""The extra columns that the recipe names, sorted by name; times in ISO 8601, in UTC."""


@dataclass(frozen=True)
class Passage:
    """A stored passage."""

    id: str
    title: str
    texts: list[str]
    """Its text; where it is split, its windows in their order."""
    extra: Extra


@dataclass(frozen=True)
class Side:
    """Rank and score of a hit in one kind of search."""

    rank: int | None
    """Counts from 1; None: only the other kind found it, and only the score is known."""
    score: float


@dataclass(frozen=True)
class Hit:
    """One passage of an answer; rank counts from 1, higher scores are better.

    Where long texts are split, `text` is the passage's best window.
    """

    rank: int
    score: float
    id: str
    title: str
    text: str
    extra: Extra = field(default_factory=dict)
    dense: Side | None = None
    """Its inner product; None: vectors were not searched."""
    bm25: Side | None = None
    """Its BM25 score, in hybrid search with a k1 of its own, without pairs and before the floor; None: words were not
    searched."""
    before: Side | None = None
    """Its rank and score before it was re-ranked; None: it was not."""
