"""BERT in plain PyTorch, for encoding: importing that of transformers takes seconds and 120 MB of memory.

Only folders that name every size, and hold every weight under its usual name, are loaded here. Weights are mapped from
the file, so that processes of one machine share their memory.

Shapes: B rows of a batch, L tokens of its longest row, H hidden size, F feed-forward size, I and O inputs and outputs.
"""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dpr.encoder.model_files import read_json, weight_files

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
_USUAL = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
_ACTS = {"gelu": nn.GELU(), "gelu_new": nn.GELU("tanh"), "relu": nn.ReLU()}
_UNUSED = ("pooler.", "embeddings.position_ids")
"""Beginnings of names in the file that no token vector depends on."""


def load_bert(folder: Path, reference: str) -> "BertBody | None":
    """Load a network in float32 on the CPU; None if this module does not support it."""
    config = read_json(folder / "config.json", reference)
    if (
        config.get("architectures") != ["BertModel"]
        or config.get("model_type") != "bert"
        or config.get("hidden_act") not in _ACTS
        or any(config.get(name, value) not in (value, None) for name, value in _USUAL.items())
        or any(not isinstance(config.get(name), int) for name in _SIZES)
        or not isinstance(config.get("layer_norm_eps"), float)
        or weight_files(folder, reference) != ["model.safetensors"]
    ):
        return None
    try:
        weights = _Weights(load_file(folder / "model.safetensors"))
        body = BertBody(SimpleNamespace(**{"pad_token_id": 0, **_USUAL, **config}), weights)
    except (OSError, SafetensorError, _OtherWeightsError):
        return None  # transformers, which knows older names too, loads it or raises an error that says what is wrong
    return None if weights.are_left else body.eval()


class _OtherWeightsError(Exception):
    """A weight is not there, or has another shape."""


class _Weights:
    """The tensors of a file, each to be taken once."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_UNUSED)}

    @property
    def are_left(self) -> bool:
        """Return whether any were not taken."""
        return bool(self._tensors)

    def take(self, name: str, *shape: int) -> nn.Parameter:
        """Return a tensor in float32; -1 stands for any number."""
        tensor = self._tensors.pop(name, None)
        if tensor is None or len(tensor.shape) != len(shape):
            raise _OtherWeightsError
        if any(size not in (-1, found) for size, found in zip(shape, tensor.shape, strict=True)):
            raise _OtherWeightsError
        return nn.Parameter(tensor.float(), requires_grad=False)


class BertBody(nn.Module):
    """The network, with transformers' names of its parts."""

    def __init__(self, config: Any, weights: _Weights) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config, weights)
        layers = (_Layer(config, weights, f"encoder.layer.{number}.") for number in range(config.num_hidden_layers))
        self.encoder: Any = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor) -> SimpleNamespace:
        """Return token vectors (B, L, H) as `last_hidden_state`; the mask (B, L) is 1 at real tokens, None: all are."""
        x_BLH = self.embeddings(input_ids, token_type_ids)
        mask = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        for layer in self.encoder.layer:
            x_BLH = layer(x_BLH, mask)
        return SimpleNamespace(last_hidden_state=x_BLH)


# PyTorch's own modules would first be filled with random numbers


class _Linear(nn.Module):
    def __init__(self, weights: _Weights, name: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = weights.take(f"{name}.weight", outputs, inputs), weights.take(f"{name}.bias", outputs)

    def forward(self, x_BLI: Tensor) -> Tensor:
        return nn.functional.linear(x_BLI, self.weight, self.bias)


class _Norm(nn.Module):
    def __init__(self, weights: _Weights, name: str, config: Any) -> None:
        super().__init__()
        self.weight, self.bias = (weights.take(f"{name}.{what}", config.hidden_size) for what in ("weight", "bias"))
        self.eps = float(config.layer_norm_eps)

    def forward(self, x_BLH: Tensor) -> Tensor:
        return nn.functional.layer_norm(x_BLH, self.weight.shape, self.weight, self.bias, self.eps)


class _Embeddings(nn.Module):
    def __init__(self, config: Any, weights: _Weights) -> None:
        super().__init__()
        self.word_embeddings = _table(weights, "word_embeddings", config.vocab_size, config)
        self.token_type_embeddings = _table(weights, "token_type_embeddings", -1, config)
        self.position_embeddings = _table(weights, "position_embeddings", -1, config)
        self.LayerNorm = _Norm(weights, "embeddings.LayerNorm", config)

    def forward(self, ids_BL: Tensor, types_BL: Tensor) -> Tensor:
        places_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        x_BLH = self.word_embeddings(ids_BL) + self.token_type_embeddings(types_BL) + self.position_embeddings(places_L)
        normed_BLH: Tensor = self.LayerNorm(x_BLH)
        return normed_BLH


def _table(weights: _Weights, name: str, rows: int, config: Any) -> nn.Embedding:
    weight = weights.take(f"embeddings.{name}.weight", rows, config.hidden_size)
    made: nn.Embedding = nn.Embedding.from_pretrained(weight)  # type: ignore[no-untyped-call]
    return made


class _Output(nn.Module):
    """A linear layer, and the normalisation of its output plus the residual."""

    def __init__(self, weights: _Weights, name: str, inputs: int, config: Any) -> None:
        super().__init__()
        self.dense = _Linear(weights, f"{name}.dense", inputs, config.hidden_size)
        self.LayerNorm = _Norm(weights, f"{name}.LayerNorm", config)

    def forward(self, y_BLF: Tensor, x_BLH: Tensor) -> Tensor:
        normed_BLH: Tensor = self.LayerNorm(self.dense(y_BLF) + x_BLH)
        return normed_BLH


class _Layer(nn.Module):
    def __init__(self, config: Any, weights: _Weights, name: str) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self._heads, self._act = config.num_attention_heads, _ACTS[config.hidden_act]
        own = {part: _Linear(weights, f"{name}attention.self.{part}", size, size) for part in ("query", "key", "value")}
        output = _Output(weights, f"{name}attention.output", size, config)
        self.attention: Any = nn.ModuleDict({"self": nn.ModuleDict(own), "output": output})
        self.intermediate: Any = nn.ModuleDict({"dense": _Linear(weights, f"{name}intermediate.dense", size, inner)})
        self.output = _Output(weights, f"{name}output", inner, config)

    def forward(self, x_BLH: Tensor, mask: Tensor | None) -> Tensor:
        own, shape = self.attention.self, (*x_BLH.shape[:2], self._heads, -1)
        q, k, v = (own[part](x_BLH).view(shape).transpose(1, 2) for part in ("query", "key", "value"))
        scale = 1 / math.sqrt(q.shape[-1])
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        x_BLH = self.attention.output(attended.transpose(1, 2).flatten(2), x_BLH)
        out_BLH: Tensor = self.output(self._act(self.intermediate.dense(x_BLH)), x_BLH)
        return out_BLH
