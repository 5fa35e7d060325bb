"""Tokenising: texts in, ragged token ids out.

Shapes: N rows, T tokens of all rows together.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save
from tokenizers import Tokenizer

from dpr.encoder.spec import TowerSpec

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of N texts, one after another, without padding."""

    ids_T: npt.NDArray[np.int32]
    types_T: npt.NDArray[np.uint8]
    """0 for the first text of a pair, 1 for the second."""
    offsets: npt.NDArray[np.int64]
    """(N + 1,): row n has tokens offsets[n] to offsets[n + 1]."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths_N(self) -> npt.NDArray[np.int64]:
        return np.diff(self.offsets)

    def select(self, rows: npt.NDArray[np.int64]) -> "TokenBatch":
        """The tokens of some rows, in the order asked for."""
        lengths = self.lengths_N[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        picked_T = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return TokenBatch(self.ids_T[picked_T], self.types_T[picked_T], offsets)

    def to_bytes(self) -> bytes:
        """As safetensors, to travel between processes."""
        return save({"ids": self.ids_T, "types": self.types_T, "offsets": self.offsets})

    @classmethod
    def from_bytes(cls, data: bytes) -> "TokenBatch":
        """What `to_bytes` packed."""
        tensors = load(data)
        return cls(tensors["ids"], tensors["types"], tensors["offsets"])


class TowerTokenizer:
    """The tokenizer of a tower, with its prefix, its way to join title and text, and its token limit."""

    def __init__(self, tower: TowerSpec) -> None:
        self._tower = tower
        self._tokenizer = Tokenizer.from_file(str(tower.folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        # of a pair the longer text is cut first, as transformers does by default
        self._tokenizer.enable_truncation(tower.max_tokens, strategy="longest_first")

    def passages(self, titles: Sequence[str], texts: Sequence[str]) -> TokenBatch:
        """Tokens of passages: `[CLS] title [SEP] text [SEP]` (pair), or title, a space and text as one (space)."""
        prefix = self._tower.prefix
        if self._tower.title_join == "pair":
            return self._encode([(prefix + title, text) for title, text in zip(titles, texts, strict=True)])
        joined = (f"{title} {text}" if title else text for title, text in zip(titles, texts, strict=True))
        return self._encode([prefix + text for text in joined])

    def questions(self, texts: Sequence[str]) -> TokenBatch:
        """Tokens of questions."""
        return self._encode([self._tower.prefix + text for text in texts])

    def _encode(self, inputs: Sequence[str] | Sequence[tuple[str, str]]) -> TokenBatch:
        found = self._tokenizer.encode_batch_fast(list(inputs))
        offsets = np.concatenate([[0], np.cumsum([len(one.ids) for one in found], dtype=np.int64)])
        ids_T = np.fromiter((number for one in found for number in one.ids), np.int32, offsets[-1])
        types_T = np.zeros(len(ids_T), np.uint8)
        if self._tower.title_join == "pair":
            types_T = np.fromiter((number for one in found for number in one.type_ids), np.uint8, offsets[-1])
        return TokenBatch(ids_T, types_T, offsets)
