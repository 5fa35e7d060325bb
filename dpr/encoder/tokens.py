"""Tokenising: texts become token ids, exactly as transformers' own tokenizer of the model gives them.

Shapes: N rows, T tokens of all rows together.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from dpr.encoder.fast_tokenizer import from_transformers
from dpr.encoder.loaded_tokenizer import LoadedTokenizer, load_tokenizer
from dpr.encoder.template import Pieces, by_words
from dpr.encoder.tower import TowerSpec
from dpr.formats.cut_texts import CutTexts

# the library's own threads would take every processor, and would not survive a fork; threads are made here instead
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TEXTS_PER_CALL = 1024
"""Few enough to bound memory: the library also returns every token as a string, gigabytes for a whole unit."""


@dataclass(frozen=True)
class TokenBatch:
    """Token ids of N texts, one after another without padding: small, and cheap to send to another process."""

    ids_T: npt.NDArray[np.int32]
    types_T: npt.NDArray[np.uint8]
    """Token types: 0 for the first text of a pair, 1 for the second, if the model distinguishes them."""
    offsets: npt.NDArray[np.int64]
    """(N + 1,), from 0 to T: row n has the tokens from offsets[n] to offsets[n + 1]."""
    lost_N: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """Tokens that each text lost to the token limit; (0,) in a selection, since encoders do not ask."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: slice) -> "TokenBatch":
        return self.select(np.arange(len(self))[rows])

    def lengths(self) -> npt.NDArray[np.int64]:
        """Return the number of tokens of each row (N,)."""
        return np.diff(self.offsets)

    def cut(self) -> CutTexts:
        """Return how many of the texts were cut, and what they lost; unknown for a selection."""
        lost = int(self.lost_N.sum())
        return CutTexts(texts=int(np.count_nonzero(self.lost_N)), lost_tokens=lost, tokens=len(self.ids_T) + lost)

    def select(self, rows: npt.NDArray[np.int64]) -> "TokenBatch":
        """Return the tokens of `rows`, in this order; a row may occur more than once."""
        lengths = self.lengths()[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        picked_T = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return TokenBatch(self.ids_T[picked_T], self.types_T[picked_T], offsets)


SHORTEST = TokenBatch(np.zeros(2, np.int32), np.zeros(2, np.uint8), np.array([0, 2]))
"""One row of two tokens, which any encoder can encode: to test one."""


class TowerTokenizer:
    """The tokenizer of a tower, with its prefix, its join of title and text, and its token limit.

    A pair that is too long loses tokens from the end of the longer text first (`longest_first`): that is what
    `truncation=True` means to transformers, and what DPR's released code does. Tokenizers of BERT's kind are used for
    words only, others for whole texts, in several `threads`. `loaded` is what `load_tokenizer` returns for this tower.
    """

    def __init__(self, tower: TowerSpec, threads: int = 1, loaded: LoadedTokenizer | None = None) -> None:
        loaded = loaded or load_tokenizer(tower)
        self._tower, self._threads = tower, threads
        self._tokenizer = Tokenizer.from_str(loaded.json)
        self._json = loaded.json
        self._words = by_words(self._tokenizer, tower.max_tokens, threads) if loaded.cuts_right else None

    @cached_property
    def uncut(self) -> Tokenizer:
        """Return the same tokenizer without a token limit.

        It is made when it is first needed, which is rarely the case.
        """
        made = Tokenizer.from_str(self._json)
        made.no_truncation()
        return made

    def passages(self, titles: Sequence[str], texts: Sequence[str]) -> TokenBatch:
        """Return the tokens of N passages. Raises ValueError if there are not as many titles as texts.

        Joined by `pair`: [CLS] prefix + title [SEP] text [SEP], also for an empty title. Joined by `space`: prefix,
        title, one space and text as one text; prefix and text if the title is empty.
        """
        prefix = self._tower.prefix
        pairs = list(zip(titles, texts, strict=True))
        if self._tower.title_join == "pair":
            return self._tokens([(prefix + title, text) for title, text in pairs])
        return self._tokens([f"{prefix}{title} {text}" if title else prefix + text for title, text in pairs])

    def questions(self, texts: Sequence[str]) -> TokenBatch:
        """Return the tokens of N questions, each after the prefix."""
        return self._tokens([self._tower.prefix + text for text in texts])

    def text(self, ids_T: npt.NDArray[np.int32]) -> str:
        """Return the text of tokens, as far as it can be recovered: a tokenizer may drop case or accents."""
        text: str = self._tokenizer.decode(ids_T.tolist())
        return text

    def _tokens(self, inputs: Sequence[str] | Sequence[tuple[str, str]]) -> TokenBatch:
        if len(inputs) == 1 and isinstance(inputs[0], str):
            return self._alone(inputs[0])

        def tokenise(first: int) -> Pieces:
            some_inputs = inputs[first : first + TEXTS_PER_CALL]
            if self._words is not None:
                return self._words(some_inputs)
            encodings = self._tokenizer.encode_batch_fast(some_inputs)
            return _pieces(encodings, self._lost(some_inputs, encodings))

        starts = range(0, len(inputs), TEXTS_PER_CALL)
        if self._threads == 1 or len(starts) == 1 or self._words is not None:
            pieces = [tokenise(first) for first in starts]
        else:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="tokenise") as pool:
                pieces = list(pool.map(tokenise, starts))
        lengths = np.concatenate([np.zeros(1, np.int64), *(piece.lengths_N for piece in pieces)])
        return TokenBatch(
            np.concatenate([np.zeros(0, np.int32), *(piece.ids_T for piece in pieces)]),
            np.concatenate([np.zeros(0, np.uint8), *(piece.types_T for piece in pieces)]),
            np.cumsum(lengths, dtype=np.int64),
            np.concatenate([np.zeros(0, np.int64), *(piece.lost_N for piece in pieces)]),
        )

    def _alone(self, text: str) -> TokenBatch:
        """Return the tokens of one text. The library alone is faster for it than words are."""
        encoding = self._tokenizer.encode(text)
        ids_T, types_T = np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.uint8)
        return TokenBatch(ids_T, types_T, np.array([0, len(ids_T)]), self._lost([text], [encoding]))

    def _lost(
        self, inputs: Sequence[str] | Sequence[tuple[str, str]], encodings: Sequence[Encoding]
    ) -> npt.NDArray[np.int64]:
        """Return the tokens (N,) that each input lost.

        The library keeps what it cut off as further encodings. For a pair these are all combinations of the pieces of
        both texts, from which no count follows, so pairs that may have been cut are tokenised again.
        """
        lost_N = np.zeros(len(inputs), np.int64)
        cut = [row for row, encoding in enumerate(encodings) if encoding.overflowing]
        if cut and not isinstance(inputs[0], str):
            whole = self.uncut.encode_batch_fast([inputs[row] for row in cut])
            lost_N[cut] = [len(each) - len(encodings[row]) for row, each in zip(cut, whole, strict=True)]
        else:
            specials = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            lost_N[cut] = [sum(len(piece) - specials for piece in encodings[row].overflowing) for row in cut]
        return lost_N


def _pieces(encodings: Sequence[Encoding], lost_N: npt.NDArray[np.int64]) -> Pieces:
    """Return what the library found as arrays."""
    lengths = np.fromiter((len(each) for each in encodings), np.int64, len(encodings))
    total = int(lengths.sum())

    def flat(take: Callable[[Encoding], list[int]], dtype: type[np.generic]) -> npt.NDArray[np.generic]:
        return np.fromiter(chain.from_iterable(map(take, encodings)), dtype, total)

    ids_T, types_T = flat(lambda each: each.ids, np.int32), flat(lambda each: each.type_ids, np.uint8)
    return Pieces(ids_T, types_T, lengths, lost_N)  # type: ignore[arg-type]


def prompt_tokens(tower: TowerSpec) -> int:
    """Return how many tokens of a row belong to the tower's prefix, special tokens before it included.

    Counted as sentence-transformers does: the tokens of the prefix alone, without a special token at the end.
    """
    ids = TowerTokenizer(tower).questions([""]).ids_T.tolist() if tower.prefix else []
    special = set(from_transformers(tower.folder, tower.reference).all_special_ids) if ids else set()
    return len(ids) - 1 if ids and ids[-1] in special else len(ids)
