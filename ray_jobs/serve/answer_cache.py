"""A cache of answers: the same question, with the same options and snapshot, is searched only once."""

import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from dpr.formats.lexical_entry import SearchMode
from dpr.search.filters import Filter
from dpr.search.hits import Hit
from dpr.search.retrieve import Answer

CACHE_MB = 32.0
HIT_BYTES = 800
"""A hit and its scores without its texts."""


@dataclass(frozen=True)
class SearchOptions:
    """How questions are searched for.

    Only questions with equal options share a batch. The candidates of an index depend on k, too, and no answer may
    depend on the other questions of its batch.
    """

    k: int
    mode: SearchMode | None = None
    exact: bool = False
    where: Filter | None = None


@dataclass(frozen=True)
class _Kept:
    hits: list[Hit]
    lost_tokens: int
    size_bytes: int


class AnswerCache:
    """Answers of one snapshot, the least recently asked of which are dropped beyond a limit. One thread uses it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._snapshot, self._encoder_id = 0, ""
        self._kept: OrderedDict[tuple[str, SearchOptions], _Kept] = OrderedDict()

    def find(self, snapshot: int, questions: Sequence[str], options: SearchOptions) -> Answer | None:
        """Return the answer to all of these questions, if it is known of this snapshot."""
        keys = [(question, options) for question in questions]
        if snapshot != self._snapshot or not all(key in self._kept for key in keys):
            return None
        for key in keys:
            self._kept.move_to_end(key)
        found = [self._kept[key] for key in keys]
        hits, lost_tokens = [each.hits for each in found], [each.lost_tokens for each in found]
        return Answer(snapshot, self._encoder_id, hits, lost_tokens, encode_seconds=0.0, search_seconds=0.0)

    def add(self, questions: Sequence[str], options: SearchOptions, answer: Answer) -> None:
        """Keep an answer. Those of another snapshot are dropped."""
        if answer.snapshot != self._snapshot:
            self._kept.clear()
            self._snapshot, self._encoder_id, self._bytes = answer.snapshot, answer.encoder_id, 0
        for question, hits, lost_tokens in zip(questions, answer.hits, answer.lost_tokens, strict=True):
            kept = _Kept(hits, lost_tokens, sys.getsizeof(question) + sum(map(_bytes, hits)))
            before = self._kept.pop((question, options), None)
            self._bytes += kept.size_bytes - (before.size_bytes if before else 0)
            self._kept[question, options] = kept
        while self._bytes > self._max_bytes:
            self._bytes -= self._kept.popitem(last=False)[1].size_bytes


def _bytes(hit: Hit) -> int:
    extra = sum(sys.getsizeof(name) + sys.getsizeof(value) for name, value in hit.extra.items()) if hit.extra else 0
    return HIT_BYTES + sys.getsizeof(hit.id) + sys.getsizeof(hit.title) + sys.getsizeof(hit.text) + extra
