"""The diff stage compares the keys of corpus and segments: what to embed, what to copy, what is dead.

Everything is compared as 128-bit hashes in arrays (32 bytes a corpus passage, 32 a stored row); texts are not read.

Shapes: N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pyarrow as pa
from pydantic import Field

from dpr.corpus.hashes import first_of_each, places
from dpr.corpus.rows import Slice
from dpr.engine.room import check_room
from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.evaluate.questions import describe_unknown, unknown_ids
from dpr.formats import layout
from dpr.formats.changes import count_reasons, put_changes
from dpr.formats.deletions import DeletionSet
from dpr.formats.manifest import SegmentEntry
from dpr.formats.records import ObjectRef, Result
from dpr.recipe import CorpusConfig
from dpr.run import Run
from dpr.stages.held_rows import (
    CorpusRows,
    HeldRows,
    KeptSegments,
    Mask,
    diff_need,
    first_with_id,
    keep_segments,
    read_corpus_rows,
    read_held_rows,
)
from dpr.stages.new_rows import read_new_rows, text_source
from dpr.stages.planned_segments import PlannedSegment, SegmentCut, plan_segments
from dpr.stages.quarantine_limits import (
    check_quarantine,
    check_size,
    collect_quarantine,
    max_unusable,
)
from dpr.stages.repeated_ids import put_duplicates, read_repeated, too_many_duplicates
from dpr.stages.scan import ScanResult
from dpr.stages.segment_rows import segment_rows
from dpr.stages.why_new import Before, before_of
from dpr.store import Store, open_store


class Changes(Result):
    """The changes that a run has to make; `rows` are the passages of the corpus."""

    new: int
    """Passages that no live row holds yet."""
    borrowed: int
    """New passages whose text is stored already: they take its vector."""
    duplicates: int
    dead: int
    """Passages of the base that are gone."""
    restored: int
    """Stored rows that were dead in the base and live again."""
    kept: list[SegmentEntry]
    """Segments that stay, with their dead rows as of now."""
    sources: list[SegmentEntry]
    """All existing segments, by the numbers that the changes file names as sources."""
    planned: list[PlannedSegment]
    next_segment_number: int
    deletions: ObjectRef | None
    changes: ObjectRef | None
    """The changes file; None where no segment is to be made."""
    duplicate_rows: ObjectRef | None
    unknown_answers: list[str] = Field(default_factory=list)
    """Answers of the gate's questions that are neither passages nor documents of the corpus: ascending, each once."""
    why_embedded: dict[str, int] = Field(default_factory=dict)
    """Rows to embed by the label of their `dpr.formats.changes.Reason`."""
    why_copied: dict[str, int] = Field(default_factory=dict)
    """Rows whose vectors are copied, likewise."""

    @property
    def embed_rows(self) -> int:
        return sum(planned.rows for planned in self.planned if planned.kind == "embed")


@dataclass(frozen=True)
class DiffUnit:
    """The one unit of the stage: everything that is compared."""

    record: str
    run_id: str
    rows: int
    read_bytes: int
    encoder_id: str
    corpus: CorpusConfig
    slices: tuple[Slice, ...]
    scans: tuple[ScanResult, ...]
    base: tuple[SegmentEntry, ...]
    retired: tuple[SegmentEntry, ...]
    base_deletions: ObjectRef | None
    next_segment_number: int
    segment_rows: int
    """Rows of a segment, at most; a segment with less than a quarter of them is small."""
    compact_below: float
    max_duplicates: int
    """More passages with a repeated id than this stop the run before any of them is read again."""
    answers: tuple[str, ...] = ()
    """Ids of passages, or of documents, that answer the gate's questions."""
    before: Before = field(default_factory=Before)
    converts: bool = False
    """Whether the retired segments have another form, so that their live rows are copied."""


def diff(run: Run, scans: Sequence[ScanResult], *, allow_shrink: bool) -> Changes:
    """Compare the scanned corpus with the existing segments.

    Raises CorpusError for a corpus that is empty, holds too many unusable rows, or has shrunk too much.
    """
    limits = run.recipe.limits
    usable, unusable = sum(s.rows for s in scans), sum(s.unusable_rows for s in scans)
    allowed = max_unusable(usable + unusable, limits)
    if unusable > allowed or (unusable and not usable):  # otherwise they are collected once, with later ones
        found = collect_quarantine(run.store, run.run_id, [scanned.unusable for scanned in scans])
        check_quarantine(run.store, found, usable, limits)
    work = Work.of(recorded(run.store.url, Changes, Step("diff", partial(FindChanges, run.store.url))))
    unit = replace(plan_diff(run, run.slices, scans, allowed - unusable), before=before_of(run))
    changes = run.result(Stage("diff", [unit], Changes, work))
    for note in run.plan.questions.notes if run.plan.questions else ():
        run.progress.message("gate", note)
    if changes.unknown_answers:
        run.progress.message("gate", describe_unknown(changes.unknown_answers, len(unit.answers)))
    # if one counts windows and the other does not, the sizes cannot be compared
    comparable = run.live is not None and run.live.body.windows == run.recipe.corpus.splits_long
    before = run.live.body.passages if run.live and comparable else 0
    check_size(changes.rows, before, limits, allow_shrink=allow_shrink)
    return changes


