"""New hard negatives during a training, found by the towers in their present state (ANCE, Xiong et al. 2021).

All passages of the training data are searched exactly. As in `dpr mine`, passages that are known to answer are left
out, and so are those that hold an answer.

Shapes: E questions, P passages, B questions of a batch, N questions of one worker, D dimensions, K hits.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dpr.encoder.tokens import TowerTokenizer
from dpr.encoder.tower import TowerSpec
from dpr.evaluate.answers import has_answer
from dpr.train.all_vectors import AllVectors
from dpr.train.gradient_cache import Tower
from dpr.train.training_set import KEPT_NEGATIVES, Belonging, Rows, TrainingSet, belonging
from dpr.train.workers import Workers, gather_rows

DEPTH = 100
"""Hits of a question that are considered."""
QUESTIONS_AT_ONCE = 256
_NONE = -1
"""Fills the places of negatives that were not found."""


class NegativeFinder:
    """Finds the hard negatives of all questions; the workers share the work, and all get the same result."""

    def __init__(self, examples: TrainingSet, passage: TowerSpec, workers: Workers, vectors: AllVectors) -> None:
        self._examples, self._workers, self._vectors = examples, workers, vectors
        self._tokenizer = TowerTokenizer(passage)

    def find(self, question: Tower, passage: Tower) -> Belonging:
        """Return the best passages of each question that do not answer it; dropout must be off."""
        size = self._workers.size
        shares = [np.arange(len(self._examples))[rank::size] for rank in range(size)]
        own = shares[self._workers.rank]
        with torch.inference_mode():
            question_ED = self._vectors.of(question, self._examples.question_tokens)
            passage_PD = self._vectors.of(passage, self._examples.passage_tokens)
            found_NK = torch.full((len(own), KEPT_NEGATIVES), _NONE, dtype=torch.int64)
            for first in range(0, len(own), QUESTIONS_AT_ONCE):
                rows_B = own[first : first + QUESTIONS_AT_ONCE]
                for place, best_K in enumerate(self._best(question_ED, passage_PD, rows_B), first):
                    kept = list(self._negatives(int(own[place]), best_K))
                    found_NK[place, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
            # gathered, since the workers' results could differ by rounding
            found_EK = gather_rows(self._workers, found_NK.to(passage_PD.device), shares).cpu()
        return belonging([[row for row in rows if row != _NONE] for rows in found_EK.tolist()])

    def _best(self, question_ED: Tensor, passage_PD: Tensor, rows_B: Rows) -> list[list[int]]:
        """Return the best passages of some questions."""
        scores_BP = question_ED[torch.from_numpy(rows_B).to(question_ED.device)] @ passage_PD.t()
        best: list[list[int]] = scores_BP.topk(min(DEPTH, scores_BP.shape[1])).indices.tolist()
        return best

    def _negatives(self, question: int, best_K: list[int]) -> Iterator[int]:
        """Yield those of a question's best passages that do not answer it, at most KEPT_NEGATIVES."""
        known, answers = set(self._examples.positives.of(question).tolist()), self._examples.answers[question]
        left = KEPT_NEGATIVES
        for row in best_K:
            if left and row not in known and not (answers and has_answer(answers, self._text(row))):
                left -= 1
                yield row

    def _text(self, passage: int) -> str:
        tokens = self._examples.passage_tokens
        return self._tokenizer.text(tokens.ids_T[tokens.offsets[passage] : tokens.offsets[passage + 1]])
