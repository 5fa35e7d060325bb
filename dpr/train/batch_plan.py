"""The questions and passages of each step: a pure function of the training set, the recipe and the step's number.

So every worker knows the whole batch without communication, and a training that was killed continues with exactly the
next batch.

Shapes: E questions of the set, B questions of a batch, P distinct passages of it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dpr.train.train_recipe import Objective, Optimiser
from dpr.train.training_set import Rows, TrainingSet


@dataclass(frozen=True)
class Batch:
    """The questions and passages of one step, over all workers."""

    step: int
    questions_B: Rows
    passages_P: Rows
    """Distinct passages: one that is positive for two questions, or negative for one of them, is one column."""
    targets_B: Rows
    """The column of each question's positive passage."""
    masked_BP: npt.NDArray[np.bool_]
    """Columns that do not count as negatives of a question: they are known to answer it, too."""


class BatchPlan:
    """The batches of a whole training."""

    def __init__(self, examples: TrainingSet, objective: Objective, optimiser: Optimiser) -> None:
        self._examples, self._objective, self._seed = examples, objective, optimiser.seed
        self._size = min(objective.batch, len(examples))
        self.steps_per_epoch = len(examples) // self._size
        """An epoch leaves out a remainder smaller than a batch; it consists of other questions each time."""
        self.steps = self.steps_per_epoch * optimiser.epochs
        self._order = lru_cache(maxsize=2)(self._order_of)
        self.batch = lru_cache(maxsize=2)(self._batch_of)
        """Returns the batch of a step, counted from 0; the last two are remembered, so that one can be made ahead."""

    def _batch_of(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_per_epoch)
        questions_B = self._order(epoch)[place * self._size : (place + 1) * self._size]
        rng = np.random.default_rng([self._seed, epoch, place])
        positives, first_B = self._examples.positives, self._examples.positives.offsets[questions_B]
        counts_B = positives.offsets[questions_B + 1] - first_B
        positives_B = positives.rows_R[first_B + (rng.random(self._size) * counts_B).astype(np.int64)]
        return make_batch(self._examples, step, questions_B, positives_B, self._negatives(questions_B, rng))

    def _negatives(self, questions_B: Rows, rng: np.random.Generator) -> Rows:
        most = self._objective.hard_negatives
        drawn = [rng.permutation(self._examples.negatives.of(row))[:most] for row in questions_B.tolist() if most]
        return np.concatenate([np.zeros(0, np.int64), *drawn])

    def _order_of(self, epoch: int) -> Rows:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._examples))


def make_batch(examples: TrainingSet, step: int, questions_B: Rows, positives_B: Rows, negatives: Rows) -> Batch:
    """Return the batch of some questions, one positive passage of each, and any number of negatives."""
    passages_P, places = np.unique(np.concatenate([positives_B, negatives]), return_inverse=True)
    targets_B = places.ravel()[: len(questions_B)]
    known = [examples.positives.of(row) for row in questions_B.tolist()]
    owners, known_rows = np.repeat(np.arange(len(known)), [len(rows) for rows in known]), np.concatenate(known)
    columns = np.searchsorted(passages_P, known_rows).clip(max=len(passages_P) - 1)
    is_there = passages_P[columns] == known_rows
    masked_BP = np.zeros((len(questions_B), len(passages_P)), np.bool_)
    masked_BP[owners[is_there], columns[is_there]] = True
    masked_BP[np.arange(len(questions_B)), targets_B] = False
    return Batch(step, questions_B, passages_P, targets_B, masked_BP)


def share_of(lengths_N: npt.NDArray[np.int64], rank: int, size: int) -> Rows:
    """Return which rows of a batch a worker computes: about as many tokens as each other worker."""
    order_N = np.argsort(-lengths_N, kind="stable")
    return order_N[rank::size]
