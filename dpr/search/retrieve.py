"""Retrieval: a snapshot and a question in, hits with their text out.

Shapes: Q questions, K hits.
"""

import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from dpr.closing import Closing
from dpr.encoder.compute import Compute
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve_question
from dpr.encoder.tower import TowerSpec
from dpr.formats.lexical_entry import SearchMode
from dpr.formats.manifest import Snapshot
from dpr.formats.markers import Marker
from dpr.formats.snapshots import open_snapshot
from dpr.index.truth import Scores
from dpr.recipe import ExtraType
from dpr.search.embeddings import Embedder
from dpr.search.filters import Filter
from dpr.search.hits import Hit, Passage
from dpr.search.modes import ModeSearch
from dpr.search.sharded_vectors import Shards
from dpr.store import Store


@dataclass(frozen=True)
class Answer:
    """Hits of one batch of questions, and where the time went."""

    snapshot: int
    """Number of the snapshot that all hits come from."""
    encoder_id: str
    hits: list[list[Hit]]
    lost_tokens: list[int]
    """Tokens that each question lost to the encoder's token limit."""
    encode_seconds: float
    search_seconds: float
    filter_seconds: float = 0.0
    """Time to find the rows that match the filter, unless they were known."""
    missing_shards: tuple[int, ...] = ()
    """Shards that did not answer in time: what they hold is not among the hits."""


class Retriever(Closing):
    """A snapshot, ready to answer questions in this process; a context manager that closes it."""

    def __init__(self, snapshot: Snapshot, encoder: QuestionEncoder, modes: ModeSearch, marker: Marker) -> None:
        self.number, self.body, self.published_at = snapshot.number, snapshot.body, snapshot.published_at
        self._encoder, self._modes, self._marker = encoder, modes, marker
        self.embedder = Embedder(snapshot.body.encoder, encoder)
        weakref.finalize(self, marker.let_go).atexit = False

    @classmethod
    def open(
        cls,
        store: Store,
        number: int | None = None,
        model: str | None = None,
        like: "Retriever | None" = None,
        shards: Shards | None = None,
        *,
        by_range: bool = False,
    ) -> "Retriever":
        """Load snapshot `number` (default: the live one); `model` is where to find or fetch its question model.

        `shards`: the processes that search the vectors; None: this one does. `by_range`: the segments of a remote store
        are not fetched, and what is needed of them is read when it is needed.

        It shares encoder, segments, shards and words with `like`, another open snapshot; and texts are unpacked as far
        as they are there. Garbage collection keeps what the snapshot names until the retriever is closed or dropped.
        Raises EncoderError, showing both ids, if the model found is not the encoder of the snapshot.
        """
        snapshot, marker = open_snapshot(store, number)
        try:
            description = snapshot.body.encoder
            known = like._modes if like else None
            open_modes = partial(ModeSearch.open, store, snapshot, known, shards, by_range=by_range)
            with ThreadPoolExecutor(1) as pool:  # files are fetched, verified and loaded while PyTorch loads
                # an error held in a future of this function would keep everything open through a reference cycle
                opening = pool.map(lambda work: work(), [open_modes])
                if like is not None and like.body.encoder == description:
                    encoder = like._encoder
                else:
                    encoder = QuestionEncoder(question_tower(snapshot, model), Compute(description.config.precision))
            return cls(snapshot, encoder, next(opening), marker)
        except BaseException:
            marker.close()
            raise

    def warm_up(self) -> None:
        """Search once in each mode, so that no question has to wait for compilation."""
        self._encoder.warm_up()
        for mode in self._modes.available:
            self.search(["warm up"], 1, mode=mode)

    def check_known(self) -> None:
        """Search for some stored vectors. Raises IntegrityError if they are not found (`VectorSearch`)."""
        self._modes.check_known(self.number)

    @property
    def is_remote(self) -> bool:
        """Return whether parts of segments are read by range when they are needed."""
        return self._modes.is_remote

    def unpack_beside(self) -> None:
        """From now on, unpack texts in a thread of their own instead of letting a question wait."""
        self._modes.unpack_beside()

    def close(self) -> None:
        """Tell the store that its snapshot is not read any more."""
        self._marker.close()

    def let_go(self) -> None:
        """Do so without waiting for the store."""
        self._marker.let_go()

    def encode(self, questions: Sequence[str]) -> Scores:
        """Return the vectors (Q, D) float32 of questions. Raises EncoderError as `QuestionEncoder.encode` does."""
        return self._encoder.encode(questions)

    def passage(self, id_: str) -> Passage | None:
        """Return the passage with this id; None if there is none."""
        return self._modes.passage(id_)

    @property
    def extra_types(self) -> Mapping[str, ExtraType]:
        """Return the types of the snapshot's extra columns, by name."""
        return self._modes.extra_types

    def check_mode(self, mode: SearchMode) -> None:
        """Raise RecipeError if the snapshot cannot be searched in this mode."""
        self._modes.check(mode)

    def prepare_filter(self, where: Filter) -> None:
        """Find the rows that match a filter, for the next search with it.

        Raises RecipeError if the snapshot lacks a column of the filter, or has it with another type.
        """
        self._modes.prepare_rows(where)

    def search(
        self,
        questions: Sequence[str],
        k: int = 10,
        *,
        mode: SearchMode | None = None,
        exact: bool = False,
        where: Filter | None = None,
    ) -> Answer:
        """Return the best k passages for each question.

        `mode`: by vectors, by words, or by both; None: as the snapshot says. `exact`: vectors are compared by brute
        force instead of the index. `where`: only passages that match are ranked. Raises RecipeError as `check_mode` and
        `prepare_filter` do.
        """
        missing: set[int] = set()
        modes = self._modes.noting(missing)
        mode = mode or modes.default
        modes.check(mode)
        started = time.perf_counter()
        rows = None if where is None else modes.rows(where)
        filtered = started if rows is None else time.perf_counter()
        lost_tokens = [0] * len(questions)
        if mode == "bm25":
            encoded = filtered
            hits = modes.bm25(questions, k, rows=rows)
        else:
            question_vectors = self._encoder.encode_counted(questions)
            lost_tokens = question_vectors.lost_Q.tolist()
            encoded = time.perf_counter()
            if mode == "dense":
                hits = modes.dense(question_vectors.vectors_QD, k, exact=exact, rows=rows)
            else:
                hits = modes.hybrid(questions, question_vectors.vectors_QD, k, exact=exact, rows=rows)
        return Answer(
            self.number,
            self.body.encoder_id,
            hits,
            lost_tokens,
            encode_seconds=encoded - filtered,
            search_seconds=time.perf_counter() - encoded,
            filter_seconds=filtered - started,
            missing_shards=tuple(sorted(missing)),
        )


def question_tower(snapshot: Snapshot, model: str | None) -> TowerSpec:
    """Find the question tower of a snapshot, without loading it.

    A model is fetched only from `model`, which the user names. Raises EncoderError if it is not the snapshot's.
    """
    return resolve_question(snapshot.body.encoder, model, f"snapshot {snapshot.number}")
