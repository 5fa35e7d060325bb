"""Loose rows: rows that no shard holds. Every question is compared with their vectors.

Inverted lists are trained on the corpus of an earlier night. So new passages are missed where they are least like the
rest: a question about a new topic visits the lists near it, and the new passages, which fit no list, lie in others.
Recent rows, and rows that are far from every centroid, are therefore compared one by one, as long as they are few.

How many may be loose follows from their cost: 0.085 ns a dimension, so 33 ns a row of 384. With N rows a question takes
about 130 µs + 0.3 µs * sqrt(N), since the lists and the rows of each grow with sqrt(N) (`dpr.index.choose`). A tenth of
that is the time of 400 + sqrt(N) rows: 507 of 11,529, and 1,400 of a million. Those that are far may be a quarter of
sqrt(N) more, 26 and 250.

Shapes: Q questions, K hits, N rows, D dimensions.
"""

import math

import faiss
import numpy as np

from dpr.formats import MISSING
from dpr.formats.loose import LooseRows
from dpr.index.hardware import Floats, faiss_threads, search_threads
from dpr.index.row_bits import RowBits
from dpr.index.row_ids import ROW_BITS
from dpr.index.truth import Ids, Scores

NEW_ROWS = 400


def max_new(rows: int) -> int:
    """Return how many rows of an index may be loose because they are new. Pure."""
    return NEW_ROWS + math.isqrt(rows)


def max_far(rows: int) -> int:
    """Return how many may be loose because they are far from every centroid. Pure."""
    return math.isqrt(rows) // 4


def loose_ids(rows: LooseRows) -> Ids:
    """Return the index ids (N,) of loose rows."""
    return rows.segments_N.astype(np.int64) << ROW_BITS | rows.rows_N


class LooseIndex:
    """Loose rows in memory, as float16."""

    def __init__(self, ids_N: Ids, vectors_ND: Floats) -> None:
        """Take index ids (N,) and vectors (N, D)."""
        dim = vectors_ND.shape[1]
        self._stored = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        self._index = faiss.IndexIDMap(self._stored)
        self._index.add_with_ids(np.ascontiguousarray(vectors_ND, np.float32), ids_N)

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(self, questions_QD: Scores, k: int, rows: RowBits | None = None) -> tuple[Scores, Ids]:
        """Return the k best, only among `rows` if given: (scores_QK float32, ids_QK int64).

        Where there are fewer, score -inf and id -1 are returned.
        """
        parameters = faiss.SearchParameters(sel=rows.selector) if rows is not None else None
        questions_QD = np.ascontiguousarray(questions_QD, np.float32)
        with faiss_threads(search_threads(len(questions_QD), len(self) * self._stored.code_size)):
            scores_QK, ids_QK = self._index.search(questions_QD, k, params=parameters)
        scores_QK[ids_QK == MISSING] = -np.inf
        return scores_QK, ids_QK
