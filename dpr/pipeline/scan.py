"""The scan stage: every slice of the corpus once, then one comparison of all its keys with the segments there are."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dpr import layout
from dpr.corpus.diff import Changes, DiffInputs, find_changes
from dpr.corpus.quarantine import SCHEMA
from dpr.corpus.rows import Slice
from dpr.corpus.scan import KnownKeys, scan_slice
from dpr.errors import CorpusError
from dpr.pipeline.execute import Unit
from dpr.recipe import CorpusConfig, Limits
from dpr.records import Record, put_object
from dpr.segment import HASH, read_hashes
from dpr.store import Store, open_store
from dpr.store.reader import open_object


def load_known_keys(store_url: str, segment_names: Sequence[str]) -> KnownKeys:
    """The keys of all rows, dead or live, of the named segments."""
    store = open_store(store_url)
    keys = [read_hashes(open_object(store, name), ("key",))["key"] for name in segment_names]
    return KnownKeys(pa.concat_arrays([pa.array([], HASH), *keys]))


class ScanSlice:
    """Scans one slice."""

    def __init__(self, store_url: str, run_id: str, corpus: CorpusConfig, known: Callable[[], KnownKeys]) -> None:
        self._store, self._run_id, self._corpus, self._known = open_store(store_url), run_id, corpus, known()

    def __call__(self, unit: Unit) -> Unit:
        slice_ = Slice.from_json(json.loads(unit["slice"]))
        record = scan_slice(self._store, self._run_id, unit["number"], slice_, self._corpus, self._known)
        return {"record": unit["record"], "done": record.to_bytes()}


class FindChanges:
    """Compares the scanned corpus with the base."""

    def __init__(self, store_url: str, inputs: DiffInputs) -> None:
        self._store, self._inputs = open_store(store_url), inputs

    def __call__(self, unit: Unit) -> Unit:
        names = [layout.scan_keys(self._inputs.run_id, number) for number in range(len(self._inputs.slices))]
        scans = [Record.model_validate_json(self._store.get(layout.record(name))) for name in names]
        record = find_changes(self._store, self._inputs, scans)
        return {"record": unit["record"], "done": record.to_bytes()}


def collect_quarantine(store: Store, run_id: str, refused: Sequence[str] = ()) -> Counter[str]:
    """Put all rows that a run cannot use into one file, also those in the objects `refused`, if there are any; returns
    how many have which reason."""
    names = [info.name for info in store.list(f"{layout.run(run_id)}quarantine/")] + list(refused)
    reasons: Counter[str] = Counter()
    if not names:
        return reasons
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "quarantine.parquet")
        with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
            for name in names:
                table = pq.read_table(open_object(store, name))
                writer.write_table(table)
                reasons.update(reason.partition(":")[0] for reason in table["reason"].to_pylist())
        put_object(store, layout.quarantine(run_id), path)
    return reasons


def check_quarantine(store: Store, run_id: str, quarantined: int, passages: int, limits: Limits) -> None:
    """Raise CorpusError if more rows are unusable than the recipe allows; the rows are stored either way."""
    share = quarantined / max(quarantined + passages, 1)
    if quarantined > limits.max_quarantine_rows and share > limits.max_quarantine_share:
        raise CorpusError(
            f"{quarantined} of {quarantined + passages} corpus rows ({share:.1%}) cannot be used, the recipe allows "
            f"{limits.max_quarantine_rows} rows or {limits.max_quarantine_share:.1%} (limits); nothing was "
            f"published, and the rows with their reasons are in {layout.quarantine(run_id)} of {store.url}"
        )


def check_size(changes: Changes, before: int, limits: Limits, *, allow_shrink: bool) -> None:
    """Raise CorpusError for an empty corpus, or one that lost too large a share of the passages it had `before`."""
    if changes.passages == 0:
        raise CorpusError("the corpus holds no usable passage, so there is nothing to index; look at corpus.path")
    lost = 1 - changes.passages / before if before else 0.0
    if lost > limits.max_shrink and not allow_shrink:
        raise CorpusError(
            f"the corpus shrank from {before} to {changes.passages} passages ({lost:.0%} fewer, limits.max_shrink is "
            f"{limits.max_shrink:.0%}); nothing was published: look at corpus.path, or pass --allow-shrink"
        )
