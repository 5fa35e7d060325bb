"""The invert stage: the words of each segment become an inverted file, once: a lexical part.

A part is named by the rule that turns texts into terms and by the bytes of its segment, so parts of two rules never
meet, and a change of the rule makes new parts without embedding anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dpr.engine.room import Need, check_room
from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.formats import layout
from dpr.formats.lexical_entry import LexicalEntry, LexicalPartEntry
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import open_parts, put_object
from dpr.formats.records import ObjectRef, Result
from dpr.formats.segment import FLOAT16_BYTES, iter_groups
from dpr.lexical.analysis import Analyzer
from dpr.lexical.fusion import fixed_settings
from dpr.lexical.postings import MEMORY_TIMES, invert, write_postings
from dpr.recipe import LexicalConfig
from dpr.run import Run
from dpr.store import open_store
from dpr.store.temporary import temporary_folder


@dataclass(frozen=True)
class InvertUnit:
    """One segment whose words are to be indexed."""

    record: str
    stem: str
    """What the name of its object begins with."""
    segment: ObjectRef
    rows: int
    read_bytes: int

    @property
    def need(self) -> Need:
        """What inverting takes: a part is about as large as the compressed texts."""
        return Need(self.read_bytes, self.read_bytes, memory_bytes=MEMORY_TIMES * self.read_bytes)


class LexicalPartResult(Result):
    """A lexical part; `rows` are all rows of its segment, dead ones included."""

    part: ObjectRef


def index_words(run: Run, segments: Sequence[SegmentEntry]) -> LexicalEntry | None:
    """Invert the segments that have no lexical part yet; returns the index of words, None if the recipe wants none."""
    config = run.recipe.lexical
    if not config.build:
        return None
    units = plan_invert(segments, Analyzer(config).analysis_id, run.spec.dim)
    step = Step("invert", partial(InvertSegment, run.store.url, config))
    work = Work.of(recorded(run.store.url, LexicalPartResult, step))
    results = run.results(Stage("invert", units, LexicalPartResult, work))
    pairs = zip(segments, results, strict=True)
    parts = [LexicalPartEntry(segment=entry.number, object=result.part) for entry, result in pairs]
    towers = run.spec.passage, run.spec.question
    hybrid = fixed_settings(config, unit_length=all(tower.normalize for tower in towers))
    mode = "dense" if config.mode == "auto" else config.mode
    return LexicalEntry(config=config, parts=parts, hybrid=hybrid, mode=mode)


def plan_invert(segments: Sequence[SegmentEntry], analysis_id: str, dim: int) -> list[InvertUnit]:
    """Return one unit a segment."""
    stems = [layout.lexical_part(analysis_id, entry.object.sha256) for entry in segments]
    return [
        InvertUnit(
            layout.record(stem),
            stem,
            entry.object,
            entry.rows,
            read_bytes=max(0, entry.object.size_bytes - entry.rows * dim * FLOAT16_BYTES),
        )
        for stem, entry in zip(stems, segments, strict=True)
    ]


class InvertSegment:
    """Indexes the words of one segment: of titles and texts, joined by a space."""

    def __init__(self, store_url: str, config: LexicalConfig) -> None:
        self._store, self._analyzer = open_store(store_url), Analyzer(config)

    def __call__(self, unit: InvertUnit) -> LexicalPartResult:
        check_room(self._store, "invert", unit.record, unit.need)
        postings = invert(self._texts(unit.segment), self._analyzer)
        with temporary_folder() as folder:
            path = Path(folder, "words.safetensors")
            write_postings(postings, path)
            return LexicalPartResult(rows=len(postings.lengths), part=put_object(self._store, unit.stem, path))

    def _texts(self, segment: ObjectRef) -> Iterator[str]:
        for group in iter_groups(open_parts(self._store, segment), ["title", "text"]):
            titles, texts = group["title"].to_pylist(), group["text"].to_pylist()
            yield from (f"{title} {text}" for title, text in zip(titles, texts, strict=True))
