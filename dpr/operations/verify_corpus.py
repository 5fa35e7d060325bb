"""Verifying trust: that corpus files which runs no longer read still have the content that was scanned.

A run does not read a file whose size and time (or ETag) are those of an earlier scan. The rule fails if a program
restores a file's time after changing it, or if the clock was set back. Only reading the file shows that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dpr.corpus.reading import read_slice
from dpr.corpus.rows import Slice, Windows
from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.fingerprint import passage_key
from dpr.formats import layout
from dpr.formats.manifest import Snapshot
from dpr.formats.records import read_record
from dpr.recipe import CorpusConfig, Recipe
from dpr.run import read_run_plan
from dpr.stages.passages import row_key_texts
from dpr.stages.scan import ScanResult, read_keys
from dpr.store import Store


@dataclass(frozen=True)
class ChangedFile:
    """A corpus file that has changed since it was scanned."""

    path: str
    reason: str


def verify_corpus(store: Store, live: Snapshot, recipe: Recipe) -> tuple[int, list[ChangedFile]]:
    """Read all files that the next run would trust; return how many slices were compared, and what differs.

    `live` is the store's live snapshot, whose run has recorded the format of each file. Slices that have not been
    scanned yet are left out: the next run reads them. Memory holds the keys of one slice. Raises CorpusError if the
    corpus cannot be listed.
    """
    before, compared = read_run_plan(store, live.run_id), 0
    changed: dict[str, ChangedFile] = {}
    corpus, windows = recipe.corpus, Windows(encoder=recipe.encoder, encoder_id=live.body.encoder_id)
    for slice_ in plan_slices(corpus, before.kinds if before else {}, windows).slices:
        record = layout.record(layout.scan(live.body.encoder_id, slice_.slice_id(corpus)))
        scanned = read_record(store, record, ScanResult)
        if scanned is None:
            continue
        compared += 1
        if slice_.path not in changed and (reason := _difference(store, scanned, slice_, corpus)):
            changed[slice_.path] = ChangedFile(slice_.path, reason)
    return compared, list(changed.values())


def _difference(store: Store, scanned: ScanResult, slice_: Slice, corpus: CorpusConfig) -> str:
    """Return what is wrong with a slice; an empty text if it still gives the same passages at the same positions."""
    table = read_keys(store, scanned)
    stored = dict(zip(table["position"].to_pylist(), table["key"].to_pylist(), strict=True))
    try:
        found = dict(_keys(slice_, corpus))
    except CorpusError as error:
        problem = f"it can no longer be read ({error})"
    else:
        positions = stored.keys() | found.keys()
        differ = sum(found.get(position) != stored.get(position) for position in positions)
        if not differ:
            return ""
        problem = f"{differ:,} of its {len(positions):,} passages differ"
    return (
        f"it was changed after it was scanned, though its size and time (or ETag) are the same: {problem}; write it "
        "again, so that the next run reads it, or set corpus.rescan to always"
    )


def _keys(slice_: Slice, corpus: CorpusConfig) -> Iterator[tuple[int, bytes]]:
    for row in read_slice(slice_, corpus):
        if row.passage is not None:
            yield row.position, passage_key(*row.passage, row_key_texts(corpus.columns.extra, row))
