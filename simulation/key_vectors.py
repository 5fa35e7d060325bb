"""An encoder that costs next to nothing: the vector of a text is made from the hash of the text.

It stands where the model stands, behind the same steps and the same question encoder, so that all other code of a night
is that of the product. Equal texts have equal vectors, as with a model; unlike a model's, vectors of similar texts have
nothing in common.

Shapes: N rows, Q questions, D dimensions, at most 16.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from dpr.encoder.compute import Compute
from dpr.fingerprint import KEY_BYTES, content_hash
from dpr.formats.cut_texts import CutTexts
from dpr.recipe import EncoderConfig
from dpr.stages.embed import EmbedContext
from dpr.stages.write_segment import SegmentUnit, Vectored
from dpr.store import open_store

Nudge = Callable[[npt.NDArray[np.float16]], npt.NDArray[np.float16]]
"""Changes vectors a little, as other hardware does."""


def make_model(folder: Path, dim: int) -> Path:
    """Make the folder of a model that no code loads: it gives the width of vectors, and an identity."""
    if not 1 <= dim <= KEY_BYTES:
        raise ValueError(f"vectors made from keys have 1 to {KEY_BYTES} components, not {dim}")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding.weight": np.ones((1, dim), np.float32)}, folder / "model.safetensors")
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.StaticEmbedding"}
    (folder / "modules.json").write_text(json.dumps([module]), encoding="utf-8")
    return folder


def vectors_of(hashes: Sequence[bytes] | npt.NDArray[np.uint8], dim: int) -> npt.NDArray[np.float32]:
    """Return vectors (N, D) of length 1 for 128-bit hashes, or for their bytes (N, 16)."""
    if isinstance(hashes, np.ndarray):
        bytes_N16 = hashes
    else:
        bytes_N16 = np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, KEY_BYTES)
    raw_ND = bytes_N16[:, :dim].astype(np.float32) - np.float32(127.5)  # never zero, so each row has a direction
    vectors_ND: npt.NDArray[np.float32] = raw_ND / np.linalg.norm(raw_ND, axis=1, keepdims=True)
    return vectors_ND


@dataclass(frozen=True)
class _Read:
    """A unit and its rows of the changes file, where a model's tokens would be."""

    unit: SegmentUnit
    changed: pa.Table

    @property
    def record(self) -> str:
        return self.unit.record


class _ReadKeys:
    """Stands for the step that tokenises."""

    def __init__(self, context: EmbedContext, *_: object) -> None:
        self._store = open_store(context.store_url)

    def __call__(self, unit: SegmentUnit) -> _Read:
        return _Read(unit, unit.changed_rows(self._store))


class _EncodeKeys:
    """Stands for the step that encodes."""

    def __init__(self, nudge: Nudge | None, context: EmbedContext, compute: Compute) -> None:  # noqa: ARG002
        self._dim, self._nudge = context.open_spec().dim, nudge

    def __call__(self, read: _Read) -> Vectored:
        hashes = read.changed["content_hash"].combine_chunks()
        start, stop = hashes.offset * KEY_BYTES, (hashes.offset + len(hashes)) * KEY_BYTES
        bytes_N16 = np.frombuffer(hashes.buffers()[1], np.uint8)[start:stop].reshape(-1, KEY_BYTES)
        vectors_ND = vectors_of(bytes_N16, self._dim).astype(np.float16)
        if self._nudge is not None:
            vectors_ND = self._nudge(vectors_ND)
        seconds = dict.fromkeys(("read", "tokenise", "encode", "wait"), 0.0)
        return Vectored(
            unit=read.unit,
            changed=read.changed,
            vectors_ND=vectors_ND,
            refused={},
            tokens=0,
            seconds=seconds,
            encoder="vectors made from keys",
        )


@dataclass(frozen=True)
class _Encoded:
    vectors_QD: npt.NDArray[np.float32]
    cut: CutTexts


class _EncodeQuestions:
    """Stands for the encoder of questions."""

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def encode_counted(self, texts: Sequence[str]) -> _Encoded:
        return _Encoded(vectors_of([content_hash("", text) for text in texts], self._dim), CutTexts())


@contextlib.contextmanager
def vectors_from_keys(dim: int, nudge: Nudge | None = None) -> Iterator[None]:
    """Let every night of this process make its vectors from keys, and load no model."""

    def question_encoder(_: EncoderConfig) -> _EncodeQuestions:
        return _EncodeQuestions(dim)

    def make_encoder(context: EmbedContext, compute: Compute) -> _EncodeKeys:
        return _EncodeKeys(nudge, context, compute)

    with contextlib.ExitStack() as patches:
        for name, value in (
            ("dpr.stages.embed.Tokenise", _ReadKeys),
            ("dpr.stages.embed.Encode", make_encoder),
            ("dpr.stages.question_vectors.question_encoder", question_encoder),
            ("dpr.stages.new_sentences.question_encoder", question_encoder),
        ):
            patches.enter_context(patch(name, value))
        yield
