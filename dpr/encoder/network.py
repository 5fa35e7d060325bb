"""The network of a tower, and the protocol that every forward pass implements.

Shapes: B rows of a batch, L tokens of its longest row, H hidden size, D dimensions.
"""

import inspect
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

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


class Network:
    """A loaded encoder, the projection after it for some DPR checkpoints, and the head of its tower."""

    def __init__(self, body: Any, projection: nn.Module | None, tower: TowerSpec) -> None:
        self.body, self._projection = body, projection
        self._head, self._dim, self._normalize = load_head(tower.head, tower.reference), tower.dim, tower.normalize
        self.pad_id = int(getattr(body.config, "pad_token_id", None) or 0)
        self.vocabulary = int(body.config.vocab_size)
        self._takes_types = "token_type_ids" in inspect.signature(body.forward).parameters

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Return the modules that have weights: body, projection if there is one, head."""
        parts = {"body": self.body, "projection": self._projection, "head": self._head}
        return {name: module for name, module in parts.items() if module is not None}

    def to(self, dtype: torch.dtype, device: torch.device) -> "Network":
        """Move and convert the network in place, and return it."""
        for module in (self.body, self._projection):
            if module is not None:
                module.to(device=device, dtype=dtype)
        self._head.to(device)
        return self

    def hidden(self, ids_BL: Tensor, types_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Return token vectors (B, L, H); `mask_BL` is 1 at real tokens, and None if all tokens are real."""
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if self._takes_types:
            inputs["token_type_ids"] = types_BL
        hidden_BLH: Tensor = self.body(**inputs).last_hidden_state
        return hidden_BLH

    def project(self, pooled_BH: Tensor) -> Tensor:
        """Turn pooled vectors (B, H) in float32 into vectors (B, D): projected, cut and scaled as the tower says."""
        if self._projection is not None:
            weight = next(self._projection.parameters())
            pooled_BH = self._projection(pooled_BH.to(weight.dtype)).float()
        vectors_BD: Tensor = self._head(pooled_BH)[:, : self._dim]
        return nn.functional.normalize(vectors_BD, dim=-1) if self._normalize else vectors_BD


def load_network(tower: TowerSpec) -> Network:
    """Load a tower's network in float32 on the CPU, ready to encode.

    Raises EncoderError if transformers cannot load it, or if weights that its configuration calls for are missing.
    """
    if tower.architecture == "StaticEmbedding":
        return Network(StaticBody(tower.folder, tower.reference), None, tower)
    from dpr.encoder.pretrained import load_tower  # transformers: seconds

    return Network(*load_tower(tower), tower)