def plan_diff(run: Run, slices: Sequence[Slice], scans: Sequence[ScanResult], max_duplicates: int) -> DiffUnit:
    """Return the unit that compares some slices, scanned, with the base of a run."""
    return DiffUnit(
        record=layout.record(layout.changes(run.run_id)),
        run_id=run.run_id,
        rows=sum(scanned.rows for scanned in scans),
        read_bytes=sum(scanned.keys.size_bytes for scanned in scans),
        encoder_id=run.spec.encoder_id,
        corpus=run.recipe.corpus,
        slices=tuple(slices),
        scans=tuple(scans),
        base=tuple(run.base_segments),
        retired=tuple(run.retired),
        base_deletions=run.base_deletions,
        next_segment_number=run.base.body.next_segment_number if run.base else 0,
        segment_rows=segment_rows(run, slices, scans),
        compact_below=run.recipe.resources.compact_below,
        max_duplicates=max_duplicates,
        answers=run.plan.questions.passage_ids if run.plan.questions else (),
        converts=run.converts,
    )


class FindChanges:
    """Compares the corpus with the existing segments."""

    def __init__(self, store_url: str) -> None:
        self._store = open_store(store_url)

    def __call__(self, unit: DiffUnit) -> Changes:
        check_room(self._store, "diff", unit.record, diff_need(unit.rows, [*unit.base, *unit.retired]))
        return find_changes(self._store, unit)


def find_changes(store: Store, unit: DiffUnit) -> Changes:
    """Compare; store the deletion set, the changes file and the rows with a repeated id.

    The first passage with an id is kept, later ones are quarantined. Every stored row whose key is in the corpus lives,
    even if it was dead before, so a reverted edit costs nothing. Raises CorpusError if too many ids are repeated.
    """
    corpus = read_corpus_rows(store, unit.scans)
    first, repeated = first_with_id(corpus, unit.slices)
    duplicates = int(repeated.sum())
    if duplicates > unit.max_duplicates:
        raise too_many_duplicates(corpus, unit.slices, repeated, int(first.sum()) + duplicates)
    held = read_held_rows(store, unit.base, unit.retired, unit.base_deletions)
    alive, is_new = _compare(corpus, first, held)
    kept = KeptSegments([], {}, np.ones(len(alive), np.bool_), unit.next_segment_number)
    if not unit.converts:
        kept = keep_segments(
            unit.base, unit.retired, alive, unit.segment_rows, unit.compact_below, unit.next_segment_number
        )
    sources = [text_source(unit.slices, unit.scans, number) for number in range(len(unit.slices))]
    new = read_new_rows(store, unit.corpus, sources, corpus, is_new, unit.before)
    tables, next_number = plan_segments(
        SegmentCut(unit.encoder_id, unit.segment_rows), new, held, alive & kept.moved, kept.next_segment_number
    )
    later = read_repeated(unit.slices, unit.corpus, corpus, repeated)
    return Changes(
        rows=int(first.sum()),
        new=len(new.key),
        borrowed=len(new.key) - sum(planned.rows for planned, _ in tables if planned.kind == "embed"),
        duplicates=duplicates,
        dead=int((held.lived & ~alive).sum()),
        restored=0 if unit.converts else int((~held.lived & alive).sum()),
        kept=kept.entries,
        sources=[*unit.base, *unit.retired],
        planned=[planned for planned, _ in tables],
        next_segment_number=next_number,
        deletions=DeletionSet(kept.dead).put(store),
        changes=put_changes(store, unit.run_id, [table for _, table in tables]),
        duplicate_rows=put_duplicates(store, layout.duplicates(unit.run_id), later) if repeated.any() else None,
        unknown_answers=unknown_ids(unit.answers, corpus.id_hash),
        why_embedded=count_reasons(table for planned, table in tables if planned.kind == "embed"),
        why_copied=count_reasons(table for planned, table in tables if planned.kind == "copy"),
    )


def _compare(corpus: CorpusRows, first: Mask, held: HeldRows) -> tuple[Mask, Mask]:
    """Return which of the held rows live, and which of the corpus rows no segment holds. Pure.

    `first`: the corpus rows that count, those of the first passage with their id.
    """
    row_of_held = places(held.key, corpus.key)
    alive = row_of_held >= 0
    alive[alive] = first[row_of_held[alive]]
    is_new = first.copy()
    is_new[row_of_held[alive]] = False
    if (alive & ~held.lived).any():  # such a row may live in another segment already; rows that lived are distinct
        alive[alive] = first_of_each(held.key.filter(pa.array(alive)))
    return alive, is_new
