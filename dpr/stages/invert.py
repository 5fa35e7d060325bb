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
from dpr.formats.records import ObjectRef
from dpr.formats.segment import iter_groups
from dpr.lexical.analysis import Analyzer
from dpr.lexical.fusion import fixed_settings
from dpr.lexical.postings import MEMORY_TIMES
from dpr.recipe_index import LexicalConfig
from dpr.run import Run
from dpr.stages.write_words import LexicalPartResult, WriteWords, indexed_texts
from dpr.store import open_store


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


def index_words(run: Run, segments: Sequence[SegmentEntry]) -> LexicalEntry | None:
    """Invert the segments that have no lexical part yet; returns the index of words, None if there is to be none."""
    config = run.recipe.lexical
    if not config.build:
        return None
    units = plan_invert(segments, Analyzer(config).analysis_id, run.spec.stored_bytes)
    step = Step("invert", partial(InvertSegment, run.store.url, config))
    work = Work.of(recorded(run.store.url, LexicalPartResult, step))
    results = run.results(Stage("invert", units, LexicalPartResult, work))
    pairs = zip(segments, results, strict=True)
    parts = [LexicalPartEntry(segment=entry.number, object=result.part) for entry, result in pairs]
    towers = run.spec.passage, run.spec.question
    hybrid = fixed_settings(config, unit_length=all(tower.normalize for tower in towers))
    mode = "dense" if config.mode == "auto" else config.mode
    return LexicalEntry(config=config, parts=parts, hybrid=hybrid, mode=mode)


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
        return self._write(unit.segment, self._write.postings(self._texts(unit.segment)))

    def _texts(self, segment: ObjectRef) -> Iterator[str]:
        for group in iter_groups(open_parts(self._store, segment), ["title", "text"]):
            yield from indexed_texts(group)
