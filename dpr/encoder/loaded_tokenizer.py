"""The tokenizer of a tower, read from the model's files and kept in this machine's cache as text."""

import json
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer, normalizers

from dpr.encoder.fast_tokenizer import read_fast
from dpr.encoder.model_files import digest_files
from dpr.encoder.tower import TowerSpec
from dpr.fingerprint import fingerprint
from dpr.store.cache import local_cache


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tower's tokenizer as transformers reads it from its files, as text, to travel between processes.

    A process that has it need not import transformers, which takes ten seconds on some machines.
    """

    json: str
    """The `tokenizers` library's own description, with the tower's token limit."""
    cuts_right: bool
    """Whether a text that is too long loses its end, not its start."""


def load_tokenizer(tower: TowerSpec) -> LoadedTokenizer:
    """Load the fast backend of transformers' tokenizer, with this tower's limit and without padding.

    This machine's cache keeps it, so that transformers is imported once for each model. Raises EncoderError if there is
    none.
    """
    if tower.architecture == "StaticEmbedding":
        return _load_static(tower)
    versions = [version(library) for library in ("transformers", "tokenizers")]
    parts = [digest_files(tower.folder, []), tower.max_tokens, tower.lowercase, *versions]
    cache, key = local_cache(), f"tokenizers/{fingerprint(parts)}.txt"
    path = cache.fetch(key, partial(_write_fast, tower))
    side, _, text = path.read_text(encoding="utf-8").partition("\n")
    return LoadedTokenizer(text, side == "right")


def _write_fast(tower: TowerSpec, path: Path) -> None:
    loaded = _load_fast(tower)
    path.write_text(f"{'right' if loaded.cuts_right else 'left'}\n{loaded.json}", encoding="utf-8")


def _load_fast(tower: TowerSpec) -> LoadedTokenizer:
    fast = read_fast(tower.folder, tower.reference)
    tokenizer = Tokenizer.from_str(fast.json)
    if tower.lowercase:
        normalizer = tokenizer.normalizer
        steps = [normalizers.Lowercase(), *([normalizer] if normalizer is not None else [])]
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.no_padding()
    tokenizer.enable_truncation(tower.max_tokens, strategy="longest_first", direction=fast.truncation_side)
    return LoadedTokenizer(tokenizer.to_str(), fast.truncation_side == "right")


def _load_static(tower: TowerSpec) -> LoadedTokenizer:
    """Load the tokenizer of a table of token vectors, which takes no special tokens."""
    tokenizer = Tokenizer.from_file(str(tower.folder / "tokenizer.json"))
    truncation = tokenizer.truncation or {}
    tokenizer.no_padding()
    direction = truncation.get("direction", "right").lower()
    tokenizer.enable_truncation(tower.max_tokens, strategy="longest_first", direction=direction)
    without = json.loads(tokenizer.to_str()) | {"post_processor": None}
    return LoadedTokenizer(json.dumps(without), direction == "right")
