"""Small random models of every kind, saved as their makers save them, and random tokens for them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    MPNetConfig,
    MPNetModel,
)

from dpr.encoder.tokens import TokenBatch

WORDS = [
    "the",
    "a",
    "of",
    "in",
    "and",
    "is",
    "was",
    "river",
    "city",
    "king",
    "ocean",
    "history",
    "war",
    "paris",
    "light",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?-中国水人日本"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
SIZES: dict[str, Any] = {
    "vocab_size": len(dict.fromkeys(PIECES)),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 300,
    "initializer_range": 0.2,  # at 0.02 all vectors would be nearly the same, and tests would not notice errors
}
TEXTS = [
    "The first king of the city.",
    "",
    "ocean " * 400,
    "中国水人 in the history of 日本",
    "مرحبا بالعالم and नमस्ते दुनिया",
    "😀 emoji 🚀 and more 😀😀",
    "Paris is a city; the river, the stone, the light!",
    "war",
]
TITLES = ["King", "", "Ocean " * 150, "水", "", "😀", "Paris", "History of the war"]


def save_tokenizer(folder: Path, **settings: Any) -> BertTokenizer:
    """Save a WordPiece tokenizer over `PIECES`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(PIECES)) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer.from_pretrained(folder, **settings)
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_bert(folder: Path, seed: int = 0, **sizes: Any) -> Path:
    """Save a plain BERT folder, which does not state how it pools."""
    torch.manual_seed(seed)
    save_tokenizer(folder)
    BertModel(BertConfig(**{**SIZES, **sizes}), add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_mpnet(folder: Path, **sizes: Any) -> Path:
    """Save a plain MPNet folder, which does not state how it pools; its biases are as large as its scores."""
    torch.manual_seed(0)
    save_tokenizer(folder)
    body = MPNetModel(MPNetConfig(**{**SIZES, **sizes}), add_pooling_layer=False)
    torch.nn.init.normal_(body.encoder.relative_attention_bias.weight)
    body.save_pretrained(folder)
    return folder


def save_dpr(folder: Path, seed: int = 0, **sizes: Any) -> tuple[Path, Path]:
    """Save a DPR pair; return the folders of the context encoder and of the question encoder."""
    torch.manual_seed(seed)
    for name, kind in (("context", DPRContextEncoder), ("question", DPRQuestionEncoder)):
        save_tokenizer(folder / name)
        kind(DPRConfig(**{**SIZES, **sizes})).save_pretrained(folder / name)
    return folder / "context", folder / "question"


def save_sentence_transformer(folder: Path, **settings: Any) -> Path:
    """Save a sentence-transformers folder in the layout of its first five versions.

    `settings`: pooling (field of 1_Pooling/config.json), normalize, prompts, and fields of sentence_bert_config.json.
    """
    save_bert(folder)
    kinds = ["Transformer", "Pooling", "Normalize"][: 3 if settings.pop("normalize", True) else 2]
    places = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": places[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    pooling = settings.pop("pooling", {"pooling_mode_mean_tokens": True})
    prompts = settings.pop("prompts", {})
    edit_json(folder / "modules.json", modules)
    edit_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": SIZES["hidden_size"], **pooling})
    edit_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    edit_json(folder / "sentence_bert_config.json", {"max_seq_length": 64, **settings})
    return folder


def edit_json(path: Path, content: Any) -> None:
    """Write a JSON file, or update one that holds an object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and isinstance(content, dict):
        content = {**json.loads(path.read_text(encoding="utf-8")), **content}
    path.write_text(json.dumps(content), encoding="utf-8")


def save_to_hub_cache(cache: Path, hub_id: str, commit: str, model: Path, revision: str = "main") -> Path:
    """Put a model into a cache with the layout that huggingface_hub documents, as if `revision` had been fetched."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    return Path(shutil.copytree(model, repository / "snapshots" / commit))


def random_tokens(lengths: Sequence[int], vocabulary: int = SIZES["vocab_size"], seed: int = 1) -> TokenBatch:
    """Make rows of random tokens of these lengths, of both token types."""
    rng, total = np.random.default_rng(seed), sum(lengths)
    ids_T = rng.integers(2, vocabulary, total, dtype=np.int32)
    return TokenBatch(ids_T, rng.integers(0, 2, total, dtype=np.uint8), np.cumsum([0, *lengths], dtype=np.int64))
