"""The objective of the paper (section 3.2): -log exp(sim(q, p+)) / sum over all passages of exp(sim(q, p)).

The similarity is the dot product, divided by a temperature. Passages that are known to answer a question, besides the
one that it is trained on, are left out of its sum.

Shapes: B questions, P passages, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpr.train.batch_plan import Batch


@dataclass(frozen=True)
class Scored:
    """How well a batch was answered."""

    loss: Tensor
    """The mean over all questions; gradients pass through it."""
    ranks_B: Tensor
    """Rank of each right passage among those that count, from 1: the paper validates by its average. Passages with the
    same score come before it, so that vectors that are all equal do not look perfect."""

    @property
    def accuracy(self) -> float:
        """Return the share of questions whose right passage comes first."""
        return float((self.ranks_B == 1).float().mean())

    @property
    def average_rank(self) -> float:
        return float(self.ranks_B.float().mean())


def contrastive(question_BD: Tensor, passage_PD: Tensor, batch: Batch, temperature: float) -> Scored:
    """Score all questions of a batch against all its passages."""
    device = question_BD.device
    targets_B, masked_BP = torch.from_numpy(batch.targets_B).to(device), torch.from_numpy(batch.masked_BP).to(device)
    scores_BP = question_BD @ passage_PD.t() / temperature
    scores_BP = scores_BP.masked_fill(masked_BP, float("-inf"))
    right_B1 = scores_BP.detach().gather(1, targets_B[:, None])
    ranks_B = (~(scores_BP.detach() < right_B1)).sum(1)  # the right one itself counts; so do ties, and NaN
    return Scored(nn.functional.cross_entropy(scores_BP, targets_B), ranks_B)
