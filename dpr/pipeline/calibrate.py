"""A few seconds of real work on the device that will encode: how long passages are in tokens, and how fast it goes."""

import time
from typing import Any

import numpy as np

from dpr.encoder.compute import Compute
from dpr.encoder.tokens import TokenBatch, TowerTokenizer
from dpr.pipeline.embed import EmbedContext, from_ipc
from dpr.pipeline.execute import Unit

ENCODE_SECONDS = 2.5


class Calibrate:
    """Tokenises and encodes a sample of passages; the unit that comes out holds tokens a second, and tokens a passage.

    It is a step of its own stage, so it runs where encoders run.
    """

    def __init__(self, context: EmbedContext, compute: Compute) -> None:
        started = time.perf_counter()
        from dpr.encoder.encode import TowerEncoder  # PyTorch, as in Encode

        spec = context.open_spec().passage
        self._tokenizer, self._encoder = TowerTokenizer(spec), TowerEncoder(spec, compute)
        self._encoder.limit_seconds(np.zeros(0, np.int64))
        self._start_seconds = time.perf_counter() - started

    def __call__(self, unit: Unit) -> Unit:
        sample = from_ipc(unit["passages"])
        titles, texts = sample["title"].to_pylist(), sample["text"].to_pylist()
        self._tokenizer.passages(titles[:8], texts[:8])
        started = time.perf_counter()
        tokens = self._tokenizer.passages(titles, texts)
        seconds = time.perf_counter() - started
        total = int(tokens.lengths().sum())
        return {
            "start_seconds": self._start_seconds,
            "tokens_per_passage": total / len(tokens),
            "tokenise_tokens": total / seconds,
            "encode_tokens": self._encode(tokens),
            "limit_tokens": total / self._encoder.limit_seconds(tokens.lengths()),
            "encoder": self._encoder.choice,
        }

    def _encode(self, tokens: TokenBatch) -> float:
        """Tokens a second over the last of ever larger draws, so that what is slow at first does not count."""
        rng: Any = np.random.default_rng(0)
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
