"""`dpr eval` and `dpr compare`: how well snapshots, in their modes, and run files answer questions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import exists, isfile

from dpr.errors import RecipeError
from dpr.evaluate.absent_passages import absent_passages
from dpr.evaluate.metrics import Metrics
from dpr.evaluate.questions import QuestionSet, describe_unknown
from dpr.evaluate.rankings import RankedBy, Ranking, read_ranking, search_all
from dpr.formats.lexical_entry import SearchMode
from dpr.formats.manifest import SnapshotBody
from dpr.search.rerank import Reranker
from dpr.search.retrieve import Retriever
from dpr.store import open_store
from dpr.store.mapped_files import keeping_more

MODES: tuple[SearchMode, ...] = ("dense", "bm25", "hybrid")
_CONTENDER = re.compile(r"(?P<place>.+?)(?:@(?P<snapshot>\d+))?(?::(?P<mode>[a-z0-9]+))?", re.DOTALL)


@dataclass(frozen=True)
class Contender:
    """A side of a comparison: a snapshot of a store, or a run file."""

    place: str
    snapshot: int | None = None
    """None: the live one."""
    modes: tuple[SearchMode, ...] | None = None
    """None: the default mode of the snapshot."""

    @classmethod
    def parse(cls, text: str) -> "Contender":
        """Read `STORE`, `STORE@SNAPSHOT`, either with `:MODE`, or the path of a run file."""
        if exists(text):  # a file counts as a run, whatever its name looks like
            return cls(text)
        found = _CONTENDER.fullmatch(text)
        if found is None or (found["mode"] is not None and found["mode"] not in MODES):
            raise RecipeError(
                f"{text!r} is not STORE, STORE@SNAPSHOT, STORE:MODE or STORE@SNAPSHOT:MODE with mode "
                f"{', '.join(MODES)}, nor a run file"
            )
        snapshot = None if found["snapshot"] is None else int(found["snapshot"])
        return cls(found["place"], snapshot, tuple(mode for mode in MODES if mode == found["mode"]) or None)


@dataclass(frozen=True)
class Measurement:
    """The measurements of one contender."""

    rankings: tuple[Ranking, ...]
    """One for each mode, and then one for each mode re-ranked."""
    snapshot: int | None
    """Its number; None for a run file."""
    absent: tuple[str, ...]
    """Ids that answer questions and are not in the snapshot."""
    notes: tuple[str, ...]
    """Sentences on what was left out, or counts as not answered."""


@dataclass(frozen=True)
class Evaluator:
    """Measures contenders on the same questions."""

    questions: QuestionSet
    metrics: Metrics
    exact: bool = False
    """Whether all vectors are compared instead of using the index."""
    model: str | None = None
    """Where the question model is, if it has moved."""
    reranker: Reranker | None = None
    """Re-ranks the hits of each mode; the result is measured beside the modes themselves."""

    def measure(self, contender: Contender) -> Measurement:
        """Ask a contender all questions.

        Raises RecipeError for a file that is not a run, a place that does not exist, a contender without any of the
        passages that answer, or a missing mode.
        """
        if "://" not in contender.place and not exists(contender.place):
            raise RecipeError(f"{contender.place} does not exist; name a store or a TREC run file")
        if isfile(contender.place):
            ranking, notes = read_ranking(contender.place, self.questions, self.metrics)
            return Measurement((ranking,), None, (), tuple(notes))
        store = open_store(contender.place)
        with Retriever.open(store, contender.snapshot, self.model) as retriever:
            body, answers = retriever.body, self.questions.passage_ids
            modes = contender.modes or (body.lexical.mode if body.lexical else "dense",)
            for mode in modes:
                retriever.check_mode(mode)
            absent = absent_passages(store, body, answers)
            notes = [describe_unknown(absent, len(answers))] if absent else []
            rerankers = [None] if self.reranker is None else [None, self.reranker]
            rankers = [RankedBy(mode, self.exact, reranker) for reranker in rerankers for mode in modes]
            with keeping_more():
                rankings = [search_all(retriever, self.questions, self.metrics, by) for by in rankers]
        return Measurement(tuple(rankings), retriever.number, tuple(absent), tuple(notes))

    def measure_both(self, a: Contender, b: Contender) -> tuple[Ranking, Ranking, list[str]]:
        """Ask two contenders, and return their rankings with distinct names, and notes on both.

        Raises RecipeError as `measure`, and if two run files are to be searched exactly.
        """
        if self.exact and isfile(a.place) and isfile(b.place):
            raise RecipeError(
                f"--exact has no effect on {a.place} and {b.place}, since run files are not searched; leave it out"
            )
        rankings, notes = [], list[str]()
        for contender in (a, b):
            measured = self.measure(contender)
            (ranking,) = measured.rankings
            number = "" if measured.snapshot is None else f"@{measured.snapshot}:{ranking.name}"
            rankings.append(replace(ranking, name=f"{contender.place}{number}"))
            notes += [note for note in measured.notes if note not in notes]
        return rankings[0], rankings[1], notes


def modes_of(body: SnapshotBody, wanted: Sequence[str]) -> tuple[SearchMode, ...]:
    """Return the modes that are wanted, or all that a snapshot can be searched in, in the order of `MODES`."""
    return tuple(mode for mode in MODES if mode in wanted) or (MODES if body.lexical else MODES[:1])
