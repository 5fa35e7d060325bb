"""The network of a tower, and the protocol that every forward pass implements.

Shapes: B rows of a batch, L tokens of its longest row, H hidden size, D dimensions.
"""

import inspect
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpr.encoder.bert import load_bert
from dpr.encoder.head import load_head
from dpr.encoder.static import StaticBody
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec


class Forward(Protocol):
    """One way to run a tower over a batch of rows."""

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """Return vectors (B, D), float32, on the CPU, in the order of the rows of `tokens`."""

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """Return the row numbers of each batch; a batch costs at most `tokens` tokens, or is one row."""


class Projection:
    """The layers from pooled vectors to those of a tower: the projection of some DPR checkpoints, and the head."""

    def __init__(self, linear: nn.Module | None, tower: TowerSpec) -> None:
        self.linear, self.head = linear, load_head(tower.head, tower.reference)
        self._dim, self._normalize = tower.dim, tower.normalize

    def __call__(self, pooled_BH: Tensor) -> Tensor:
        """Turn pooled vectors (B, H) in float32 into vectors (B, D): projected, cut and scaled as the tower says."""
        if self.linear is not None:
            weight = next(self.linear.parameters())
            pooled_BH = self.linear(pooled_BH.to(weight.dtype)).float()
        vectors_BD: Tensor = self.head(pooled_BH)[:, : self._dim]
        return nn.functional.normalize(vectors_BD, dim=-1) if self._normalize else vectors_BD


class Network:
    """A loaded encoder, and the projection of its tower."""

    def __init__(self, body: Any, projection: nn.Module | None, tower: TowerSpec) -> None:
        self.body, self.project = body, Projection(projection, tower)
        self.pad_id = int(getattr(body.config, "pad_token_id", None) or 0)
        self.vocabulary = int(body.config.vocab_size)
        self._takes_types = "token_type_ids" in inspect.signature(body.forward).parameters

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Return the modules that have weights: body, projection if there is one, head."""
        parts = {"body": self.body, "projection": self.project.linear, "head": self.project.head}
        return {name: module for name, module in parts.items() if module is not None}

    def to(self, dtype: torch.dtype, device: torch.device) -> "Network":
        """Move and convert the network in place, and return it."""
        for module in (self.body, self.project.linear):
            if module is not None:
                module.to(device=device, dtype=dtype)
        self.project.head.to(device)
        return self

    def hidden(self, ids_BL: Tensor, types_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Return token vectors (B, L, H); `mask_BL` is 1 at real tokens, and None if all tokens are real."""
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if self._takes_types:
            inputs["token_type_ids"] = types_BL
        hidden_BLH: Tensor = self.body(**inputs).last_hidden_state
        return hidden_BLH


def load_network(tower: TowerSpec, *, training: bool = False) -> Network:
    """Load a tower's network in float32 on the CPU, ready to encode, or to be trained.

    Raises EncoderError if transformers cannot load it, or if weights that its configuration calls for are missing.
    """
    if tower.architecture == "StaticEmbedding":
        return Network(StaticBody(tower.folder, tower.reference), None, tower)
    if not training and (body := load_bert(tower.folder, tower.reference)) is not None:
        return Network(body, None, tower)
    from dpr.encoder.pretrained import load_tower  # importing transformers takes seconds

    return Network(*load_tower(tower), tower)
