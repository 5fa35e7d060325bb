"""The segments of a snapshot: from ids of the index to vectors and texts.

Vectors are read where they lie (`dpr.search.vectors`), and texts as `dpr.search.passage_texts` says.

Shapes: N rows, D dimensions, K hits.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
import pyarrow.compute as pc

from dpr.errors import IntegrityError
from dpr.formats import MISSING
from dpr.formats.deletions import read_deletions
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import open_parts
from dpr.formats.records import ObjectRef
from dpr.formats.segment import iter_groups, read_rows
from dpr.formats.stored_vectors import FLOAT16_BYTES, Vectors, from_rows
from dpr.index.live_rows import LiveRows, Mask
from dpr.index.row_ids import ROW_BITS, ROW_MASK
from dpr.index.truth import Ids, Scores
from dpr.search.extra_columns import ColumnCache, ExtraColumns
from dpr.search.hits import Hit, Passage, Side
from dpr.search.opened import OpenObjects
from dpr.search.passage_texts import PassageTexts
from dpr.search.row_owners import RowOwners
from dpr.search.vector_cache import VectorCache
from dpr.search.vectors import LocalVectors, RangeRead, SegmentVectors, read_all
from dpr.store import PARALLEL_READS, Store

FETCHES = 4
"""Files that are fetched or hashed at once."""
MAX_FETCHED_BYTES = 1 << 29
"""Size limit of vectors that are read from a remote store and held in memory while many questions are answered."""


class Living(Protocol):
    """Says which rows of a segment live, such as a deletion set."""

    def live_mask(self, entry: SegmentEntry) -> Mask:
        """Return which of the N rows of a segment live, as a mask (N,)."""

    def live_rows(self, entry: SegmentEntry) -> Ids:
        """Return the sorted live row numbers of a segment."""


class SegmentSet:
    """The segments of a snapshot, by number."""

    def __init__(
        self,
        store: Store,
        entries: Sequence[SegmentEntry],
        vectors: Sequence[SegmentVectors],
        living: Living,
        opened: OpenObjects,
    ) -> None:
        self._store, self._living = store, living
        self._entries = {entry.number: entry for entry in entries}
        self._vectors = {entry.number: each for entry, each in zip(entries, vectors, strict=True)}
        self.dim = vectors[0].dim if vectors else 0
        _check_one_form(entries, vectors)
        self.is_remote = any(each.is_remote for each in vectors)
        self._local = LocalVectors(self._vectors) if sum(map(len, vectors)) and not self.is_remote else None
        self._cache = opened.take("remote vectors", "", VectorCache) if self.is_remote else None
        self.rows = sum(entry.rows for entry in entries)
        """Rows of all segments, dead ones included."""
        self._file = partial(_open_file, store, self._entries, self._vectors)
        # the next snapshot, opened beside this one, takes the same cache
        self.extra = ExtraColumns(self._entries, self._file, opened.take("columns", "", ColumnCache))
        self.texts = PassageTexts(self._entries, self._file, opened)
        self.owners = RowOwners(store, self._entries)

    @classmethod
    def open(
        cls,
        store: Store,
        entries: Sequence[SegmentEntry],
        deletions: ObjectRef | Living | None,
        *,
        verify: bool = True,
        opened: OpenObjects | None = None,
    ) -> "SegmentSet":
        """Open the segments of a snapshot.

        With `verify`, files of a remote store are fetched into the cache, and all checksums are verified; otherwise
        vectors are read where they lie, which suits a few questions. Objects that are `opened` already are shared.
        `deletions` names the deletion set, or says itself which rows live.
        """
        shared = opened or OpenObjects()
        form = "vectors, verified" if verify else "vectors"

        def take(entry: SegmentEntry) -> SegmentVectors:
            open_it = partial(SegmentVectors.open, store, entry.object, verify=verify)
            return shared.take(form, entry.object.sha256, open_it)

        with ThreadPoolExecutor(FETCHES if verify else PARALLEL_READS) as pool:
            vectors = list(pool.map(take, entries))
        living = read_deletions(store, deletions) if isinstance(deletions, ObjectRef | None) else deletions
        return cls(store, entries, vectors, living, shared)

    def vectors(self, ids_N: Ids) -> Vectors:
        """Return the stored vectors (N, D) float16 of index ids (N,); fastest if those of a segment come together."""
        if self._local is not None:
            return self._local.rows(ids_N >> ROW_BITS, ids_N & ROW_MASK)
        return self._read(ids_N) if self._cache is None else self._cache.take(ids_N, self.dim, self._read)

    def _read(self, ids_N: Ids) -> Vectors:
        """Return the vectors (N, D) of ascending ids (N,), those of an object store by several requests at once."""
        numbers_N, rows_N = ids_N >> ROW_BITS, ids_N & ROW_MASK
        found_ND, reads = np.empty((len(ids_N), self.dim), np.float16), []
        for number in np.unique(numbers_N).tolist():
            places_n = np.flatnonzero(numbers_N == number)
            vectors = self._vectors[number]
            if vectors.is_remote:
                reads += [RangeRead(places_n[r.places_n], r.read) for r in vectors.reads(rows_N[places_n])]
            else:
                found_ND[places_n] = vectors.rows(rows_N[places_n])
        if reads:
            remote_N = np.concatenate([read.places_n for read in reads])
            like = next(iter(self._vectors.values()))  # all have one form
            found_ND[remote_N] = from_rows(read_all(reads, len(ids_N), like.row_bytes)[remote_N], like.store_as)
        return found_ND

    def fetching(self, ids_QC: Ids) -> Callable[[Ids], Vectors]:
        """Return a function that gives the vectors of ids that occur in `ids_QC`.

        From a remote store, each is read once, now; if they take more than `MAX_FETCHED_BYTES`, they are read when they
        are needed.
        """
        if not self.is_remote:
            return self.vectors
        ids_N = np.unique(ids_QC[ids_QC != MISSING])
        if len(ids_N) * FLOAT16_BYTES * self.dim > MAX_FETCHED_BYTES:
            return self.vectors
        vectors_ND = self.vectors(ids_N)
        return lambda some_n: vectors_ND[np.searchsorted(ids_N, some_n)]

    def live_blocks(self, numbers: Collection[int] | None = None) -> Iterator[tuple[Ids, Vectors]]:
        """Yield index ids (n,) and vectors (n, D) of live rows, a row group at a time: of all segments, or of some."""
        for number, entry in sorted(self._entries.items()):
            if numbers is not None and number not in numbers:
                continue
            live = self._living.live_rows(entry)
            for first, vectors_nD in self._vectors[number].blocks():
                rows = live[np.searchsorted(live, first) : np.searchsorted(live, first + len(vectors_nD))]
                if len(rows):
                    yield (number << ROW_BITS) | rows, vectors_nD[rows - first]

    def some_live(self, rows: int) -> Ids:
        """Return index ids (n,) of at most `rows` live rows: the first rows of evenly spread segments."""
        entries = [entry for _, entry in sorted(self._entries.items()) if entry.live_rows]
        chosen = entries[:: max(1, len(entries) // rows)]
        each = -(-rows // max(1, len(chosen)))
        ids = [(entry.number << ROW_BITS) | self._living.live_rows(entry)[:each] for entry in chosen]
        return np.concatenate([np.empty(0, np.int64), *ids])[:rows].astype(np.int64)

    def live_masks(self) -> Iterator[tuple[int, Mask]]:
        """Yield the number of each segment, and which of its rows live."""
        for number, entry in self._entries.items():
            yield number, self._living.live_mask(entry)

    def live_rows(self) -> LiveRows:
        """Return which ids live."""
        return LiveRows(dict(self.live_masks()))

    def hits(self, scores_K: Scores, ids_K: Ids, by: Literal["dense", "bm25"] | None = None) -> list[Hit]:
        """Return hits in rank order; those that are missing (fewer than K were found) are left out.

        `by`: the one kind of search that found them, which each hit then names with its rank and score.
        """
        hits: list[Hit] = []
        for score, id_ in zip(scores_K.tolist(), ids_K.tolist(), strict=True):
            if id_ != MISSING:
                row, rank = self.texts.row(id_ >> ROW_BITS, id_ & ROW_MASK), len(hits) + 1
                sides = {by: Side(rank, score)} if by else {}
                hits.append(Hit(rank, score, row.id, row.title, row.texts[0], row.extra, **sides))
        return hits

    def passage(self, id_: str) -> Passage | None:
        """Return the live passage with this id, None if there is none; the ids of all segments are read for it."""

        def find(entry: SegmentEntry) -> list[Passage]:
            groups = iter_groups(self._file(entry.number), ["id"])
            same_N = np.concatenate([[], *(pc.equal(table["id"], id_).to_numpy() for table in groups)]).astype(np.bool_)
            live_N = same_N & self._living.live_mask(entry) if same_N.any() else same_N
            return [self.texts.row(entry.number, row) for row in np.flatnonzero(live_N).tolist()]

        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            rows = [row for found in pool.map(find, self._entries.values()) for row in found]
        return Passage(id_, rows[0].title, [row.texts[0] for row in rows], rows[0].extra) if rows else None

    def column(self, name: str, ids_N: Ids) -> list[str]:
        """Return one text column (`id`, `title` or `text`) of index ids (N,), for reading many at once.

        Each row group that is needed is read once, straight from the segments; nothing is unpacked into the cache.
        """
        order_N = np.argsort(ids_N, kind="stable")
        sorted_N = ids_N[order_N]
        found: list[str] = [""] * len(ids_N)
        numbers_N = sorted_N >> ROW_BITS
        for number in np.unique(numbers_N).tolist():
            places = np.flatnonzero(numbers_N == number)
            file = open_parts(self._store, self._entries[number].object)
            values = read_rows(file, [name], sorted_N[places] & ROW_MASK)[name].to_pylist()
            for place, value in zip(order_N[places].tolist(), values, strict=True):
                found[place] = value
        return found


def _check_one_form(entries: Sequence[SegmentEntry], vectors: Sequence[SegmentVectors]) -> None:
    """Raise IntegrityError if vectors of several widths or forms would meet."""
    forms = {(each.dim, each.store_as): entry.object.name for entry, each in zip(entries, vectors, strict=True)}
    if len(forms) > 1:
        found = " and ".join(f"{dim} numbers of {form} ({name})" for (dim, form), name in forms.items())
        raise IntegrityError(
            f"the snapshot mixes segments whose vectors are stored as {found}; roll back to a sound snapshot or run "
            "the recipe into a new store"
        )


def _open_file(
    store: Store, entries: Mapping[int, SegmentEntry], vectors: Mapping[int, SegmentVectors], number: int
) -> Path | BinaryIO:
    """Open a segment's file. What is mapped can be read, even if the store has vanished."""
    return vectors[number].open_mapped() or open_parts(store, entries[number].object)
