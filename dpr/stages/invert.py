"""The invert stage: the words of each segment become an inverted file, once: a lexical part.

The writer of a segment writes its part, too (`dpr.stages.write_segment`), so this stage has work only after a change of
the rule that turns texts into terms. A part is named by that rule and by the bytes of its segment: parts of two rules
never meet, and a change of the rule makes new parts without embedding anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from dpr.engine.room import Need, check_room
from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.formats import layout
from dpr.formats.lexical_entry import LexicalEntry, LexicalPartEntry
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import open_parts
from dpr.formats.records import ObjectRef, Result
from dpr.formats.segment import iter_groups
from dpr.lexical.analysis import Analyzer
from dpr.lexical.fusion import fixed_settings
from dpr.lexical.postings import MEMORY_TIMES
from dpr.recipe_index import LexicalConfig
from dpr.run import Run
from dpr.stages.settle import Settled
from dpr.stages.write_words import WriteWords, indexed_texts
from dpr.store import open_store


class LexicalPartResult(Result):
    """A lexical part; `rows` are all rows of its segment, dead ones included."""

    part: ObjectRef


@dataclass(frozen=True)
class InvertUnit:
    """One segment whose words are to be indexed."""

    record: str
    segment: ObjectRef
    rows: int
    read_bytes: int

    @property
    def need(self) -> Need:
        """Return the need of inverting: a part is about as large as the compressed texts."""
        return Need(self.read_bytes, self.read_bytes, memory_bytes=MEMORY_TIMES * self.read_bytes)


def index_words(run: Run, settled: Settled) -> LexicalEntry | None:
    """Invert the segments that have no lexical part yet; returns the index of words, None if there is to be none."""
    config, segments = run.recipe.lexical, settled.segments
    if not config.build:
        return None
    analysis_id = Analyzer(config).analysis_id
    stems = [layout.lexical_part(analysis_id, entry.object.sha256) for entry in segments]
    part_of = _known_parts(run, settled, analysis_id)
    lacking = [entry for stem, entry in zip(stems, segments, strict=True) if stem not in part_of]
    step = Step("invert", partial(InvertSegment, run.store.url, config))
    work = Work.of(recorded(run.store.url, LexicalPartResult, step))
    units = plan_invert(lacking, analysis_id, run.spec.stored_bytes)
    results = run.results(Stage("invert", units, LexicalPartResult, work))
    part_of |= {layout.stem_of(result.part.name): result.part for result in results}
    parts = [
        LexicalPartEntry(segment=entry.number, object=part_of[stem])
        for stem, entry in zip(stems, segments, strict=True)
    ]
    towers = run.spec.passage, run.spec.question
    hybrid = fixed_settings(config, unit_length=all(tower.normalize for tower in towers))
    mode = "dense" if config.mode == "auto" else config.mode
    return LexicalEntry(config=config, parts=parts, hybrid=hybrid, mode=mode)


def _known_parts(run: Run, settled: Settled, analysis_id: str) -> dict[str, ObjectRef]:
    """Return the parts by this rule that are there, by stem: those of snapshots, and those written with segments.

    The result of a segment outlives its words if another run has published it with words by another rule.
    """
    there = {info.name for info in run.store.list(layout.lexical_parts(analysis_id))}
    return {layout.stem_of(part.name): part for part in (*run.words, *settled.words) if part.name in there}


def plan_invert(segments: Sequence[SegmentEntry], analysis_id: str, vector_bytes: int) -> list[InvertUnit]:
    """Return one unit a segment."""
    return [
        InvertUnit(
            layout.record(layout.lexical_part(analysis_id, entry.object.sha256)),
            entry.object,
            entry.rows,
            read_bytes=max(0, entry.object.size_bytes - entry.rows * vector_bytes),
        )
        for entry in segments
    ]


class InvertSegment:
    """Indexes the words of one segment."""

    def __init__(self, store_url: str, config: LexicalConfig) -> None:
        self._store = open_store(store_url)
        self._write = WriteWords(self._store, Analyzer(config))

    def __call__(self, unit: InvertUnit) -> LexicalPartResult:
        check_room(self._store, "invert", unit.record, unit.need)
        postings = self._write.postings(self._texts(unit.segment))
        return LexicalPartResult(rows=len(postings.lengths), part=self._write(unit.segment, postings))

    def _texts(self, segment: ObjectRef) -> Iterator[str]:
        for group in iter_groups(open_parts(self._store, segment), ["title", "text"]):
            yield from indexed_texts(group)
