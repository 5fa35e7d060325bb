"""A tower that is trained: its network's vectors with gradients, packed without padding where the network allows it.

Shapes: B rows of a batch, L tokens of its longest row, D dimensions.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dpr.encoder.network import Network, load_network
from dpr.encoder.packed import PACKED_POOLINGS, pool_packed
from dpr.encoder.packed_forward import PackedForward, pack
from dpr.encoder.packed_training import PackedTraining, trains
from dpr.encoder.padded import batches_by_length, padded
from dpr.encoder.pooling import pool_padded
from dpr.encoder.precision import multiplies_bf16
from dpr.encoder.tokens import TokenBatch, prompt_tokens
from dpr.encoder.tower import TowerSpec
from dpr.errors import EncoderError

_UNUSED = "body.pooler."
"""Weights of BERT that no vector depends on."""


class TrainableNetwork:
    """A network whose weights are trained, for one tower or for both."""

    def __init__(self, tower: TowerSpec, device: torch.device, dropout: float | None = None) -> None:
        """Load it in float32; raises EncoderError if it cannot be trained. `dropout`: None: as its config.json says."""
        if tower.architecture == "StaticEmbedding":
            raise EncoderError(
                f"model {tower.reference} is a table of token vectors, which is not trained here; name a transformer"
            )
        self.loaded: Network = load_network(tower, training=True).to(torch.float32, device)
        self.device = device
        for module in self.loaded.parts.values():
            module.train()
        for name, module in self._modules():
            if isinstance(module, nn.Dropout):
                # see packed_training: padded or packed, the weights of attention are not dropped
                module.p = 0.0 if name.endswith("attention.self.dropout") else module.p if dropout is None else dropout

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained weights by name."""
        found = {
            f"{part}.{name}": weight
            for part, module in self.loaded.parts.items()
            for name, weight in module.named_parameters()
        }
        return {name: weight for name, weight in found.items() if not name.startswith(_UNUSED)}

    def set_training(self, *, on: bool) -> None:
        """Switch dropout on or off."""
        for module in self.loaded.parts.values():
            module.train(on)

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        for module in self.loaded.parts.values():
            yield from module.named_modules()


class TrainableTower:
    """Turns tokens into vectors through which gradients pass."""

    def __init__(
        self, network: TrainableNetwork, tower: TowerSpec, dtype: torch.dtype = torch.float32, *, packing: bool = True
    ) -> None:
        self.network, self.spec, self._dtype = network, tower, dtype
        fits = trains(network.loaded.body) and tower.pooling in PACKED_POOLINGS and tower.prompt_pooled
        self._packed = PackedTraining(network.loaded.body) if packing and fits else None
        self._skip = 0 if tower.prompt_pooled else prompt_tokens(tower)

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self.spec.dim

    @property
    def is_packed(self) -> bool:
        """Whether rows stand one after another without padding."""
        return self._packed is not None

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """Return the row numbers of batches of at most `tokens` tokens, or of one row, the longest rows first."""
        return (PackedForward.batches if self._packed else batches_by_length)(lengths_N, tokens)

    def vectors(self, tokens: TokenBatch) -> Tensor:
        """Return vectors (B, D) float32 on the network's device, in the order of the rows."""
        with torch.autocast(self.network.device.type, self._dtype, enabled=self._dtype != torch.float32):
            pooled_BH = self._pooled(tokens)
        return self.network.loaded.project(pooled_BH.float())

    def _pooled(self, tokens: TokenBatch) -> Tensor:
        device, loaded = self.network.device, self.network.loaded
        if self._packed is None:
            ids_BL, types_BL, mask = padded(tokens, loaded.pad_id)
            mask_BL = None if mask is None else torch.from_numpy(mask).to(device)
            hidden_BLH = loaded.hidden(
                torch.from_numpy(ids_BL).to(device), torch.from_numpy(types_BL).to(device), mask_BL
            )
            return pool_padded(hidden_BLH, mask_BL, self.spec.pooling, self._skip)
        packed = pack(tokens, device)
        hidden_TH = self._packed.hidden(packed, tokens.lengths(), self._dtype)
        if self.spec.pooling == "cls":
            return hidden_TH[packed.offsets[:-1]]
        return pool_packed(hidden_TH.float(), packed, self.spec.pooling)


def training_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Return the arithmetic of a recipe's `precision`; `auto` takes bf16 on a GPU that multiplies it."""
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and multiplies_bf16(device) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]
