"""Estimate how much a tower computes for a passage, from its configuration, to divide work before any of it is done."""

from collections.abc import Mapping
from typing import Any

from dpr.encoder.model_files import read_json
from dpr.encoder.tower import TowerSpec

BYTES_PER_TOKEN = 5.0
"""Bytes of a corpus file per token, roughly, with ids and field names."""


def passage_flops(tower: TowerSpec, passage_bytes: float) -> float:
    """Return the floating-point operations for a passage of that many bytes in a corpus file.

    Return 0.0 for an unknown network. The products with weights and those of attention are counted. The weights of a
    layer are those of BERT: four H × H matrices, and two that lead to the intermediate width and back.
    """
    config = read_json(tower.folder / "config.json", tower.reference, optional=True)
    width = _first(config, "hidden_size", "dim", "d_model")
    layers = _first(config, "num_hidden_layers", "n_layers", "num_layers")
    inner = _first(config, "intermediate_size", "hidden_dim", "d_ff") or 4 * width
    tokens = min(float(tower.max_tokens), 2.0 + passage_bytes / BYTES_PER_TOKEN)
    weights = layers * (4 * width * width + 2 * width * inner)
    return tokens * (2.0 * weights + 4.0 * layers * width * tokens)


def _first(config: Mapping[str, Any], *names: str) -> int:
    """Return the first of these fields that holds a number, else 0: architectures name them differently."""
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)
