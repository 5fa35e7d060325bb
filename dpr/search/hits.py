"""The one form in which every kind of search answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    extra: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    """The extra columns that the recipe names, sorted by name; times in ISO 8601, in UTC."""
