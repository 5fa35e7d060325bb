"""How many rows a segment takes: by the work they are, and the same on later nights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from dpr.encoder.flops import BYTES_PER_TOKEN, passage_flops
from dpr.encoder.spec import resolve
from dpr.recipe import EncoderConfig
from dpr.stages import segment_rows
from dpr.stages.segment_rows import MIN_ROWS, segment_rows_for
from tests.collection import Collection
from tests.tiny import random_texts


@pytest.mark.parametrize(
    ("flops_per_passage", "flops_per_second", "rows"),
    [
        (2e9, 8e10, 1_000),  # a network of 6 layers on two cores
        (2.6e10, 2e14, 50_000),  # BERT-base on a GPU: the limit
        (2.1e12, 2e14, 2_380),  # 7 billion weights on a GPU
        (2.6e10, 8e10, MIN_ROWS),
        (0.0, 8e10, 50_000),  # an unknown network
    ],
)
def test_a_segment_is_the_work_of_25_seconds(flops_per_passage: float, flops_per_second: float, rows: int) -> None:
    assert segment_rows_for(50_000, flops_per_passage, flops_per_second) == rows


def test_the_recipes_limit_is_never_passed() -> None:
    assert segment_rows_for(20, 2e9, 8e10) == 20


@pytest.mark.parametrize("tokens", [8, 40])
def test_operations_are_those_that_pytorch_counts(encoder: Path, tokens: int) -> None:
    tower = resolve(EncoderConfig(model=str(encoder), pooling="mean")).passage
    network = AutoModel.from_pretrained(encoder, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.encoder(network.embeddings(torch.ones((1, tokens), dtype=torch.long)))
    text_bytes = (tokens - 2) * BYTES_PER_TOKEN
    assert passage_flops(tower, text_bytes) == pytest.approx(counter.get_total_flops(), rel=0.02)
    cut = replace(tower, max_tokens=tokens)
    assert passage_flops(cut, 100 * text_bytes) == passage_flops(tower, text_bytes)


@pytest.mark.slow
def test_later_nights_do_not_copy_segments_that_were_cut_small(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_rows, "MIN_ROWS", 10)
    monkeypatch.setattr(segment_rows, "UNIT_SECONDS", 1e-9)
    collection = Collection(tmp_path, encoder, random_texts(115), resources={"segment_rows": 50_000})
    first = collection.night().snapshot.body
    assert len(first.segments) == 12  # of 10 rows at most
    for night in range(3):
        collection.corpus[f"new{night}"] = f"w{night} w1"
        later = collection.night()
        assert later.report
        assert "copy" not in {stage.stage for stage in later.report.stages if stage.units}
        assert later.snapshot.body.segments[: len(first.segments)] == first.segments
