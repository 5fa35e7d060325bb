"""Other ways to train, for comparison: the same network, pairs and tokens, run as others run them.

Shapes: B pairs, L tokens of the longest text, H hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from dpr.encoder.padded import padded
from dpr.encoder.tokens import TokenBatch
from dpr.train.batch_plan import BatchPlan
from dpr.train.training_job import TrainingJob


@dataclass(frozen=True)
class Peer:
    """What all ways share."""

    job: TrainingJob
    device: torch.device
    dtype: torch.dtype
    temperature: float
    learning_rate: float

    @cached_property
    def _plan(self) -> BatchPlan:
        return BatchPlan(self.job.examples, self.job.recipe.objective, self.job.recipe.optimiser)

    def pairs(self, number: int) -> tuple[TokenBatch, TokenBatch]:
        """Return the questions and the positive passages of a step."""
        examples, batch = self.job.examples, self._plan.batch(number % self._plan.steps)
        passages = examples.passage_tokens.select(batch.passages_P[batch.targets_B])
        return examples.question_tokens.select(batch.questions_B), passages

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def features(tokens: TokenBatch, device: torch.device) -> dict[str, Tensor]:
    """Return tokens as a tokenizer does, padded to the longest text."""
    ids_BL, types_BL, mask = padded(tokens, 0)
    mask_BL = torch.ones(ids_BL.shape, dtype=torch.int64) if mask is None else torch.from_numpy(mask)
    named = {"input_ids": torch.from_numpy(ids_BL), "token_type_ids": torch.from_numpy(types_BL)}
    return {name: x.to(device) for name, x in (named | {"attention_mask": mask_BL}).items()}


def plain_loop(peer: Peer) -> Callable[[int], object]:
    """Return a step as one writes it by hand: both sides padded, one pass, in-batch negatives, mean pooling."""
    body = AutoModel.from_pretrained(peer.job.spec.passage.folder, add_pooling_layer=False).to(peer.device).train()
    adam = torch.optim.AdamW(body.parameters(), lr=peer.learning_rate, fused=peer.device.type == "cuda")

    def vectors(tokens: TokenBatch) -> Tensor:
        inputs = features(tokens, peer.device)
        with peer.autocast():
            hidden_BLH = body(**inputs).last_hidden_state.float()
        mask_BL1 = inputs["attention_mask"][..., None]
        pooled_BH = (hidden_BLH * mask_BL1).sum(1) / mask_BL1.sum(1)
        return torch.nn.functional.normalize(pooled_BH, dim=-1)

    def step(number: int) -> float:
        questions, passages = peer.pairs(number)
        adam.zero_grad()
        scores = vectors(questions) @ vectors(passages).t() / peer.temperature
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(scores), device=peer.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(body.parameters(), 1.0)
        adam.step()
        return float(loss.detach())

    return step


def sentence_transformers(peer: Peer, mini_batch: int, drops_attention: bool) -> Callable[[int], object]:
    """Return a step with CachedMultipleNegativesRankingLoss, in the autocast of its own trainer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss

    kwargs: dict[str, Any] = {} if drops_attention else {"config_kwargs": {"attention_probs_dropout_prob": 0.0}}
    model = SentenceTransformer(str(peer.job.spec.passage.folder), device=str(peer.device), **kwargs).train()
    loss = CachedMultipleNegativesRankingLoss(model, scale=1 / peer.temperature, mini_batch_size=mini_batch)
    adam = torch.optim.AdamW(model.parameters(), lr=peer.learning_rate, fused=peer.device.type == "cuda")

    def step(number: int) -> float:
        sides = [features(tokens, peer.device) for tokens in peer.pairs(number)]
        adam.zero_grad()
        with peer.autocast():
            value = loss(sides, torch.zeros(0))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        return float(value.detach())

    return step
