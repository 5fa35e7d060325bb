"""Other ways to encode, for comparison: the same network, weights and tokens, run as others run them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from encode_alone import timed
from encode_report import Report
from encode_subject import MAX_TOKENS, Subject
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertModel

from dpr.encoder.encode import TowerEncoder
from dpr.encoder.precision import multiplies_bf16
from dpr.encoder.tokens import TokenBatch


@dataclass(frozen=True)
class Setting:
    """One way to run sentence-transformers; on `rows` passages, at several batch sizes."""

    name: str
    dtype: torch.dtype
    products: str
    """The argument of `torch.set_float32_matmul_precision`."""
    rows: int
    sizes: tuple[int, ...]
    cudnn: bool = False
    """Whether to use cuDNN's attention. It makes a plan for each new shape, so it is measured after a whole pass."""
    from_texts: bool = False
    """Whether to measure the best size with its own tokenising, too."""


ON_GPU = (
    Setting("bf16", torch.bfloat16, "high", 20_000, (256, 512, 1024), from_texts=True),
    Setting("bf16 with cuDNN's attention", torch.bfloat16, "high", 20_000, (512, 1024), cudnn=True),
    Setting("fp32 with tf32 products", torch.float32, "high", 8_000, (256, 512)),
    Setting("fp32", torch.float32, "highest", 4_000, (256,)),
)
ON_CPU = (
    Setting("fp32, its default batch size", torch.float32, "highest", 400, (32,), from_texts=True),
    Setting("fp32", torch.float32, "highest", 400, (8, 128)),
    Setting("bf16", torch.bfloat16, "highest", 400, (8, 16, 32, 128)),
)


def sentence_transformers(report: Report, subject: Subject) -> None:
    """Measure its `encode`, with several settings, on features made before, so that tokenising does not count."""
    for setting in ON_GPU if subject.device.type == "cuda" else ON_CPU:
        if setting.dtype == torch.bfloat16 and not multiplies_bf16(subject.device):
            continue
        torch.backends.cuda.enable_cudnn_sdp(setting.cudnn)
        torch.set_float32_matmul_precision(setting.products)
        measure(report, subject, setting, _model(subject, setting.dtype))
    torch.backends.cuda.enable_cudnn_sdp(True)


