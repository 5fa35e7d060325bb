"""How many tokens of a batch may keep their activations for the backward pass, by the memory that is free."""

from typing import Any

import torch

from dpr.engine.room import memory_available
from dpr.train.train_recipe import TrainingResources

CHUNK_TOKENS = {"cuda": 65_536, "cpu": 2_048}
"""Default tokens of one pass through the network: enough to keep a GPU busy, or few enough for a CPU's caches."""
SHARE = 0.5
"""Share of the free memory that activations may use."""
_UNKNOWN_BYTES = 2 << 30
"""Assumed free memory if the system does not say."""


def chunk_tokens(resources: TrainingResources, device: torch.device) -> int:
    """Return the tokens of one pass through the network."""
    return resources.chunk_tokens or CHUNK_TOKENS.get(device.type, CHUNK_TOKENS["cpu"])


def kept_tokens(resources: TrainingResources, device: torch.device, config: Any, dtype: torch.dtype) -> int:
    """Return how many tokens of a worker's batch keep their activations; `config` is that of the network."""
    if resources.kept_tokens is not None:
        return resources.kept_tokens
    if device.type == "cuda":
        free_bytes = torch.cuda.mem_get_info(device)[0]
    else:
        free_bytes = (memory_available() or _UNKNOWN_BYTES) // resources.workers
    return int(SHARE * free_bytes / token_bytes(config, dtype))


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Return about how many bytes the activations of one token take in a transformer.

    For each layer these are the inputs of its products, normalisations, dropouts and activation: 20 times the hidden
    size and 3 times the feed-forward size (Korthikanti et al. 2022, without the weights of attention).
    """
    hidden = int(getattr(config, "hidden_size", 0) or getattr(config, "d_model", 0) or 1024)
    layers = int(getattr(config, "num_hidden_layers", 0) or getattr(config, "num_layers", 0) or 24)
    inner = int(getattr(config, "intermediate_size", 0) or 4 * hidden)
    # autocast keeps normalisations in fp32
    return int(layers * (20 * hidden + 3 * inner) * (4 if dtype == torch.float32 else 2.8))
