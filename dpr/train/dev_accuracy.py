"""Measure during training how well the dev questions are answered, by exact search among the dev set's passages.

The paper validates by the average rank of the right passage, which costs no index (section 3.2 of its code).

Shapes: Q questions, P passages, B questions of a batch, D dimensions.
"""

import math

import torch
from torch import Tensor

from dpr.train.all_vectors import AllVectors
from dpr.train.checkpoints import Measured
from dpr.train.gradient_cache import Tower
from dpr.train.training_set import TrainingSet
from dpr.train.workers import Workers

QUESTIONS_AT_ONCE = 256


class DevMeter:
    """Measures a dev set; all workers share the work and get the same result."""

    def __init__(self, dev: TrainingSet, workers: Workers, device: torch.device, chunk_tokens: int) -> None:
        self._dev, self._vectors = dev, AllVectors(workers, device, chunk_tokens)

    def measure(self, question: Tower, passage: Tower, step: int) -> Measured:
        """Return accuracy and average rank, which is NaN if any vector is; dropout must be off."""
        with torch.inference_mode():
            question_QD = self._vectors.of(question, self._dev.question_tokens)
            passage_PD = self._vectors.of(passage, self._dev.passage_tokens)
            firsts = range(0, len(question_QD), QUESTIONS_AT_ONCE)
            ranks_Q = torch.cat([self._ranks(question_QD, passage_PD, first) for first in firsts]).cpu()
            is_finite = bool(question_QD.isfinite().all() and passage_PD.isfinite().all())
        rank = float(ranks_Q.double().mean()) if is_finite else math.nan
        return Measured(step=step, accuracy=float((ranks_Q == 1).double().mean()), average_rank=rank)

    def _ranks(self, question_QD: Tensor, passage_PD: Tensor, first: int) -> Tensor:
        """Return the rank of the first right passage of some questions; others with the same score come before it."""
        scores_BP = question_QD[first : first + QUESTIONS_AT_ONCE] @ passage_PD.t()
        right_BP = torch.zeros(scores_BP.shape, dtype=torch.bool)
        for row in range(len(scores_BP)):
            right_BP[row, torch.from_numpy(self._dev.positives.of(first + row))] = True
        right_BP = right_BP.to(scores_BP.device)
        best_B1 = scores_BP.masked_fill(~right_BP, float("-inf")).amax(1, keepdim=True)
        return (~(scores_BP < best_B1) & ~right_BP).sum(1) + 1
