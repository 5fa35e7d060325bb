"""Small sentence-transformers folders of every kind of encoder, as their makers lay them out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from tests.encoder.models import SIZES, edit_json, save_tokenizer

VOCABULARY = SIZES["vocab_size"]
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
_DECODER = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
_OFFSET = {"pad_token_id": 0, "max_position_embeddings": 130}

NETWORKS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertConfig", "BertModel", {}),
    "roberta": ("RobertaConfig", "RobertaModel", _OFFSET),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", _OFFSET),
    "mpnet": ("MPNetConfig", "MPNetModel", _OFFSET),
    "distilbert": (
        "DistilBertConfig",
        "DistilBertModel",
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    ),
    "electra": ("ElectraConfig", "ElectraModel", {"embedding_size": 16}),
    "albert": ("AlbertConfig", "AlbertModel", {"embedding_size": 16}),
    "deberta-v2": (
        "DebertaV2Config",
        "DebertaV2Model",
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
    ),
    "longformer": ("LongformerConfig", "LongformerModel", _OFFSET | {"attention_window": 16}),
    "modernbert": ("ModernBertConfig", "ModernBertModel", {"pad_token_id": 0, "local_attention": 16}),
    "nomic_bert": ("NomicBertConfig", "NomicBertModel", {"pad_token_id": 0}),
    "gte": ("GteConfig", "GteModel", {"pad_token_id": 0}),
    "t5": ("T5Config", "T5EncoderModel", _T5),
    "t5 with decoder": ("T5Config", "T5Model", _T5),
    "mt5": ("MT5Config", "MT5EncoderModel", _T5),
    "bert with a head": ("BertConfig", "BertForMaskedLM", {}),
    "eurobert": ("EuroBertConfig", "EuroBertModel", {"num_key_value_heads": 4, "pad_token_id": 0}),
    "mistral": ("MistralConfig", "MistralModel", _DECODER),
    "gemma2": ("Gemma2Config", "Gemma2Model", _DECODER),
    "qwen2": ("Qwen2Config", "Qwen2Model", _DECODER),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _DECODER),
    "gemma3": ("Gemma3TextConfig", "Gemma3TextModel", _DECODER | {"use_bidirectional_attention": True}),
}
"""Name → configuration, network and fields of the configuration beside the common sizes."""
MIXERS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "fnet": ("FNetConfig", "FNetModel", {}),
    "convbert": ("ConvBertConfig", "ConvBertModel", {"embedding_size": 32}),
}
"""Networks that mix tokens with their padding."""


def save_kind(
    folder: Path, network: str, *, pooling: str | list[str] = "mean", head: list[Any] = (), **stated: Any
) -> Path:
    """Save a folder of Transformer, Pooling and `head`.

    `head` holds the names of modules, or (in, out, fields) of Dense ones. `stated`: include_prompt, settings (those of
    the Transformer), settings_name, tokenizer, config (fields of config.json), and fields of
    config_sentence_transformers.json.
    """
    config_name, model_name, fields = {**NETWORKS, **MIXERS}[network]
    sizes = {name: value for name, value in SIZES.items() if name != "initializer_range"}
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**{**sizes, **fields, **stated.pop("config", {})})
    model = getattr(transformers, model_name)(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 0.2)  # otherwise all vectors would be nearly the same
    model.save_pretrained(folder)
    save_tokenizer(folder, **stated.pop("tokenizer", {}))
    edit_json(
        folder / stated.pop("settings_name", "sentence_bert_config.json"),
        {"max_seq_length": 60} | stated.pop("settings", {}),
    )
    include = {"include_prompt": stated.pop("include_prompt", True)}
    edit_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": 32, "pooling_mode": pooling} | include)
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *save_head(folder, head)]
    write_modules(folder, modules)
    edit_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "dot"} | stated)
    return folder


def save_static(folder: Path, head: list[Any], *, model2vec: bool, **stated: Any) -> Path:
    """Save a table of token vectors in the layout of sentence-transformers or of model2vec."""
    save_tokenizer(folder)
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(VOCABULARY, 32)).astype(np.float32))
    extra = {"mapping": torch.arange(VOCABULARY).flip(0), "weights": torch.rand(VOCABULARY)} if model2vec else {}
    save_file({"embeddings" if model2vec else "embedding.weight": table, **extra}, folder / "model.safetensors")
    write_modules(folder, [("StaticEmbedding", ""), *save_head(folder, head)])
    edit_json(folder / "config_sentence_transformers.json", stated)
    return folder


def save_head(folder: Path, head: list[Any]) -> list[tuple[str, str]]:
    """Save the modules after the pooling; return their classes and folders."""
    saved = []
    for number, module in enumerate(head, 2):
        kind = module if isinstance(module, str) else "Dense"
        place = folder / f"{number}_{kind}"
        if kind == "Dense":
            inputs, outputs, fields = module
            rng = torch.Generator().manual_seed(number)
            weights = {"linear.weight": torch.randn(outputs, inputs, generator=rng)}
            if fields.get("bias", True):
                weights["linear.bias"] = torch.randn(outputs, generator=rng)
            if fields.get("use_residual") and inputs != outputs:
                weights["residual.weight"] = torch.randn(outputs, inputs, generator=rng)
            edit_json(place / "config.json", {"in_features": inputs, "out_features": outputs, "bias": True, **fields})
            save_file(weights, place / "model.safetensors")
        elif kind == "LayerNorm":
            edit_json(place / "config.json", {"dimension": 32})
            save_file({"norm.weight": torch.rand(32), "norm.bias": torch.rand(32)}, place / "model.safetensors")
        elif kind == "Dropout":
            edit_json(place / "config.json", {"dropout": 0.5})
        saved.append((kind, place.name))
    return saved


def write_modules(folder: Path, modules: list[tuple[str, str]], package: str = "sentence_transformers.models") -> None:
    """Write modules.json, with the classes in `package`."""
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"{package}.{kind}"} for n, (kind, path) in enumerate(modules)
    ]
    edit_json(folder / "modules.json", listed)
