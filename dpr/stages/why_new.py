"""Why no segment holds a passage of the corpus yet: it is new, or edited, or of another encoder, or was refused before.

The scans of the previous snapshot show it: they hold the id and the key of each of its passages. Only those of slices
that have changed since are read, and only rows that concern the new passages are kept.

Shapes: N rows.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.corpus.hashes import KnownKeys, is_in
from dpr.formats.changes import Reason
from dpr.formats.objects import read_object
from dpr.formats.records import read_record
from dpr.formats.segment import join_hashes
from dpr.run import Run, read_run_plan
from dpr.stages.scan import KEYS_SCHEMA, ScanResult, plan_scan
from dpr.store import PARALLEL_READS, Store

_HASHES = pa.schema([KEYS_SCHEMA.field(name) for name in ("id_hash", "key")])


@dataclass(frozen=True)
class Before:
    """The previous snapshot's view of the corpus."""

    scans: tuple[str, ...] = ()
    """Record names of its scans of slices that have changed since."""
    same_slices: frozenset[int] = frozenset()
    """Numbers of the slices that are as they were."""
    is_other_encoder: bool = False
    """Whether the store has snapshots, and none of this encoder."""


def before_of(run: Run) -> Before:
    """Return the view of a run's base. Without its plan, which garbage collection removes, all rows are new."""
    if run.base is None:
        return Before(is_other_encoder=run.live is not None)
    if run.live is not None and run.live.run_id == run.base.run_id:
        former = run.plan.scanned
    else:
        plan = read_run_plan(run.store, run.base.run_id)
        former = frozenset(plan.scans if plan else ())
    records = [unit.record for unit in plan_scan(run)]
    same = frozenset(number for number, record in enumerate(records) if record in former)
    return Before(tuple(sorted(former - set(records))), same)


def reasons_of(
    store: Store,
    before: Before,
    slices_N: npt.NDArray[np.int32],
    id_hashes: pa.FixedSizeBinaryArray,
    keys: pa.FixedSizeBinaryArray,
) -> npt.NDArray[np.int8]:
    """Return the reason (N,) of each new row, given its slice, the hash of its id, and its key."""
    if before.is_other_encoder:
        return np.full(len(keys), Reason.OTHER_ENCODER, np.int8)
    reasons_N = np.full(len(keys), Reason.NEW, np.int8)
    if len(keys) and before.scans:
        had_id, had_key = _found_before(store, before.scans, id_hashes, keys)
        reasons_N[had_id] = Reason.EDITED
        reasons_N[had_key] = Reason.AGAIN
    reasons_N[np.isin(slices_N, list(before.same_slices))] = Reason.AGAIN
    return reasons_N


def _found_before(
    store: Store, scans: Sequence[str], id_hashes: pa.FixedSizeBinaryArray, keys: pa.FixedSizeBinaryArray
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which of the rows had their id, and which also their key, in some scans."""
    ids = KnownKeys(id_hashes)

    def look(record: str) -> pa.Table:
        """Return the hashes of ids and keys of the rows with one of the ids."""
        scanned = read_record(store, record, ScanResult)
        if scanned is None:  # collected since
            return _HASHES.empty_table()
        table = pq.read_table(io.BytesIO(read_object(store, scanned.keys)), columns=_HASHES.names)
        return table.filter(pa.array(ids.contains(join_hashes(table["id_hash"].chunks))))

    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        found = pa.concat_tables([_HASHES.empty_table(), *pool.map(look, scans)])
    return is_in(id_hashes, join_hashes(found["id_hash"].chunks)), is_in(keys, join_hashes(found["key"].chunks))
