"""Making shortlists (`dpr.index.shortlist`) on CPU threads.

Shapes: Q questions, q questions of one slice, N rows of a block, n rows of a tile, D dimensions, W groups of g
rows, G pairs of a question and a group, P pairs of a question and a row.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dpr.index.products import Double, Half, Scores
from dpr.index.shortlist import Floors, Pairs, Questions, Rows, Use, product_error, slices

BLOCK_BYTES = 100 * 2**20
"""A block of vectors in float32, about: 32,768 rows of 768 dimensions."""
TILE_QUESTIONS, TILE_ROWS = 512, 4_096
"""What one thread multiplies at a time. The scores of so many questions with a block are held."""
SLICE_QUESTIONS = 32
"""Questions whose shortlists one thread makes at a time."""
COPY_ROWS = 1_024
SUM_ROWS = 4_096
"""Rows of one question that are held in float64 at a time."""
GROUP_ROWS = 16


class CpuShortlists:
    """Makes shortlists on CPU threads."""

    slice_questions = SLICE_QUESTIONS

    def __init__(self, questions: Questions, k: int, pool: ThreadPoolExecutor) -> None:
        self._questions, self._k, self._pool = questions, k, pool
        dim = questions.exact_QD.shape[1]
        self.max_rows = TILE_ROWS * max(1, BLOCK_BYTES // (4 * dim * TILE_ROWS))
        self._block_ND = np.empty((self.max_rows, dim), np.float32)

    def fill(self, first: int, vectors_nD: Half) -> None:
        """Put vectors into the block, from row `first` on."""
        block_nD = self._block_ND[first : first + len(vectors_nD)]
        copies = slices(len(block_nD), COPY_ROWS)
        list(self._pool.map(lambda rows: np.copyto(block_nD[rows], vectors_nD[rows]), copies))

    def find(self, rows: int, floors: Floors, use: Use) -> None:
        """Make the shortlists of all questions with the first `rows` of the block, slice by slice."""
        tiles = list(slices(rows, TILE_ROWS))
        longest = float(np.sqrt(max(self._pool.map(self._largest_square, tiles))))
        for several in slices(len(self._questions.unit_QD), TILE_QUESTIONS):
            scores_QN = self._products(several, rows, tiles)

            def shorten(some: slice, first: int = several.start, scores_QN: Scores = scores_QN) -> None:
                questions = slice(first + some.start, first + some.stop)
                use(questions, self._pairs(questions, scores_QN[some, :], rows, longest, floors(questions)))

            list(self._pool.map(shorten, slices(len(scores_QN), SLICE_QUESTIONS)))

    def vector(self, row: int) -> Scores:
        """Return one vector (D,) of the block."""
        return self._block_ND[row]

    def _largest_square(self, tile: slice) -> float:
        rows_nD = self._block_ND[tile]
        return 1.001 * float(np.einsum("nd,nd->n", rows_nD, rows_nD).max())

    def _products(self, several: slice, rows: int, tiles: list[slice]) -> Scores:
        """Return approximate scaled scores of questions with rows, and -inf up to a full group."""
        unit_QD = self._questions.unit_QD[several]
        scores_QN = np.empty((len(unit_QD), -(-rows // GROUP_ROWS) * GROUP_ROWS), np.float32)
        scores_QN[:, rows:] = -np.inf
        list(self._pool.map(lambda n: np.matmul(unit_QD, self._block_ND[n].T, out=scores_QN[:, n]), tiles))
        return scores_QN

    def _pairs(self, some: slice, scores_qN: Scores, rows: int, longest: float, floors_q: Scores) -> Pairs:
        """Return the shortlists of some questions."""
        # group w has the rows w, w + W, w + 2W, ...: so the largest of every group is found in long runs of memory
        groups = _count_groups(scores_qN.shape[1], self._k)
        largest_qW = scores_qN.reshape(len(scores_qN), -1, groups).max(axis=1)
        # k groups reach this, hence k vectors do
        kth_q = None if rows < self._k else np.partition(largest_qW, groups - self._k, axis=1)[:, groups - self._k]
        error = product_error(self._block_ND.shape[1], longest)
        thresholds_q = self._questions.thresholds(some, floors_q, kth_q, error)
        question_G, group_G = np.nonzero(largest_qW >= thresholds_q[:, None])
        rows_Gg = group_G[:, None] + groups * np.arange(scores_qN.shape[1] // groups)
        reach_Gg = scores_qN[question_G[:, None], rows_Gg] >= thresholds_q[question_G, None]
        reach_Gg &= rows_Gg < rows
        counts_q = np.bincount(question_G, reach_Gg.sum(axis=1), len(scores_qN)).astype(np.int64)
        rows_P, sums_P = self._sums(some, counts_q, rows_Gg[reach_Gg])
        return Pairs(counts_q, rows_P, sums_P, longest)

    def _sums(self, some: slice, counts_q: Rows, rows_P: Rows) -> tuple[Rows, Double]:
        """Return rows (P,), ascending within a shortlist, and their inner products in float64."""
        sums_P = np.empty(len(rows_P))
        first = 0
        for question_D, count in zip(self._questions.exact_QD[some], counts_q.tolist(), strict=True):
            rows_P[first : first + count].sort()
            for part in slices(count, SUM_ROWS):
                pairs = slice(first + part.start, first + part.stop)
                sums_P[pairs] = self._block_ND.take(rows_P[pairs], axis=0).astype(np.float64) @ question_D
            first += count
        return rows_P, sums_P


def _count_groups(rows: int, k: int) -> int:
    """Return into how many groups rows are divided: the fewest that are four times k, or one a row."""
    group_rows = GROUP_ROWS
    while group_rows > 1 and rows // group_rows < 4 * k:
        group_rows //= 2
    return rows // group_rows
