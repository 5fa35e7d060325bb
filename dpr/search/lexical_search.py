"""Opening the index of words of a snapshot, and searching it with the texts of questions.

Shapes: Q questions, K hits, C candidates.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dpr.formats.deletions import read_deletions
from dpr.formats.lexical_entry import LexicalEntry, LexicalPartEntry
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import fetch_object
from dpr.formats.records import ObjectRef
from dpr.index.row_bits import RowBits
from dpr.index.truth import Ids, Scores
from dpr.lexical.analysis import Analyzer, term_hashes
from dpr.lexical.bm25 import Bm25, Found
from dpr.lexical.postings import Postings, map_postings
from dpr.search.opened import OpenObjects
from dpr.store import PARALLEL_READS, Store


class LexicalSearch:
    """The index of words over the live rows of a snapshot, and the rule that turns questions into terms."""

    def __init__(self, index: Bm25, analyzer: Analyzer) -> None:
        self._index, self._analyzer = index, analyzer

    @classmethod
    def open(
        cls,
        store: Store,
        entry: LexicalEntry,
        segments: Sequence[SegmentEntry],
        deletions: ObjectRef | None,
        opened: OpenObjects | None = None,
    ) -> "LexicalSearch":
        """Fetch, verify and map the words of all segments, except those that are `opened` already.

        Raises IntegrityError for what does not belong together.
        """
        dead = read_deletions(store, deletions)
        shared = opened or OpenObjects()

        def take(pair: tuple[LexicalPartEntry, SegmentEntry]) -> Postings:
            part, segment = pair
            return shared.take("words", part.object.sha256, lambda: _map_part(store, part.object, segment.rows))

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            postings = pool.map(take, zip(entry.parts, segments, strict=True))
            parts = {
                segment.number: (part, dead.live_mask(segment))
                for segment, part in zip(segments, postings, strict=True)
            }
        return cls(Bm25(parts, entry.config.k1, entry.config.b), Analyzer(entry.config))

    def best(self, questions: Sequence[str], k: int, *, rows: RowBits | None = None) -> tuple[Scores, Ids]:
        """Return the best k for each question: (scores_QK float32, ids_QK int64); -inf and -1 where there are fewer."""
        found = self.search(questions, k, rows=rows)
        return found.scores_QK, found.ids_QK

    def search(
        self,
        questions: Sequence[str],
        k: int,
        others_QC: Ids | None = None,
        *,
        rows: RowBits | None = None,
        k1: float | None = None,
        pairs: bool = False,
    ) -> Found:
        """Return the best k for each question, and the scores of other ids, as `Bm25.search` does."""
        hashes = [term_hashes(self._analyzer.terms(text)) for text in questions]
        return self._index.search(hashes, k, others_QC, rows, k1, pairs=pairs)


def _map_part(store: Store, ref: ObjectRef, rows: int) -> Postings:
    return map_postings(fetch_object(store, ref), rows, ref.name)
