"""The three ways of searching a snapshot: by vectors, by words (BM25), and by both together.

Shapes: Q questions, K hits, D dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from dpr.errors import RecipeError
from dpr.formats.lexical_entry import FusionSettings, SearchMode
from dpr.formats.manifest import Snapshot
from dpr.index.truth import Ids, Scores
from dpr.lexical.fusion import Candidates
from dpr.recipe import ExtraType
from dpr.search.filtered_rows import FilteredRows
from dpr.search.filters import Filter
from dpr.search.hits import Hit, Passage, Side
from dpr.search.hybrid_search import HybridSearch
from dpr.search.lexical_search import LexicalSearch
from dpr.search.opened import OpenObjects
from dpr.search.segment_set import SegmentSet
from dpr.search.sharded_vectors import ShardedVectors, Shards
from dpr.search.vector_search import VectorSearch
from dpr.store import Store


class ModeSearch:
    """A snapshot that can be searched by vectors, and where it has an index of words, by words and by both."""

    def __init__(
        self,
        vectors: VectorSearch | ShardedVectors,
        words: tuple[LexicalSearch, FusionSettings] | None,
        default: SearchMode,
        opened: OpenObjects | None = None,
    ) -> None:
        """`words`: the index of words, and how it is fused with vectors; `default`: the mode if none is named."""
        self._vectors, self._lexical, self.default = vectors, words, default
        self._opened = opened or OpenObjects()

    @classmethod
    def open(
        cls,
        store: Store,
        snapshot: Snapshot,
        like: "ModeSearch | None" = None,
        shards: Shards | None = None,
        *,
        by_range: bool = False,
    ) -> "ModeSearch":
        """Load the objects of a snapshot, verified, except those that `like`, another open snapshot, has already.

        `shards`: the processes that search the vectors. `by_range`: segments of a remote store are not fetched. Raises
        IntegrityError for objects that do not belong together.
        """
        body, opened = snapshot.body, like._opened if like else OpenObjects()
        vectors: VectorSearch | ShardedVectors
        if shards is None:
            vectors = VectorSearch.open(store, body, opened, by_range=by_range)
        else:
            body.check()
            segments = SegmentSet.open(store, body.segments, body.deletions, verify=not by_range, opened=opened)
            vectors = ShardedVectors(segments, shards, snapshot.number, windows=body.windows)
        if like is not None:
            vectors.segments.texts.prepare(like._vectors.segments.texts)
        if body.lexical is None:
            return cls(vectors, None, "dense", opened)
        words = LexicalSearch.open(store, body.lexical, body.segments, body.deletions, opened)
        return cls(vectors, (words, body.lexical.hybrid), body.lexical.mode, opened)

    @property
    def is_remote(self) -> bool:
        """Return whether parts of segments are read by range when they are needed."""
        return self._vectors.segments.is_remote

    def noting(self, missing: set[int]) -> "ModeSearch":
        """Return the same for one search, which adds to `missing` the shards that did not answer."""
        return ModeSearch(self._vectors.noting(missing), self._lexical, self.default, self._opened)

    def unpack_beside(self) -> None:
        """From now on, unpack texts in a thread of their own instead of letting a question wait."""
        self._vectors.segments.texts.unpack_beside()

    def check_known(self, number: int) -> None:
        """Search for some stored vectors. Raises IntegrityError if they are not found (`VectorSearch`)."""
        self._vectors.check_known(number)

    @property
    def available(self) -> tuple[SearchMode, ...]:
        """Return the modes in which the snapshot can be searched."""
        return ("dense",) if self._lexical is None else ("dense", "bm25", "hybrid")

    @property
    def extra_types(self) -> Mapping[str, ExtraType]:
        """Return the types of the extra columns of all segments."""
        return self._vectors.segments.extra.types

    def check(self, mode: SearchMode) -> None:
        """Raise RecipeError if the snapshot cannot be searched in this mode."""
        if mode != "dense":
            self._words(mode)

    def _words(self, mode: SearchMode) -> tuple[LexicalSearch, FusionSettings]:
        if self._lexical is None:
            raise RecipeError(
                f"mode {mode} needs an index of words, and this snapshot has none; ask with mode dense, or run its "
                "recipe with lexical.build: true"
            )
        return self._lexical

    def passage(self, id_: str) -> Passage | None:
        """Return the passage with this id; None if there is none."""
        return self._vectors.segments.passage(id_)

    def rows(self, where: Filter) -> FilteredRows:
        """Return the rows that match a filter. Raises RecipeError as `RowFilters.rows` does."""
        return self._vectors.filters.rows(where)

    def prepare_rows(self, where: Filter) -> None:
        """Find the rows that match a filter, wherever they are needed. Raises RecipeError as `RowFilters.rows` does."""
        rows = self.rows(where)
        if isinstance(self._vectors, ShardedVectors):
            self._vectors.prepare(rows)

    def dense(
        self, questions_QD: Scores, k: int, *, exact: bool = False, rows: FilteredRows | None = None
    ) -> list[list[Hit]]:
        """Return the best k by vectors, of all or of some rows: through the index, or (`exact`) by brute force."""
        scores_QK, ids_QK = (self._vectors.exact if exact else self._vectors.top)(questions_QD, k, rows)
        return _hits(self._vectors.segments, scores_QK, ids_QK, "dense")

    def bm25(self, questions: Sequence[str], k: int, *, rows: FilteredRows | None = None) -> list[list[Hit]]:
        """Return the best k by words: fewer where fewer passages share a word with the question."""
        words, _ = self._words("bm25")
        scores_QK, ids_QK = HybridSearch(self._vectors, words).by_words(questions, k, rows)
        return _hits(self._vectors.segments, scores_QK, ids_QK, "bm25")

    def hybrid(
        self,
        questions: Sequence[str],
        questions_QD: Scores,
        k: int,
        *,
        exact: bool = False,
        rows: FilteredRows | None = None,
    ) -> list[list[Hit]]:
        """Return the best k by both; of each side, at least k candidates are compared."""
        words, fusion = self._words("hybrid")
        settings = fusion.model_copy(update={"candidates": max(k, fusion.candidates)})
        both = HybridSearch(self._vectors, words)
        most, k1, pairs = settings.candidates, settings.k1, settings.pairs > 0
        found = both.candidates(questions, questions_QD, most, k1=k1, pairs=pairs, exact=exact, rows=rows)
        return [self._hybrid_hits(candidates, settings, k) for candidates in found]

    def _hybrid_hits(self, candidates: Candidates, settings: FusionSettings, k: int) -> list[Hit]:
        scores_K, places_K = candidates.best(settings, k)
        hits = self._vectors.segments.hits(scores_K.astype(np.float32), candidates.ids_C[places_K])
        return [
            replace(
                hit,
                dense=Side(int(candidates.dense_ranks_C[at]) or None, float(candidates.dense_scores_C[at])),
                bm25=Side(int(candidates.bm25_ranks_C[at]) or None, float(candidates.bm25_scores_C[at])),
            )
            for hit, at in zip(hits, places_K, strict=True)
        ]


def _hits(segments: SegmentSet, scores_QK: Scores, ids_QK: Ids, by: Literal["dense", "bm25"]) -> list[list[Hit]]:
    return [segments.hits(scores_K, ids_K, by) for scores_K, ids_K in zip(scores_QK, ids_QK, strict=True)]
