"""Small random cross-encoders, in every form in which sentence-transformers saves them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from tests.encoder.models import PIECES, SIZES, edit_json, save_tokenizer


def save_cross_bert(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Save a BERT with one label in the oldest form: config.json alone says how it scores."""
    torch.manual_seed(seed)
    save_tokenizer(folder)
    BertForSequenceClassification(BertConfig(**{**SIZES, "num_labels": 1, **settings})).save_pretrained(folder)
    return folder


def save_cross_distilbert(folder: Path) -> Path:
    """Save a network that knows no token types."""
    torch.manual_seed(0)
    save_tokenizer(folder, model_input_names=["input_ids", "attention_mask"])
    sizes = {"vocab_size": SIZES["vocab_size"], "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    config = DistilBertConfig(**sizes, max_position_embeddings=300, initializer_range=0.2, num_labels=1)
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    return folder


def save_cross_modernbert(folder: Path) -> Path:
    """Save a network whose positions are rotations."""
    torch.manual_seed(0)
    save_tokenizer(folder, model_max_length=200, model_input_names=["input_ids", "attention_mask"])
    sizes = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    ends = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = ModernBertConfig(**sizes, **ends, intermediate_size=64, initializer_range=0.2, num_labels=1)
    ModernBertForSequenceClassification(config).save_pretrained(folder)
    return folder


def save_cross_xlm_roberta(folder: Path) -> Path:
    """Save an XLM-RoBERTa: two separators between the texts of a pair, one token type, positions after the padding's.

    It states its limit, as those on the hub do: without one, sentence-transformers would overrun the positions.
    """
    torch.manual_seed(0)
    words = ["<s>", "<pad>", "</s>", "<unk>", *dict.fromkeys(piece for piece in PIECES if piece[0] not in "[#")]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    named = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        model_max_length=298,
        model_input_names=["input_ids", "attention_mask"],
        **named,
    ).save_pretrained(folder)
    ends = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1, "num_labels": 1}
    config = XLMRobertaConfig(**{**SIZES, **ends, "vocab_size": len(words)})
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def save_installed(save: Callable[[Path], Path], folder: Path, **arguments: Any) -> Path:
    """Save a cross-encoder in the form of the installed sentence-transformers."""
    model = CrossEncoder(str(save(folder / "before")), device="cpu", **arguments)
    model.save_pretrained(str(folder / "after"))
    return folder / "after"


def identity_in_config(folder: Path) -> Path:
    """Save a BERT whose activation stands where sentence-transformers 4 and 5 put it."""
    path = "torch.nn.modules.linear.Identity"
    edit_json(save_cross_bert(folder) / "config.json", {"sentence_transformers": {"activation_fn": path}})
    return folder


def tanh_of_old(folder: Path) -> Path:
    """Save a BERT whose activation stands where sentence-transformers 3 put it."""
    path = "torch.nn.modules.activation.Tanh"
    edit_json(save_cross_bert(folder) / "config.json", {"sbert_ce_default_activation_function": path})
    return folder
