"""Making shortlists (`dpr.index.shortlist`) in PyTorch, for a GPU; tests run it on a CPU.

Approximate scores are float32 products, never TF32 or bf16. Sums are float64, of the few pairs that need them, so that
GPUs that are slow in float64 are quick here, too.

Shapes: Q questions, q questions of one slice, N rows of a block, n rows of a call, D dimensions, P pairs.
"""

import numpy as np
import torch

from dpr.index.products import Half, slices
from dpr.index.shortlist import Floors, Pairs, Questions, Use, product_error
from dpr.index.torch_kmeans import exact_products

BLOCK_BYTES = 100 * 2**20
"""A block of vectors in float16, at most: 68,266 rows of 768 dimensions."""
SLICE_QUESTIONS = 1_024
"""Questions of one slice. Memory holds their scores with a block."""
SUM_BYTES = 2**28
"""Vectors of pairs that are held in float64 at a time."""


class TorchShortlists:
    """Makes shortlists on a PyTorch device."""

    slice_questions = SLICE_QUESTIONS

    def __init__(self, questions: Questions, k: int, device: str) -> None:
        self._questions, self._k = questions, k
        self._unit_QD = torch.from_numpy(questions.unit_QD).to(device)
        self._exact_QD = torch.from_numpy(questions.exact_QD).to(device)
        dim = self._unit_QD.shape[1]
        self.max_rows = max(1, BLOCK_BYTES // (2 * dim))
        self._block_ND = torch.empty((self.max_rows, dim), dtype=torch.float16, device=device)

    def fill(self, first: int, vectors_nD: Half) -> None:
        """Put vectors into the block, from row `first` on."""
        self._block_ND[first : first + len(vectors_nD)] = torch.from_numpy(
            np.require(vectors_nD, requirements=["C", "W", "A"])
        ).to(self._block_ND.device)

    def find(self, rows: int, floors: Floors, use: Use) -> None:
        """Make the shortlists of all questions with the first `rows` of the block, slice by slice."""
        block_ND = self._block_ND[:rows].float()
        longest = 1.01 * float(block_ND.square().sum(dim=1).max().sqrt())
        error = product_error(block_ND.shape[1], longest)
        for some in slices(len(self._unit_QD), self.slice_questions):
            with exact_products():
                scores_qN = self._unit_QD[some] @ block_ND.T
            kth_q = None
            if rows >= self._k:
                kth_q = torch.topk(scores_qN, self._k, sorted=False).values.amin(dim=1).cpu().numpy()
            thresholds_q = torch.from_numpy(self._questions.thresholds(some, floors(some), kth_q, error))
            reach_qN = scores_qN >= thresholds_q.to(scores_qN.device)[:, None]
            question_P, row_P = reach_qN.nonzero(as_tuple=True)
            sums_P = self._sums(self._exact_QD[some], question_P, row_P)
            counts_q = torch.bincount(question_P, minlength=len(scores_qN)).cpu().numpy()
            use(some, Pairs(counts_q, row_P.cpu().numpy(), sums_P.cpu().numpy(), longest))

    def vector(self, row: int) -> Half:
        """Return one vector (D,) of the block."""
        vector_D: Half = self._block_ND[row].cpu().numpy()
        return vector_D

    def _sums(self, exact_qD: torch.Tensor, question_P: torch.Tensor, row_P: torch.Tensor) -> torch.Tensor:
        """Return the inner products (P,) of pairs in float64."""
        step = max(1, SUM_BYTES // (8 * exact_qD.shape[1]))
        parts = [
            (self._block_ND[row_P[some]].double() * exact_qD[question_P[some]]).sum(dim=1)
            for some in slices(len(row_P), step)
        ]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)