def side_by_side(report: Report, subject: Subject, rounds: int = 5) -> None:
    """Measure the encoder alone and sentence-transformers in turn: a CPU's speed changes from minute to minute."""
    torch.set_float32_matmul_precision("highest")
    encoder = TowerEncoder(subject.tower, subject.compute)
    variants: dict[str, tuple[int, Callable[[int], Any]]] = {
        "the encoder alone": (1_000, lambda rows: encoder.encode(subject.sample(rows)))
    }
    for name, dtype, size in (("fp32, 32 a batch", torch.float32, 32), ("bf16, 16 a batch", torch.bfloat16, 16)):
        if dtype == torch.bfloat16 and not multiplies_bf16(subject.device):
            continue
        variants[f"sentence-transformers {name}"] = 400, partial(_encode_rows, _model(subject, dtype), subject, size)
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for warm in (True, *[False] * rounds):
        for name, (rows, encode) in variants.items():
            seconds = timed(lambda: encode(rows // 10 if warm else rows))  # noqa: B023
            if not warm:
                rates[name].append(rows / seconds)
    ours = np.array(rates["the encoder alone"])
    medians = ", ".join(f"{name} {np.median(each):.1f}" for name, each in rates.items())
    ratios = ", ".join(
        f"{np.median(ours / each):.2f} ({(ours / each).min():.2f} to {(ours / each).max():.2f}) times {name}"
        for name, each in rates.items()
        if name != "the encoder alone"
    )
    report.note(f"in turn, {rounds} rounds, tokenised before, medians in passages/s: {medians}; {ratios}")


def _encode_rows(model: SentenceTransformer, subject: Subject, size: int, rows: int) -> None:
    model.encode(_stand_ins(model, subject.sample(rows)), batch_size=size)


def _model(subject: Subject, dtype: torch.dtype) -> SentenceTransformer:
    body = Transformer(str(subject.tower.folder), max_seq_length=subject.tower.max_tokens)
    pooled = Pooling(subject.tower.dim, subject.tower.pooling)
    return SentenceTransformer(modules=[body, pooled], device=str(subject.device)).to(dtype)


def _stand_ins(model: SentenceTransformer, sample: TokenBatch) -> list[str]:
    """Make `model` take the tokens of `sample` as they are; return the strings that stand for them in its input."""
    model.preprocess = lambda inputs, **_: features(sample.select(np.array([int(x) for x in inputs])))
    # each string is as long as its passage has tokens, since the model sorts by length, and names its row
    return [str(row).ljust(int(length)) for row, length in enumerate(sample.lengths())]


def measure(report: Report, subject: Subject, setting: Setting, model: SentenceTransformer) -> None:
    preprocess = model.preprocess
    inputs = _stand_ins(model, subject.sample(setting.rows))
    rates = {}
    for size in setting.sizes:
        model.encode(inputs if setting.cudnn else inputs[: setting.rows // 10], batch_size=size)
        rates[size] = setting.rows / timed(lambda: model.encode(inputs, batch_size=size))  # noqa: B023
    best = max(rates, key=rates.__getitem__)
    what = f"sentence-transformers `encode`, {setting.name}, {best} a batch"
    report.add(f"{what}, tokenised before", rates[best])
    if len(rates) > 1:
        by_size = ", ".join(f"{size}: {rate:,.0f}" for size, rate in rates.items())
        report.note(f"sentence-transformers {setting.name}, passages/s by batch size: {by_size}")
    if setting.from_texts:
        model.preprocess = preprocess
        rows = subject.passages.slice(0, setting.rows).select(["title", "text"]).to_pylist()
        texts = [f"{row['title']} {row['text']}" for row in rows]
        report.add(
            f"{what}, its own tokenising counted", len(texts) / timed(lambda: model.encode(texts, batch_size=best))
        )


def features(tokens: TokenBatch, length: int | None = None) -> dict[str, Any]:
    """Return tokens as a tokenizer does, padded to the longest row or to `length`."""
    lengths_N = tokens.lengths()
    real_NL = np.arange(length or lengths_N.max())[None, :] < lengths_N[:, None]
    ids_NL, types_NL = np.zeros(real_NL.shape, np.int64), np.zeros(real_NL.shape, np.int64)
    ids_NL[real_NL], types_NL[real_NL] = tokens.ids_T, tokens.types_T
    arrays = {"input_ids": ids_NL, "token_type_ids": types_NL, "attention_mask": real_NL.astype(np.int64)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def padded_loop(report: Report, subject: Subject) -> None:
    """Measure what the original DPR does: passages padded to 256 tokens, batch by batch, the first token's vector."""
    on_gpu = subject.device.type == "cuda"
    bf16, fp32 = (8_192, 512) if on_gpu else (128, 32), (2_048, 256) if on_gpu else (128, 32)
    for name, dtype, products, (rows, size) in (
        ("bf16", torch.bfloat16, "high", bf16),
        ("fp32", torch.float32, "highest", fp32),
    ):
        torch.set_float32_matmul_precision(products)
        body = BertModel.from_pretrained(subject.tower.folder, add_pooling_layer=False, dtype=dtype)
        body = body.to(subject.device).eval()
        sample = subject.sample(rows)
        batches = [features(sample.select(np.arange(i, i + size)), MAX_TOKENS) for i in range(0, rows, size)]

        def one(batch: dict[str, Any]) -> torch.Tensor:
            inputs = {key: value.to(subject.device) for key, value in batch.items()}
            return body(**inputs).last_hidden_state[:, 0].float().cpu()  # noqa: B023

        with torch.inference_mode():
            one(batches[0])
            seconds = timed(lambda: [one(batch) for batch in batches])  # noqa: B023
        report.add(f"padded to {MAX_TOKENS} as the original DPR, {name}, {size} a batch", rows / seconds)
