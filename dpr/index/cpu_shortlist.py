"""Making shortlists (`dpr.index.shortlist`) on CPU threads.

Shapes: Q questions, q questions of one slice, N rows of a block, n rows of a tile, D dimensions, W groups of g
rows, G pairs of a question and a group, P pairs of a question and a row.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dpr.index.hardware import serial_blas
from dpr.index.products import Double, Half, Rows, Single, row_products, slices
from dpr.index.shortlist import Floors, Pairs, Questions, Use, product_error

BLOCK_BYTES = 100 * 2**20
"""A block of vectors in float32, at most: 33,792 rows of 768 dimensions."""
SMALL_BLOCK_BYTES = 12 * 2**20
"""The same for `SLICE_QUESTIONS` or fewer, for which it is as fast. A service compares one question at a time."""
TILE_QUESTIONS, TILE_ROWS = 512, 1_024
"""What one thread multiplies at a time. Memory holds the scores of TILE_QUESTIONS questions with a block."""
SLICE_QUESTIONS = 32
"""Questions whose shortlists one thread makes at a time."""
COPY_ROWS = 1_024
GROUP_ROWS = 16


class CpuShortlists:
    """Makes shortlists on CPU threads."""

    slice_questions = SLICE_QUESTIONS

    def __init__(self, questions: Questions, k: int, pool: ThreadPoolExecutor) -> None:
        self._questions, self._k, self._pool = questions, k, pool
        dim = questions.exact_QD.shape[1]
        block_bytes = BLOCK_BYTES if len(questions.unit_QD) > self.slice_questions else SMALL_BLOCK_BYTES
        self.max_rows = TILE_ROWS * max(1, block_bytes // (4 * dim * TILE_ROWS))
        self._block_ND = np.empty((self.max_rows, dim), np.float32)
        self._scores = np.empty(min(TILE_QUESTIONS, len(questions.unit_QD)) * self.max_rows, np.float32)

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

            def shorten(some: slice, first: int = several.start, scores_QN: Single = scores_QN) -> None:
                questions = slice(first + some.start, first + some.stop)
                use(questions, self._pairs(questions, scores_QN[some, :], rows, longest, floors(questions)))

            list(self._pool.map(shorten, slices(len(scores_QN), self.slice_questions)))

    def vector(self, row: int) -> Single:
        """Return one vector (D,) of the block."""
        vector_D: Single = self._block_ND[row]
        return vector_D

    def _largest_square(self, tile: slice) -> float:
        """Return a bound of the squared lengths of some vectors, rounding errors included."""
        rows_nD = self._block_ND[tile]
        return 1.01 * float(np.einsum("nd,nd->n", rows_nD, rows_nD).max())

    def _products(self, several: slice, rows: int, tiles: list[slice]) -> Single:
        """Return approximate scaled scores of questions with rows, and -inf up to a full group."""
        unit_QD = self._questions.unit_QD[several]
        width = -(-rows // GROUP_ROWS) * GROUP_ROWS
        # side by side, so that a block of few rows takes little memory: else each question takes pages of its own
        scores_QN = self._scores[: len(unit_QD) * width].reshape(len(unit_QD), width)
        scores_QN[:, rows:] = -np.inf
        with serial_blas():
            list(self._pool.map(lambda n: np.matmul(unit_QD, self._block_ND[n].T, out=scores_QN[:, n]), tiles))
        return scores_QN

    def _pairs(self, some: slice, scores_qN: Single, rows: int, longest: float, floors_q: Single) -> Pairs:
        """Return the shortlists of some questions."""
        # group w has the rows w, w + W, w + 2W, ...: so the largest of every group is found in long runs of memory
        groups = _count_groups(scores_qN.shape[1], self._k)
        largest_qW = scores_qN.reshape(len(scores_qN), -1, groups).max(axis=1)
        # k groups reach this score, hence k vectors do
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
        filled_qC = np.arange(counts_q.max(initial=0)) < counts_q[:, None]
        rows_qC = np.full(filled_qC.shape, self.max_rows)
        rows_qC[filled_qC] = rows_P
        rows_qC.sort(axis=1)
        rows_qC[~filled_qC] = -1
        sums_qC = row_products(self._block_ND, rows_qC, self._questions.exact_QD[some])
        return rows_qC[filled_qC], sums_qC[filled_qC]


def _count_groups(rows: int, k: int) -> int:
    """Return the number of groups into which rows are divided: at least four times k, or one for each row."""
    group_rows = GROUP_ROWS
    while group_rows > 1 and rows // group_rows < 4 * k:
        group_rows //= 2
    return rows // group_rows
