"""Opening the index of words of a snapshot, and searching it with questions as they were asked.

Shapes: Q questions, K hits, C candidates.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dpr.formats.deletions import read_deletions
from dpr.formats.lexical_entry import LexicalEntry, LexicalPartEntry
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import fetch_object
from dpr.formats.records import ObjectRef
from dpr.index.truth import Ids, Scores
from dpr.lexical.analysis import Analyzer, term_hashes
from dpr.lexical.bm25 import Bm25, Found
from dpr.lexical.postings import Postings, map_postings
from dpr.store import PARALLEL_READS, Store


class LexicalSearch:
    """The index of words over the live rows of a snapshot, and the rule that turns questions into terms."""

    def __init__(self, index: Bm25, analyzer: Analyzer) -> None:
        self._index, self._analyzer = index, analyzer

    @classmethod
    def open(
        cls, store: Store, entry: LexicalEntry, segments: Sequence[SegmentEntry], deletions: ObjectRef | None
    ) -> "LexicalSearch":
        """Fetch, verify and map the words of all segments. Raises IntegrityError for what does not belong together."""
        dead = read_deletions(store, deletions)

        def opened(pair: tuple[LexicalPartEntry, SegmentEntry]) -> Postings:
            part, segment = pair
            return map_postings(fetch_object(store, part.object), segment.rows, part.object.name)

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            postings = pool.map(opened, zip(entry.parts, segments, strict=True))
            parts = {
                segment.number: (part, dead.live_mask(segment))
                for segment, part in zip(segments, postings, strict=True)
            }
        return cls(Bm25(parts, entry.config.k1, entry.config.b), Analyzer(entry.config))

    def best(self, questions: Sequence[str], k: int) -> tuple[Scores, Ids]:
        """Return the best k for each question: (scores_QK float32, ids_QK int64); -inf and -1 where there are fewer."""
        found = self.search(questions, k)
        return found.scores_QK, found.ids_QK

    def search(self, questions: Sequence[str], k: int, others_QC: Ids | None = None) -> Found:
        """Return the best k for each question, and the scores of other ids, as `Bm25.search` does."""
        return self._index.search([term_hashes(self._analyzer.terms(text)) for text in questions], k, others_QC)
