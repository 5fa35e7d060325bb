"""What the packed encoder is compared with: the same network, weights and tokens, run as others run them."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertModel

from dpr.encoder.tokens import TokenBatch

CUDA = torch.device("cuda")
MAX_TOKENS = 256


@dataclass
class Report:
    """Rows of the table, and sentences under it."""

    limit: float = 0.0
    rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, rate: float, tokens_a_passage: float) -> None:
        """One way, its passages a second, and the real tokens of a passage."""
        self.rows.append(f"| {what} | {rate:,.0f} | {rate * tokens_a_passage / 1e6:.2f} | {rate / self.limit:.3f} |")
        print(self.rows[-1], flush=True)

    def note(self, said: str) -> None:
        """A sentence."""
        self.notes.append(f"- {said}")
        print(self.notes[-1], flush=True)


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def sentence_transformers(report: Report, folder: Path, tokens: TokenBatch, texts: list[str]) -> None:
    """Its `encode` on features made beforehand, so that its tokenising is not counted; settings searched.

    cuDNN's attention, PyTorch's first choice here for bf16, makes a plan for each new shape: measured without it, and
    with it after a whole pass.
    """
    body = Transformer(str(folder), max_seq_length=MAX_TOKENS)
    mean_tokens = float(tokens.lengths().mean())
    for name, dtype, precision, rows, cudnn, sizes in (
        ("bf16 without cuDNN's attention", torch.bfloat16, "high", 20_000, False, (128, 256, 512, 1024)),
        ("bf16 with cuDNN's attention", torch.bfloat16, "high", 20_000, True, (256, 512, 1024)),
        ("fp32 with tf32 products", torch.float32, "high", 8_000, False, (256, 512)),
        ("fp32", torch.float32, "highest", 4_000, False, (256,)),
    ):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        torch.set_float32_matmul_precision(precision)
        model = SentenceTransformer(modules=[body, Pooling(768, "mean")], device="cuda").to(dtype)
        preprocess, unit = model.preprocess, tokens.select(np.arange(rows) % len(tokens))
        model.preprocess = lambda inputs, **_: features(unit.select(np.array([int(x) for x in inputs])))  # noqa: B023
        # strings as long as the passages have tokens, since it sorts by length; they say which row they stand for
        inputs = [str(row).ljust(int(length)) for row, length in enumerate(unit.lengths())]
        rates = {}
        for size in sizes:
            model.encode(inputs if cudnn else inputs[:2000], batch_size=size)
            rates[size] = rows / timed(lambda: model.encode(inputs, batch_size=size))  # noqa: B023
        best = max(rates, key=rates.__getitem__)
        report.add(
            f"sentence-transformers `encode`, {name}, tokenised before, {best} a batch", rates[best], mean_tokens
        )
        report.note(
            f"sentence-transformers {name}, passages/s by batch size: { ({k: round(v) for k, v in rates.items()}) }"
        )
        if dtype == torch.bfloat16 and not cudnn:
            model.preprocess = preprocess
            seconds = timed(lambda: model.encode(texts, batch_size=best))  # noqa: B023
            report.add(
                f"sentence-transformers `encode`, {name}, its own tokenising counted", len(texts) / seconds, mean_tokens
            )
        body.float()
    torch.backends.cuda.enable_cudnn_sdp(True)


def features(tokens: TokenBatch, length: int | None = None) -> dict[str, Any]:
    """As a tokenizer gives them, padded to the longest or to `length`."""
    lengths_N = tokens.lengths()
    real_NL = np.arange(length or lengths_N.max())[None, :] < lengths_N[:, None]
    ids_NL, types_NL = np.zeros(real_NL.shape, np.int64), np.zeros(real_NL.shape, np.int64)
    ids_NL[real_NL], types_NL[real_NL] = tokens.ids_T, tokens.types_T
    arrays = {"input_ids": ids_NL, "token_type_ids": types_NL, "attention_mask": real_NL.astype(np.int64)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def padded_loop(report: Report, folder: Path, tokens: TokenBatch) -> None:
    """As the original DPR: every passage padded to 256 tokens, one batch after another, the first token's vector."""
    mean_tokens = float(tokens.lengths().mean())
    for name, dtype, precision, rows, size in (
        ("bf16", torch.bfloat16, "high", 8_192, 512),
        ("fp32", torch.float32, "highest", 2_048, 256),
    ):
        torch.set_float32_matmul_precision(precision)
        body = BertModel.from_pretrained(folder, add_pooling_layer=False, dtype=dtype).to(CUDA).eval()
        batches = [features(tokens.select(np.arange(i, i + size)), MAX_TOKENS) for i in range(0, rows, size)]

        def one(batch: dict[str, Any]) -> torch.Tensor:
            inputs = {key: value.to(CUDA) for key, value in batch.items()}
            return body(**inputs).last_hidden_state[:, 0].float().cpu()  # noqa: B023

        with torch.inference_mode():
            one(batches[0])
            seconds = timed(lambda: [one(batch) for batch in batches])  # noqa: B023
        report.add(f"padded to {MAX_TOKENS} as the original DPR, {name}, {size} a batch", rows / seconds, mean_tokens)
