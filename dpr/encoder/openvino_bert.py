"""The layers of BERT as a graph of OpenVINO, over sequences packed one after another, without padding.

Its weights have eight bits, with one scale for each output. OpenVINO then also rounds what a product multiplies them
with to eight bits, with one scale for every `GROUP` components of a token. So a token's vector does not depend on other
rows.

Shapes: T tokens of a batch, H hidden size, I and O inputs and outputs of a linear layer.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpr.encoder.mapped_weights import MappedWeights, mapped_weights
from dpr.encoder.model_files import read_json, weight_files

GROUP = 128
"""Components that share a scale."""
_TELEMETRY = "openvino_telemetry"
_ACTS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_PLAIN = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BertWeights:
    """A BERT of a folder: its configuration, and its weights by their usual names."""

    config: Mapping[str, Any]
    weights: MappedWeights

    @property
    def tables(self) -> tuple[Floats, Floats, Floats]:
        """Return the vectors of words, of token types and of positions."""
        words, types, places = (
            self.weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "token_type", "position")
        )
        return words, types, places


def read_bert(folder: Path, reference: str) -> BertWeights | None:
    """Read the folder of a network that the graph below can compute; None for any other."""
    config = read_json(folder / "config.json", reference, optional=True)
    if (
        config.get("architectures") != ["BertModel"]
        or config.get("model_type") != "bert"
        or config.get("hidden_act") not in _ACTS
        or any(config.get(name, value) not in (value, None) for name, value in _PLAIN.items())
        or any(not isinstance(config.get(name), int) for name in _SIZES)
        or not isinstance(config.get("layer_norm_eps"), float)
        or config["hidden_size"] % GROUP
        or config["intermediate_size"] % GROUP
        or weight_files(folder, reference) != ["model.safetensors"]
    ):
        return None
    weights = mapped_weights(folder / "model.safetensors")
    if weights is None or not _names(config) <= weights.keys():
        return None
    return BertWeights(config, weights)


def _names(config: Mapping[str, Any]) -> set[str]:
    """Return the names of all weights that the graph and its input need."""
    tables = {f"embeddings.{kind}_embeddings.weight" for kind in ("word", "token_type", "position")}
    parts = ["embeddings.LayerNorm"]
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        parts += [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        parts += [f"{layer}.{part}" for part in ("attention.output.dense", "intermediate.dense", "output.dense")]
        parts += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    return tables | {f"{part}.{what}" for part in parts for what in ("weight", "bias")}


def load_openvino() -> Any:
    """Import the library without its telemetry package, which would report its use over the network.

    Raises ImportError if it is not installed.
    """
    if "openvino" in sys.modules or _TELEMETRY in sys.modules:
        return importlib.import_module("openvino")
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[_TELEMETRY]


def bert_graph(bert: BertWeights, *, rounded: bool) -> Any:
    """Return the graph: from summed embeddings (T, H) and a mask (1, 1, T, T) to token vectors (T, H), all float32.

    The mask is 0 between tokens of one sequence, and far below 0 between others. `rounded`: weights have eight bits.
    """
    graph = _Builder(load_openvino(), bert, rounded=rounded).graph()
    bert.weights.give_back()  # of all that was read, only some rows of the tables are needed again
    return graph


class _Builder:
    def __init__(self, ov: Any, bert: BertWeights, *, rounded: bool) -> None:
        self._ov, self._op, self._bert, self._rounded = ov, ov.opset13, bert, rounded

    def graph(self) -> Any:
        config, op = self._bert.config, self._op
        summed_TH = op.parameter([-1, config["hidden_size"]], self._ov.Type.f32, name="summed")
        mask_TT = op.parameter([1, 1, -1, -1], self._ov.Type.f32, name="mask")
        x_TH = self._norm(summed_TH, "embeddings.LayerNorm")
        for number in range(config["num_hidden_layers"]):
            x_TH = self._layer(x_TH, mask_TT, f"encoder.layer.{number}")
        return self._ov.Model([x_TH], [summed_TH, mask_TT], "bert")

    def _layer(self, x_TH: Any, mask_TT: Any, name: str) -> Any:
        op, attention = self._op, f"{name}.attention"
        attended_TH = self._attended(x_TH, mask_TT, f"{attention}.self")
        projected_TH = self._linear(attended_TH, [f"{attention}.output.dense"])
        x_TH = self._norm(op.add(projected_TH, x_TH), f"{attention}.output.LayerNorm")
        up_TF = op.gelu(self._linear(x_TH, [f"{name}.intermediate.dense"]), _ACTS[self._bert.config["hidden_act"]])
        return self._norm(op.add(self._linear(up_TF, [f"{name}.output.dense"]), x_TH), f"{name}.output.LayerNorm")

    def _attended(self, x_TH: Any, mask_TT: Any, name: str) -> Any:
        op, size, heads = self._op, self._bert.config["hidden_size"], self._bert.config["num_attention_heads"]
        both = self._linear(x_TH, [f"{name}.{part}" for part in ("query", "key", "value")])
        split = op.variadic_split(both, self._numbers(1)[0], self._numbers(size, size, size)[1])
        shape, swap = self._numbers(1, -1, heads, size // heads)[1], self._numbers(0, 2, 1, 3)[1]
        q, k, v = (op.transpose(op.reshape(part, shape, False), swap) for part in split.outputs())
        attended = op.scaled_dot_product_attention(q, k, v, mask_TT)
        return op.reshape(op.transpose(attended, swap), self._numbers(-1, size)[1], False)

    def _linear(self, x_TI: Any, names: Sequence[str]) -> Any:
        """Compute linear layers as one, side by side."""
        op = self._op
        weight_OI = np.concatenate([self._bert.weights[f"{name}.weight"] for name in names])
        bias_O = np.concatenate([self._bert.weights[f"{name}.bias"] for name in names])
        return op.add(op.matmul(x_TI, self._weight(weight_OI), False, True), op.constant(bias_O[np.newaxis]))

    def _weight(self, weight_OI: Floats) -> Any:
        op = self._op
        if not self._rounded:
            return op.constant(weight_OI)
        scales_O1 = np.maximum(np.abs(weight_OI).max(1, keepdims=True), np.finfo(np.float32).tiny) / np.float32(127)
        rounded_OI = np.rint(weight_OI / scales_O1).astype(np.int8)
        return op.multiply(op.convert(op.constant(rounded_OI), "f32"), op.constant(scales_O1))

    def _norm(self, x_TH: Any, name: str) -> Any:
        op, eps = self._op, float(self._bert.config["layer_norm_eps"])
        weight_H, bias_H = (op.constant(np.array(self._bert.weights[f"{name}.{what}"])) for what in ("weight", "bias"))
        normed_TH = op.mvn(x_TH, self._numbers(-1)[1], True, eps, "inside_sqrt")
        return op.add(op.multiply(normed_TH, weight_H), bias_H)

    def _numbers(self, *numbers: int) -> tuple[Any, Any]:
        """Return the first number, and all of them, as constants of the graph."""
        return self._op.constant(np.int64(numbers[0])), self._op.constant(np.array(numbers, np.int64))
