"""Searching one part of a snapshot's index, for another process that asks several and merges their answers.

Shapes: Q questions, K hits, D dimensions.
"""

import weakref
from dataclasses import dataclass

from dpr.formats.manifest import Snapshot
from dpr.formats.markers import Marker
from dpr.formats.snapshots import open_snapshot
from dpr.index.truth import Ids, Scores, empty_topk
from dpr.search.filters import Filter
from dpr.search.opened import OpenObjects
from dpr.search.segment_set import SegmentSet
from dpr.search.shard_groups import GroupPlace, OwnRows
from dpr.search.vector_search import VectorSearch
from dpr.store import Store


@dataclass(frozen=True)
class ShardQuestion:
    """A request to a part of the index."""

    snapshot: int
    questions_QD: Scores
    """Vectors; none: only the rows of the filter are found, for later questions."""
    k: int
    exact: bool = False
    where: Filter | None = None


@dataclass(frozen=True)
class ShardAnswer:
    """The best of one part: true scores (Q, K), and index ids (Q, K); -inf and -1 where it has fewer."""

    scores_QK: Scores
    ids_QK: Ids


class ShardSearch:
    """One part of the index of a snapshot, ready to be searched."""

    def __init__(self, snapshot: Snapshot, vectors: VectorSearch | None, opened: OpenObjects, marker: Marker) -> None:
        """`vectors`: None: the index has fewer files than there are groups, and this one has none."""
        self.number, self.body = snapshot.number, snapshot.body
        self._vectors, self._opened = vectors, opened
        weakref.finalize(self, marker.let_go).atexit = False

    @classmethod
    def open(
        cls, store: Store, place: GroupPlace, number: int | None = None, like: "ShardSearch | None" = None
    ) -> "ShardSearch":
        """Load a part of snapshot `number` (default: the live one), verified and tried.

        It shares objects with `like`, another open snapshot. Raises IntegrityError for objects that do not belong
        together.
        """
        snapshot, marker = open_snapshot(store, number)
        try:
            opened = like._opened if like else OpenObjects()
            vectors = _part_of(store, snapshot, place, opened)
            if vectors is not None:
                vectors.check_known(snapshot.number)
            return cls(_with_part(snapshot, place), vectors, opened, marker)
        except BaseException:
            marker.close()
            raise

    def answer(self, question: ShardQuestion) -> ShardAnswer:
        """Return the best of this part. Raises RecipeError as `RowFilters.rows` does."""
        questions_QD, vectors = question.questions_QD, self._vectors
        rows = None if vectors is None or question.where is None else vectors.filters.rows(question.where)
        if vectors is None or not len(questions_QD) or (rows is not None and not len(rows)):
            return ShardAnswer(*empty_topk(len(questions_QD), question.k))
        search = vectors.exact if question.exact else vectors.top
        return ShardAnswer(*search(questions_QD, question.k, rows))


def _part_of(store: Store, snapshot: Snapshot, place: GroupPlace, opened: OpenObjects) -> VectorSearch | None:
    snapshot.body.check()
    part = place.of(snapshot.body.index)
    if not part.shards:
        return None
    own = OwnRows.read(store, snapshot.body, part)
    segments = SegmentSet.open(store, snapshot.body.segments, own, opened=opened)
    return VectorSearch.over(store, snapshot.body, part, segments, opened)


def _with_part(snapshot: Snapshot, place: GroupPlace) -> Snapshot:
    """Return a snapshot whose index is the part alone, from which follows what it takes of this machine."""
    body = snapshot.body.model_copy(update={"index": place.of(snapshot.body.index)})
    return snapshot.model_copy(update={"body": body})
