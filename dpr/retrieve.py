"""Retrieval: a snapshot and a question in, hits with their text out.

Shapes: Q questions, K hits, C candidates, D dimensions. Scores are inner products (paper, equation 1).
"""

import os
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from dpr.deletions import live_rows
from dpr.encoder.compute import Compute
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.errors import EncoderError, IntegrityError
from dpr.hit import Hit
from dpr.index.merge import ROW_BITS, ROW_MASK
from dpr.index.search import SearchSettings, rescore
from dpr.index.serving import ServingIndex, open_shard
from dpr.index.truth import exact_topk
from dpr.index.tune import RECALL_AT
from dpr.manifest import IndexEntry, SegmentEntry, SnapshotBody
from dpr.readers import Marker
from dpr.recipe import EncoderConfig
from dpr.records import fetch_object
from dpr.segment import MappedSegment
from dpr.snapshot import open_snapshot
from dpr.store import Store

if TYPE_CHECKING:
    from dpr.encoder.encode import QuestionEncoder

BLOCK_ROWS = 65_536
Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


def cache_folder() -> Path:
    """Where unpacked segments and fetched indexes are kept: $DPR_CACHE, else the user's cache folder."""
    return Path(os.environ.get("DPR_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dpr")).expanduser()


class SegmentSet:
    """The segments of a snapshot, mapped: from ids of the serving index to vectors and texts."""

    def __init__(self, segments: Mapping[int, MappedSegment], live: Mapping[int, Ids], dim: int) -> None:
        self._segments, self._live, self._dim = segments, live, dim
        # as plain arrays: numpy spends more on making a memmap of each result than on reading the rows
        self._vectors = {number: np.asarray(segment.vectors_ND) for number, segment in segments.items()}

    @classmethod
    def open(cls, store: Store, entries: Sequence[SegmentEntry], dim: int) -> "SegmentSet":
        """Map the segments of a snapshot; those that are not in the cache yet are fetched and verified first."""
        folder = cache_folder()
        mapped, live = {}, {}
        for entry in entries:
            fetch = partial(fetch_object, store, entry.object, folder / "objects")
            mapped[entry.number] = MappedSegment.open(fetch, folder / "segments" / entry.object.sha256[:32])
            live[entry.number] = live_rows(store, entry)
        return cls(mapped, live, dim)

    def vectors(self, ids: Ids) -> npt.NDArray[np.float16]:
        """Stored vectors (N, D) of index ids (N,); soonest if those of a segment come together."""
        numbers, rows = ids >> ROW_BITS, ids & ROW_MASK
        bounds = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(ids)] if len(ids) else [0]
        found_ND = np.empty((len(ids), self._dim), np.float16)
        for (first, last), number in zip(pairwise(bounds), numbers[bounds[:-1]].tolist(), strict=True):
            found_ND[first:last] = self._vectors[number].take(rows[first:last], axis=0)
        return found_ND

    def live_blocks(self) -> Iterator[tuple[Ids, npt.NDArray[np.float16]]]:
        """Index ids (n,) and vectors (n, D) of all live rows, a block at a time."""
        for number, segment in sorted(self._segments.items()):
            for rows in np.array_split(self._live[number], -(-len(self._live[number]) // BLOCK_ROWS) or 1):
                yield (number << ROW_BITS) | rows, segment.vectors_ND[rows]

    def hits(self, scores_K: Scores, ids_K: Ids) -> list[Hit]:
        """Hits in rank order; ids below zero (fewer than K found) are left out."""
        hits: list[Hit] = []
        for score, id_ in zip(scores_K.tolist(), ids_K.tolist(), strict=True):
            if id_ >= 0:
                passages = self._segments[id_ >> ROW_BITS].passages
                row = passages.slice(id_ & ROW_MASK, 1).to_pylist()[0]
                hits.append(Hit(rank=len(hits) + 1, score=score, **row))
        return hits


def open_index(store: Store, entry: IndexEntry) -> ServingIndex:
    """Fetch, verify and load all shards of a serving index."""
    folder = cache_folder() / "objects"
    return ServingIndex([open_shard(fetch_object(store, shard.object, folder)) for shard in entry.shards])


class VectorSearch:
    """The serving index with exact re-scoring from the stored vectors."""

    def __init__(self, index: ServingIndex, settings: SearchSettings, segments: SegmentSet) -> None:
        self.index, self.settings, self.segments = index, settings, segments

    @classmethod
    def open(cls, store: Store, body: SnapshotBody) -> "VectorSearch":
        """Load index and segments of a snapshot, verified. Raises IntegrityError for what does not belong together."""
        body.check()
        segments = SegmentSet.open(store, body.segments, body.encoder["dim"])
        index = open_index(store, body.index)
        if index.dim != body.encoder["dim"]:
            raise IntegrityError(
                f"index {body.index.index_id} has {index.dim} dimensions, and encoder {body.encoder_id} gives "
                f"{body.encoder['dim']}; roll back to a sound snapshot or run the recipe again"
            )
        return cls(index, SearchSettings(body.index.nprobe, body.index.rescore), segments)

    def top(self, questions_QD: Scores, k: int) -> tuple[Scores, Ids]:
        """The best k by the index, re-scored as the settings say: (scores_QK float32, ids_QK int64)."""
        # tuned at 20 hits: more hits need as many more candidates
        candidates = max(k, self.settings.rescore * max(k, RECALL_AT) // RECALL_AT)
        scores_QC, ids_QC = self.index.search(questions_QD, candidates, self.settings.nprobe)
        if not self.settings.rescore:
            return scores_QC, ids_QC
        return rescore(questions_QD, ids_QC, self.segments.vectors, k)

    def exact(self, questions_QD: Scores, k: int) -> tuple[Scores, Ids]:
        """The best k of all live vectors, by brute force."""
        return exact_topk(questions_QD, self.segments.live_blocks(), k)


@dataclass(frozen=True)
class Answer:
    """Hits of one batch of questions, and where the time went."""

    hits: list[list[Hit]]
    encode_seconds: float
    search_seconds: float


class Retriever:
    """A snapshot, ready to answer questions in this process; a context manager that closes it."""

    def __init__(
        self, number: int, body: SnapshotBody, encoder: "QuestionEncoder", vectors: VectorSearch, marker: Marker
    ) -> None:
        self.number, self.body, self._encoder, self._vectors, self._marker = number, body, encoder, vectors, marker
        weakref.finalize(self, marker.let_go).atexit = False

    @classmethod
    def open(cls, store: Store, number: int | None = None, model: str | None = None) -> "Retriever":
        """Load snapshot `number` (default: the live one); `model` replaces the model's place, not the model.

        Garbage collection leaves alone what the snapshot names until the retriever is closed or dropped. Raises
        EncoderError, showing both ids, if the model found is not the encoder of the snapshot.
        """
        from dpr.encoder.encode import QuestionEncoder  # PyTorch takes seconds to import, and is needed here alone

        snapshot, marker = open_snapshot(store, number)
        try:
            encoder = QuestionEncoder(resolve_encoder(snapshot.body, model), Compute())
            return cls(snapshot.number, snapshot.body, encoder, VectorSearch.open(store, snapshot.body), marker)
        except BaseException:
            marker.close()
            raise

    def close(self) -> None:
        """Tell the store that its snapshot is not read any more."""
        self._marker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def search(self, questions: Sequence[str], k: int = 10, *, exact: bool = False) -> Answer:
        """The best k passages for each question, by the index or (`exact`) by brute force."""
        started = time.perf_counter()
        questions_QD = self._encoder.encode(questions)
        encoded = time.perf_counter()
        scores_QK, ids_QK = (self._vectors.exact if exact else self._vectors.top)(questions_QD, k)
        hits = [self._vectors.segments.hits(s, i) for s, i in zip(scores_QK, ids_QK, strict=True)]
        return Answer(hits, encoded - started, time.perf_counter() - encoded)


def resolve_encoder(body: SnapshotBody, model: str | None = None) -> EncoderSpec:
    """The encoder of a snapshot, not loaded; EncoderError if the model files found are those of another encoder."""
    config = EncoderConfig.model_validate(body.encoder["config"])
    if model is not None:
        config = config.model_copy(update={"question_model" if config.question_model else "model": model})
    spec = resolve(config)
    if spec.encoder_id != body.encoder_id:
        raise EncoderError(
            f"the snapshot was made by encoder {body.encoder_id}, and {config.model} is encoder {spec.encoder_id}; "
            "their vectors cannot be compared, so name the model that made it"
        )
    return spec
