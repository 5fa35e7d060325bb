"""A tiny encoder and corpora, made on the spot: a random BERT over whole words, small enough for any test."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import BertConfig

WORDS = [f"w{number}" for number in range(200)]


def make_encoder(
    folder: Path,
    seed: int = 0,
    dim: int = 32,
    words: Sequence[str] = WORDS,
    max_tokens: int = 64,
    *,
    spread: float = 0.02,
) -> Path:
    """Make a plain BERT folder (the recipe must state `pooling`) whose vocabulary is `words`, letters and digits.

    `spread` is the standard deviation of its weights: with a larger one, passages differ more.
    """
    import torch  # takes seconds; tests without an encoder do not need it
    from transformers import BertModel

    config = _save_tokenizer(folder, dim, words, max_tokens)
    config.initializer_range = spread
    torch.manual_seed(seed)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def make_static_encoder(folder: Path) -> Path:
    """Make a folder of static embeddings.

    Encoding with it does not import transformers, which takes five CPU seconds.
    """
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["[UNK]", *WORDS])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    table_VD = np.random.default_rng(0).normal(size=(1 + len(WORDS), 32)).astype(np.float32)
    save_file({"embedding.weight": table_VD}, folder / "model.safetensors")
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps([module]))
    return folder


def make_cross_encoder(folder: Path, seed: int = 0) -> Path:
    """Make a cross-encoder with one label, as sentence-transformers reads it, over the same words."""
    import torch
    from transformers import BertForSequenceClassification

    config = _save_tokenizer(folder, 32, WORDS, 64)
    config.num_labels, config.initializer_range = 1, 0.2  # at 0.02 all scores would be nearly the same
    torch.manual_seed(seed)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path, dim: int, words: Sequence[str], max_tokens: int) -> "BertConfig":
    """Save a tokenizer over words, letters and digits; return the configuration of a network for it."""
    from transformers import BertConfig, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in (*range(97, 123), *range(48, 58))]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=max_tokens)
    tokenizer.save_pretrained(folder)
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * dim,
        max_position_embeddings=max_tokens,
    )


def random_texts(rows: int, name: str = "p", seed: int = 0, min_words: int = 3, max_words: int = 12) -> dict[str, str]:
    """Return id → text for `rows` random passages, whose ids are `name` and a number."""
    rng = np.random.default_rng(seed)
    return {f"{name}{n:03d}": " ".join(rng.choice(WORDS, rng.integers(min_words, max_words + 1))) for n in range(rows)}


def write_jsonl(path: Path, passages: Mapping[str, str] | Iterable[tuple[str, str]]) -> Path:
    """Write a JSONL corpus of id → text."""
    pairs = passages.items() if isinstance(passages, Mapping) else passages
    path.write_text("".join(json.dumps({"id": i, "title": "", "text": text}) + "\n" for i, text in pairs))
    return path


class Quiet:
    """Progress that prints nothing, and remembers the rows of each stage and all messages."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        """Stage → rows done now; stages in the order in which they first began."""
        self.messages: list[str] = []
        """`TOPIC: TEXT`."""
        self.details: list[str] = []
        self._stage = ""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:  # noqa: ARG002
        self._stage = stage
        self.rows.setdefault(stage, 0)

    def advance(self, rows: int, detail: str = "") -> None:
        self.rows[self._stage] += rows
        self.details.append(detail)

    def message(self, topic: str, text: str) -> None:
        self.messages.append(f"{topic}: {text}")

    def finish(self, summary: str) -> None:
        pass
