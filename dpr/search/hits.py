"""The one form in which every kind of search answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Hit:
    """One passage of an answer; rank counts from 1, higher scores are better."""

    rank: int
    score: float
    id: str
    title: str
    text: str
