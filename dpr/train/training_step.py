"""One step up to the gradients: each worker encodes its share of the batch, and all score the whole of it.

Every worker computes the loss of the whole batch from the gathered vectors, and passes on the gradients of its own
rows; the sum over the workers is the gradient of the whole batch. So nothing depends on the number of workers, and the
passages that count for a question are known before vectors are gathered.

Shapes: B questions, P passages, D dimensions.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpr.encoder.tokens import TokenBatch
from dpr.train.batch_plan import Batch, share_of
from dpr.train.gradient_cache import GradientCache, Part, Tower
from dpr.train.loss import Scored, contrastive
from dpr.train.training_set import Rows, TrainingSet
from dpr.train.workers import Workers, gather_rows


@dataclass(frozen=True)
class Towers:
    """Both towers, which may be one network."""

    question: Tower
    passage: Tower
    weights: dict[str, nn.Parameter]
    """All trained weights, each once."""


class StepRunner:
    """Computes loss and gradients of batches."""

    def __init__(self, towers: Towers, workers: Workers, cache: GradientCache, temperature: float) -> None:
        self._towers, self._workers, self._cache, self._temperature = towers, workers, cache, temperature

    def run(self, examples: TrainingSet, batch: Batch) -> Scored:
        """Set the gradients of all weights to those of the batch, and return how it was answered."""
        for weight in self._towers.weights.values():
            weight.grad = None
        questions = _Side(examples.question_tokens, batch.questions_B, self._workers)
        passages = _Side(examples.passage_tokens, batch.passages_P, self._workers)
        parts = [Part(self._towers.question, questions.own), Part(self._towers.passage, passages.own)]
        own = self._cache.forward(parts)
        question_BD, passage_PD = questions.gathered(own[0]), passages.gathered(own[1])
        scored = contrastive(question_BD, passage_PD, batch, self._temperature)
        scored.loss.backward()  # type: ignore[no-untyped-call]
        self._cache.backward([questions.own_gradient(question_BD), passages.own_gradient(passage_PD)])
        self._workers.sum_gradients(self._towers.weights.values())
        return Scored(scored.loss.detach(), scored.ranks_B)


class _Side:
    """The questions or the passages of a batch, divided among the workers."""

    def __init__(self, tokens: TokenBatch, rows: Rows, workers: Workers) -> None:
        lengths = tokens.lengths()[rows]
        self._workers = workers
        self._shares = [share_of(lengths, rank, workers.size) for rank in range(workers.size)]
        self.own = tokens.select(rows[self._shares[workers.rank]])

    def gathered(self, own_ND: Tensor) -> Tensor:
        """Return the vectors of all rows, in their order, as a leaf that takes gradients."""
        return gather_rows(self._workers, own_ND, self._shares).requires_grad_()

    def own_gradient(self, vectors: Tensor) -> Tensor:
        """Return the gradients of this worker's rows."""
        if vectors.grad is None:
            raise ValueError("the loss was not computed")
        return vectors.grad[torch.from_numpy(self._shares[self._workers.rank]).to(vectors.device)]


def gradient_length(weights: Iterable[nn.Parameter]) -> Tensor:
    """Return the length of all gradients together."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
