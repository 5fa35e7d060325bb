"""Searching a snapshot by vectors: the index gives candidates, the stored vectors give their exact scores.

Shapes: Q questions, K hits, C candidates, D dimensions. Scores are inner products (paper, equation 1).
"""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np

from dpr.errors import IntegrityError
from dpr.formats import MISSING
from dpr.formats.loose import read_loose
from dpr.formats.manifest import IndexEntry, SnapshotBody
from dpr.formats.objects import fetch_object
from dpr.formats.records import ObjectRef
from dpr.index.candidates import SearchSettings, rescore
from dpr.index.loose_index import LooseIndex, loose_ids
from dpr.index.serving_index import ServingIndex
from dpr.index.shards import Shard, open_shard
from dpr.index.truth import Ids, Scores, exact_topk
from dpr.search.best_windows import SearchRows, best_passages
from dpr.search.filtered_rows import FilteredRows, RowFilters
from dpr.search.opened import OpenObjects
from dpr.search.segment_set import SegmentSet
from dpr.store import PARALLEL_READS, Store

KNOWN_ROWS, KNOWN_HITS, FEW_KNOWN_ROWS = 16, 20, 2
"""Stored vectors that a new snapshot is searched for, and hits among which each must be; and the number of vectors if
candidates are read by range."""
MIN_KNOWN = 0.5
"""Share of them that must be found; others with the same score count, too."""
ROUNDING = 1e-3
"""Scores of codes that differ by less, relatively, count as equal."""
MORE_LISTS = 4
"""Factor by which more lists are visited if too few live rows were found."""


def search_settings(entry: IndexEntry) -> tuple[SearchSettings, SearchSettings | None]:
    """Return the settings of an index, and those for more hits than these were tuned for."""
    few = SearchSettings(entry.nprobe, entry.rescore, entry.at, entry.margin)
    return few, SearchSettings(**entry.deeper.model_dump()) if entry.deeper else None


def open_index(
    store: Store, entry: IndexEntry, segments: SegmentSet, opened: OpenObjects | None = None
) -> ServingIndex:
    """Fetch, verify and load all shards of an index over these segments, except those that are `opened` already."""
    shards = open_shards(store, entry, opened or OpenObjects())
    dead_shares = [1.0 - shard.live_rows / shard.rows for shard in entry.shards]
    live = segments.live_rows() if any(dead_shares) else None
    return ServingIndex(shards, live, dead_shares, _open_loose(store, entry, segments.dim))


def open_shards(store: Store, entry: IndexEntry, opened: OpenObjects) -> list[Shard]:
    """Fetch, verify and load all shards of an index, except those that are `opened` already; they share a codebook."""
    shards: list[Shard] = []
    wanted = [file for file in entry.files if not opened.has("shard", file.sha256)]
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        list(pool.map(partial(fetch_object, store), wanted))
    for file in entry.files:
        open_it = partial(_open_shard, store, file, shards[0] if shards else None)
        shards.append(opened.take("shard", file.sha256, open_it))
    return shards


def _open_shard(store: Store, ref: ObjectRef, other: Shard | None) -> Shard:
    return open_shard(fetch_object(store, ref), other)


def _open_loose(store: Store, entry: IndexEntry, dim: int) -> LooseIndex | None:
    if entry.loose is None:
        return None
    rows = read_loose(store, entry.loose, dim)
    if len(rows) != entry.loose_rows:
        raise IntegrityError(
            f"{entry.loose.name} holds {len(rows)} loose rows, and the snapshot counts {entry.loose_rows}; roll back "
            "to a sound snapshot or run the recipe again"
        )
    return LooseIndex(loose_ids(rows), rows.vectors_ND)


