"""Which passage each row belongs to: the windows of one long text are rows of one passage.

Shapes: N rows, Q questions, C candidates.
"""

from collections.abc import Mapping

import numpy as np

from dpr.fingerprint import id_hash
from dpr.formats import MISSING
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import open_parts
from dpr.formats.segment import iter_groups
from dpr.index.row_ids import ROW_BITS, ROW_MASK
from dpr.index.truth import Ids
from dpr.store import Store


class RowOwners:
    """Hashes of the passage ids of rows, 8 bytes a row; those of a segment are read when they are first needed."""

    def __init__(self, store: Store, entries: Mapping[int, SegmentEntry]) -> None:
        self._store, self._entries = store, entries
        self._owners: dict[int, Ids] = {}

    def of(self, ids_QC: Ids) -> Ids:
        """Return, for index ids of any shape, 63 bits of the hash of the passage id of each; -1 for a missing one."""
        found_QC = np.full(ids_QC.shape, MISSING)
        numbers_QC = ids_QC >> ROW_BITS
        for number in np.unique(numbers_QC[ids_QC != MISSING]).tolist():
            there_QC = numbers_QC == number
            if number not in self._owners:
                self._owners[number] = self._read(number)
            found_QC[there_QC] = self._owners[number][ids_QC[there_QC] & ROW_MASK]
        return found_QC

    def _read(self, number: int) -> Ids:
        file = open_parts(self._store, self._entries[number].object)
        hashes = [id_hash(id_)[:8] for table in iter_groups(file, ["id"]) for id_ in table["id"].to_pylist()]
        owners_N: Ids = np.frombuffer(b"".join(hashes), np.uint64).astype(np.int64) & np.int64(2**63 - 1)
        return owners_N
