"""`dpr check`: everything about a recipe that can be found out in seconds, without embedding the corpus."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpr.encoder.compute import Compute
from dpr.encoder.cross_encoder import CrossEncoder
from dpr.encoder.cross_encoder_spec import resolve_cross_encoder
from dpr.encoder.encode import PassageEncoder
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.engine.room import Need, check_room
from dpr.errors import DprError, EncoderError, RecipeError
from dpr.evaluate.questions import load_questions
from dpr.formats.snapshots import latest_snapshot
from dpr.index.choose import choose
from dpr.lexical.analysis import check_language
from dpr.operations.look import Look, look_at
from dpr.plurals import counted
from dpr.recipe import Recipe
from dpr.recipe_service import RerankConfig
from dpr.store import Store, open_store
from dpr.store.base import PROBES
from dpr.store.proof import prove_put_if_absent


@dataclass(frozen=True)
class Finding:
    """The finding on one thing that a run needs."""

    topic: str
    sentence: str
    error: DprError | None = None
    """Why a run would fail; None: it would not."""

    @classmethod
    def of(cls, topic: str, look: Callable[[], str]) -> "Finding":
        """Return what `look` says, or the error that it raises."""
        try:
            return cls(topic, look())
        except DprError as error:
            return cls(topic, str(error), error)


class RecipeCheck:
    """Checks everything that a recipe names, one thing after another, also after a failure."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._look: Look | None = None
        self._spec: EncoderSpec | None = None
        self._store: Store | None = None

    def findings(self) -> list[Finding]:
        """Check everything; writes and deletes one small object in the store."""
        topics: dict[str, Callable[[], str]] = {
            "corpus": self._corpus,
            "encoder": self._encoder,
            "store": self._open_store,
            "room": self._room,
            "words": self._words,
            "questions": self._questions,
        }
        if (rerank := self._recipe.rerank) is not None:
            topics["re-ranker"] = lambda: _reranker(rerank)
        return [Finding.of(topic, look) for topic, look in topics.items()]

    def _corpus(self) -> str:
        self._look = look_at(self._recipe.corpus, store=self._recipe.store)
        self._look.check(self._recipe.limits)
        return self._look.describe()

    def _encoder(self) -> str:
        spec = resolve(self._recipe.encoder)
        compute = Compute(spec.config.precision)
        passage = self._look.first if self._look and self._look.first else None
        title, text = (passage.title, passage.text) if passage else ("", "a passage")
        vectors = [PassageEncoder(spec.passage, compute).encode([title], [text])]
        if spec.question != spec.passage:
            vectors.append(QuestionEncoder(spec.question, compute).encode([text]).astype(np.float16))
        if not all(np.isfinite(vector_1D).all() for vector_1D in vectors):
            raise EncoderError(f"model {spec.config.model} gives a vector that is not finite; take another model")
        self._spec = spec
        return f"{spec.config.model}, {spec.dim} dimensions, encoded a passage; encoder id {spec.encoder_id}"

    def _open_store(self) -> str:
        store = open_store(self._recipe.store)
        is_new = not any(store.list(""))
        prove_put_if_absent(store)
        if is_new and "://" not in store.url:
            with suppress(OSError):  # folders that are not empty stay
                Path(store.url, PROBES).rmdir()
                Path(store.url).rmdir()
        self._store = store
        live = latest_snapshot(store)
        if live is None:
            return f"{store.url} can be written, and refuses to replace an object; it has no snapshot yet"
        same = (
            "of this encoder" if self._spec and live.body.encoder_id == self._spec.encoder_id else "of another encoder"
        )
        return f"{store.url} can be written, and refuses to replace an object; snapshot {live.number} is live, {same}"

    def _words(self) -> str:
        config = self._recipe.lexical
        if not config.build:
            return "no index of words; only dense search will be possible"
        check_language(config)
        return f"BM25 over passages in {config.language}"

    def _room(self) -> str:
        if not (self._look and self._look.ids and self._spec and self._store):
            return "not checked, since corpus, encoder or store failed"
        rows, dim = max(1, self._look.min_passages), self._spec.dim
        index = choose(self._recipe.index, rows, dim)
        vector_bytes = self._spec.stored_bytes * rows
        segment_bytes = self._spec.stored_bytes * min(rows, self._recipe.resources.segment_rows)
        need = Need(segment_bytes, vector_bytes, memory_bytes=index.memory_bytes, smaller="index fewer passages")
        check_room(self._store, "check", "a first night", need)
        return (
            f"enough disk and memory for {counted(rows, 'passage')}: {vector_bytes / 1e6:,.1f} MB of vectors, and an "
            f"index ({index.factory}) of {index.memory_bytes / 1e6:,.1f} MB"
        )

    def _questions(self) -> str:
        questions = load_questions(self._recipe.gate, self._recipe.index.seed)
        if questions is None:
            return "none; sentences of passages will stand in for them, which measures recall but not accuracy"
        answers = questions.passage_ids
        described = "; ".join([counted(len(questions.questions), "question"), *questions.notes])
        if not answers or self._look is None:
            return described
        documents = {name.rpartition("#")[0] for name in self._look.ids}
        found = [answer for answer in answers if answer in self._look.ids or answer in documents]
        known = f"{described}; {len(found):,} of {len(answers):,} passage ids that answer them are among the rows read"
        if self._look.is_whole and not found:
            raise RecipeError(f"{known}, such as {answers[0]!r}; look at gate.questions, gate.answers and columns.id")
        return known


def _reranker(config: RerankConfig) -> str:
    encoder = CrossEncoder(resolve_cross_encoder(config), Compute(precision=config.precision))
    (score,) = encoder.score(["a question"], ["a passage"])
    return f"{encoder.spec.name}, scored a pair ({score:.4f}); re-ranker id {encoder.spec.reranker_id}"
