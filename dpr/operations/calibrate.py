"""A few seconds of real work on the device that will encode: how long passages are in tokens, and how fast it goes."""

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dpr.encoder.compute import Compute
from dpr.encoder.tokens import TokenBatch, TowerTokenizer
from dpr.formats.cut_texts import CutTexts
from dpr.stages.embed import EmbedContext

ENCODE_SECONDS = 2.5


@dataclass(frozen=True)
class Sample:
    """Passages on which to try an encoder."""

    passages: pa.Table
    """Columns title and text."""
    record: str = "calibrate"
    read_bytes: int = 0

    @property
    def rows(self) -> int:
        return int(self.passages.num_rows)


@dataclass(frozen=True)
class Calibration:
    """The measurements of the sample."""

    start_seconds: float
    """Until the encoder was ready."""
    tokens_per_passage: float
    passages: int
    """Passages of the sample."""
    cut: CutTexts
    """Tokens that they lose to the token limit."""
    tokenise_tokens: float
    """Tokens a second that one core makes."""
    encode_tokens: float
    """Tokens a second that one encoder encodes."""
    encoder: str
    """Its choice of arithmetic and forward pass, and the reason."""
    record: str = "calibrate"


class Calibrate:
    """Tokenises and encodes a sample of passages where encoders run."""

    def __init__(self, context: EmbedContext, compute: Compute) -> None:
        started = time.perf_counter()
        from dpr.encoder.encode import TowerEncoder  # PyTorch, as in Encode

        tower = context.open_spec().passage
        self._tokenizer, self._encoder = TowerTokenizer(tower), TowerEncoder(tower, compute)
        self._start_seconds = time.perf_counter() - started

    def __call__(self, sample: Sample) -> Calibration:
        titles, texts = sample.passages["title"].to_pylist(), sample.passages["text"].to_pylist()
        self._tokenizer.passages(titles[:8], texts[:8])
        started = time.perf_counter()
        tokens = self._tokenizer.passages(titles, texts)
        seconds = time.perf_counter() - started
        total = len(tokens.ids_T)
        return Calibration(
            start_seconds=self._start_seconds,
            tokens_per_passage=total / len(tokens),
            passages=len(tokens),
            cut=tokens.cut(),
            tokenise_tokens=total / seconds,
            encode_tokens=self._encode(tokens),
            encoder=self._encoder.choice,
        )

    def _encode(self, tokens: TokenBatch) -> float:
        """Return the tokens per second of the last of ever larger samples, so that warming up does not count."""
        rng = np.random.default_rng(0)
        rows, spent = 16, 0.0
        while True:
            drawn = tokens.select(rng.integers(0, len(tokens), rows))
            started = time.perf_counter()
            self._encoder.encode(drawn)
            seconds = time.perf_counter() - started
            spent += seconds
            if spent > ENCODE_SECONDS:
                return len(drawn.ids_T) / seconds
            rows *= 2
