"""Vectors that were read by range from an object store: kept up to a bound; the least recently used are dropped.

Shapes: N rows, D dimensions.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dpr.formats.stored_vectors import Vectors
from dpr.index.truth import Ids

KEPT_BYTES = 64 * 2**20
ROW_BYTES = 200
"""Bytes that a kept vector takes besides its numbers."""
Vector = npt.NDArray[np.float16]


class VectorCache:
    """Vectors by index id; any thread may use it."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, Vector] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, ids_N: Ids, dim: int, read: Callable[[Ids], Vectors]) -> Vectors:
        """Return the vectors (N, D) of ids (N,), in their order; `read` reads those that are not here."""
        ids = ids_N.tolist()
        with self._lock:
            known = {id_: self._kept[id_] for id_ in ids if id_ in self._kept}
            for id_ in known:
                self._kept.move_to_end(id_)
        wanted = sorted(set(ids) - known.keys())
        if wanted:
            read_ND = read(np.array(wanted, np.int64))
            known |= dict(zip(wanted, read_ND, strict=True))
            self._keep({id_: vector_D.copy() for id_, vector_D in zip(wanted, read_ND, strict=True)}, read_ND.nbytes)
        return np.array([known[id_] for id_ in ids], np.float16).reshape(len(ids), dim)

    def _keep(self, vectors: dict[int, Vector], size_bytes: int) -> None:
        most = KEPT_BYTES // (ROW_BYTES + size_bytes // len(vectors))
        with self._lock:
            self._kept.update(vectors)
            while len(self._kept) > most:
                self._kept.popitem(last=False)
