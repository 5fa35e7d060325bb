"""Between embedding and indexing: the segments of the new state, and the rows that no segment holds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dpr.formats.manifest import SegmentEntry
from dpr.formats.records import ObjectRef
from dpr.run import Run
from dpr.stages.diff import Changes
from dpr.stages.quarantine_limits import check_quarantine, collect_quarantine
from dpr.stages.scan import ScanResult
from dpr.stages.write_segment import MadeSegment


@dataclass(frozen=True)
class Settled:
    """The segments of the new state, and their words as far as they are new."""

    segments: tuple[SegmentEntry, ...]
    """Ascending by number."""
    reasons: Counter[str]
    """Unusable rows of the whole run by reason."""
    words: tuple[ObjectRef, ...]
    """The lexical parts of the segments that were made."""


def settle(run: Run, scans: Sequence[ScanResult], changes: Changes, made: Sequence[MadeSegment]) -> Settled:
    """Gather the segments that stay and those that were made, and collect the quarantine of the whole run.

    Raises IntegrityError if rows were lost, CorpusError or EncoderError if more rows are unusable than the
    recipe allows, or all.
    """
    for segment in made:
        segment.check()
    files = [scanned.unusable for scanned in scans]
    files += [changes.duplicate_rows, *(segment.result.refused for segment in made)]
    found = collect_quarantine(run.store, run.run_id, files)
    entries = [*changes.kept, *(entry for segment in made for entry in segment.entries())]
    check_quarantine(run.store, found, sum(entry.live_rows for entry in entries), run.recipe.limits)
    words = tuple(segment.result.words for segment in made if segment.result.words)
    return Settled(tuple(sorted(entries, key=lambda entry: entry.number)), found.reasons.counts, words)
