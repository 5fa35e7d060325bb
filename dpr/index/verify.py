"""The verification report of a serving index."""

from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import IntegrityError
from dpr.index.kinds import inverted


@dataclass(frozen=True)
class IndexReport:
    """What a serving index holds."""

    ntotal: int
    lists: int
    """Inverted lists; 0 for a kind without."""
    empty_lists: int
    largest_list: int
    imbalance: float
    """Vectors compared per visited list, over what equal lists would need; 1.0 is even."""


def verify(index: faiss.Index, expected_live_rows: int) -> IndexReport:
    """Check that an index holds each live row once, and report the shape of its lists.

    Raises IntegrityError, with both numbers, if the count is another or ids repeat.
    """
    sizes = list_sizes(index)
    ids = stored_ids(index)
    if not index.ntotal == len(ids) == expected_live_rows:
        raise IntegrityError(
            f"the index counts {index.ntotal} vectors and holds {len(ids)} ids for {expected_live_rows} live rows; "
            "merge it again"
        )
    distinct = len(np.unique(ids))
    if distinct != len(ids):
        raise IntegrityError(f"the index holds {len(ids)} ids of which {distinct} are distinct; merge it again")
    ivf = inverted(index)
    return IndexReport(
        ntotal=int(index.ntotal),
        lists=len(sizes),
        empty_lists=int((sizes == 0).sum()),
        largest_list=int(sizes.max(initial=0)),
        imbalance=float(ivf.invlists.imbalance_factor()) if ivf is not None and len(ids) else 1.0,
    )


def list_sizes(index: faiss.Index) -> npt.NDArray[np.int64]:
    """Vectors in each inverted list; empty for a kind without lists."""
    ivf = inverted(index)
    if ivf is None:
        return np.empty(0, np.int64)
    return np.array([ivf.invlists.list_size(number) for number in range(ivf.nlist)], np.int64)


def stored_ids(index: faiss.Index) -> npt.NDArray[np.int64]:
    """All ids of a serving index."""
    if isinstance(index, faiss.IndexIDMap):
        ids: npt.NDArray[np.int64] = faiss.vector_to_array(index.id_map)
        return ids
    ivf = inverted(index)
    if ivf is None:
        return np.arange(index.ntotal)
    sizes = list_sizes(index)
    filled = np.flatnonzero(sizes).tolist()
    pieces = [faiss.rev_swig_ptr(ivf.invlists.get_ids(number), int(sizes[number])).copy() for number in filled]
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)