class VectorSearch:
    """An index with exact re-scoring from the stored vectors."""

    def __init__(
        self,
        index: ServingIndex,
        settings: SearchSettings,
        segments: SegmentSet,
        deeper: SearchSettings | None = None,
        *,
        windows: bool = False,
    ) -> None:
        """`deeper`: settings for more hits than the others were tuned for; None: these serve, with more candidates.

        `windows`: rows may be windows of long texts, and an answer has the best one of each passage.
        """
        self.windows = windows
        self.index, self.settings, self.segments, self.deeper = index, settings, segments, deeper
        self.filters = RowFilters(segments, index)

    def noting(self, missing: set[int]) -> "VectorSearch":  # noqa: ARG002
        """Return this: no part of it can be missing, as with `dpr.search.sharded_vectors`."""
        return self

    @classmethod
    def open(
        cls, store: Store, body: SnapshotBody, opened: OpenObjects | None = None, *, by_range: bool = False
    ) -> "VectorSearch":
        """Load index and segments of a snapshot, verified, except objects that are `opened` already.

        `by_range`: segments of a remote store are not fetched; what is needed of them is read by range. Raises
        IntegrityError for what does not belong together.
        """
        body.check()
        segments = SegmentSet.open(store, body.segments, body.deletions, verify=not by_range, opened=opened)
        return cls.over(store, body, body.index, segments, opened)

    @classmethod
    def over(
        cls, store: Store, body: SnapshotBody, entry: IndexEntry, segments: SegmentSet, opened: OpenObjects | None
    ) -> "VectorSearch":
        """Load an index of a snapshot, or a part of it, over open segments. Raises IntegrityError as `open` does."""
        index = open_index(store, entry, segments, opened)
        if index.dim != body.encoder.dim:
            raise IntegrityError(
                f"index {body.index.index_id} has {index.dim} dimensions, and encoder {body.encoder_id} gives "
                f"{body.encoder.dim}; roll back to a sound snapshot or run the recipe again"
            )
        settings, deeper = search_settings(entry)
        return cls(index, settings, segments, deeper, windows=body.windows)

    def passages(self, ids_QK: Ids) -> Ids:
        """Return ids of the passages of rows (Q, K): the rows themselves, unless these may be windows."""
        return self.segments.owners.of(ids_QK) if self.windows else ids_QK

    def top(self, questions_QD: Scores, k: int, rows: FilteredRows | None = None) -> tuple[Scores, Ids]:
        """Return the best k by the index, re-scored as the settings say: (scores_QK float32, ids_QK int64).

        `rows`: no others are found.

        A question whose lists hold fewer than k live rows visits more of them, until k are found or all are visited.
        Where rows are windows, each passage is there once, with its best window.
        """
        if rows is not None and rows.few is None and rows.index is None:
            return self.exact(questions_QD, k, rows)
        return self._passages(partial(self._top_rows, rows=rows), questions_QD, k, rows)

    def _passages(
        self, search: SearchRows, questions_QD: Scores, k: int, rows: FilteredRows | None
    ) -> tuple[Scores, Ids]:
        """Return the best k that `search` finds, each passage once."""
        if not self.windows:
            return search(questions_QD, k)
        there = self.segments.rows if rows is None else len(rows)
        return best_passages(search, self.segments.owners.of, questions_QD, k, there)

    def _top_rows(self, questions_QD: Scores, k: int, *, rows: FilteredRows | None = None) -> tuple[Scores, Ids]:
        """Return the best k rows."""
        settings = self.settings if self.deeper is None or k <= self.settings.at else self.deeper
        scores_QK, ids_QK = self._visit(questions_QD, k, settings, rows)
        last = min(k, self.index.living_rows if rows is None else len(rows)) - 1
        while settings.nprobe < self.index.lists and (short := np.flatnonzero(ids_QK[:, last] == MISSING)).size:
            settings = replace(settings, nprobe=MORE_LISTS * settings.nprobe, margin=None)
            scores_QK[short], ids_QK[short] = self._visit(questions_QD[short], k, settings, rows)
        return scores_QK, ids_QK

    def _visit(
        self, questions_QD: Scores, k: int, settings: SearchSettings, rows: FilteredRows | None
    ) -> tuple[Scores, Ids]:
        candidates = settings.candidates(k)
        if rows is not None and rows.few is not None:
            scores_QC, ids_QC = rows.few.search(questions_QD, candidates)
        elif rows is not None and rows.index is not None:
            scores_QC, ids_QC = rows.index.search(questions_QD, candidates, settings.nprobe)
        else:
            scores_QC, ids_QC = self.index.search(
                questions_QD, candidates, settings.nprobe, settings.margin, settings.at, hits=k
            )
        if not settings.rescore:
            return scores_QC, ids_QC
        return rescore(questions_QD, ids_QC, self.segments.fetching(ids_QC), k)

    def check_known(self, number: int) -> None:
        """Search for some stored vectors of snapshot `number`: they, or others that score as high, must be found.

        This checks that index and segments belong together; it is not a measure of recall. Raises IntegrityError if
        they do not.
        """
        ids_N = self.segments.some_live(FEW_KNOWN_ROWS if self.segments.is_remote else KNOWN_ROWS)
        if not len(ids_N):
            return
        vectors_ND = self.segments.vectors(ids_N).astype(np.float32)
        scores_NK, found_NK = self.top(vectors_ND, KNOWN_HITS)
        own_N = np.einsum("nd,nd->n", vectors_ND, vectors_ND)
        is_there_N = (self.passages(found_NK) == self.passages(ids_N)[:, np.newaxis]).any(axis=1)
        found = float((is_there_N | (scores_NK.min(axis=1) >= own_N * (1 - ROUNDING))).mean())
        if found < MIN_KNOWN:
            raise IntegrityError(
                f"only {found:.0%} of some passages of snapshot {number} are found by their own vectors; "
                "run `dpr verify --deep`, and roll back or run the recipe again"
            )

    def exact(self, questions_QD: Scores, k: int, rows: FilteredRows | None = None) -> tuple[Scores, Ids]:
        """Return the best k of all live vectors, or of those of some rows, by brute force."""
        if rows is None:
            return self.exact_among(questions_QD, k)

        def search(some_qD: Scores, width: int) -> tuple[Scores, Ids]:
            blocks = ((ids_n, self.segments.vectors(ids_n)) for ids_n in rows.id_blocks())
            return exact_topk(some_qD, blocks, width)

        return self._passages(search, questions_QD, k, rows)

    def exact_among(self, questions_QD: Scores, k: int, numbers: Collection[int] | None = None) -> tuple[Scores, Ids]:
        """Return the best k of the live vectors of some segments, None: of all, by brute force."""

        def search(some_qD: Scores, width: int) -> tuple[Scores, Ids]:
            return exact_topk(some_qD, self.segments.live_blocks(numbers), width)

        return self._passages(search, questions_QD, k, None)
