"""Find the passages that should answer questions and are not in a snapshot."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dpr.formats.deletions import read_deletions
from dpr.formats.manifest import SnapshotBody
from dpr.formats.objects import open_parts
from dpr.formats.segment import iter_groups
from dpr.store import Store


def absent_passages(store: Store, body: SnapshotBody, answers: Sequence[str]) -> list[str]:
    """Return the ids that name no live passage, nor a document whose first passage is `ID#0`, in their order.

    The ids of all segments are read, a row group at a time.
    """
    if not answers:
        return []
    wanted = pa.array([*answers, *(f"{answer}#0" for answer in answers)])
    deletions = read_deletions(store, body.deletions)
    there: set[str] = set()
    for entry in body.segments:
        live_N, first = deletions.live_mask(entry), 0
        for table in iter_groups(open_parts(store, entry.object), ["id"]):
            live_n = live_N[first : first + len(table)]
            first += len(table)
            named_n = pc.is_in(table["id"], value_set=wanted).to_numpy()
            there.update(table["id"].filter(pa.array(np.logical_and(named_n, live_n))).to_pylist())
    return [answer for answer in answers if not {answer, f"{answer}#0"} & there]
