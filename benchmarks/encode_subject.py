"""What the benchmark encodes: passages of real lengths, and the network that encodes them."""

import gzip
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from dpr.encoder.compute import Compute
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec
from dpr.recipe import EncoderConfig

MAX_TOKENS = 256
FILE_ROWS = 50_000


@dataclass(frozen=True)
class Subject:
    """One tower, and the passages that all ways encode."""

    config: EncoderConfig
    tower: TowerSpec
    passages: pa.Table
    """Columns id, title, text, in random order."""
    tokens: TokenBatch
    """Of `passages`."""
    device: torch.device

    @property
    def compute(self) -> Compute:
        return Compute(self.config.precision, device=self.device.type)

    def units(self, passages: int, unit_rows: int) -> Iterator[TokenBatch]:
        """Yield so many passages in units, each drawn at random."""
        rng = np.random.default_rng(0)
        for first in range(0, passages, unit_rows):
            yield self.tokens.select(rng.integers(0, len(self.tokens), min(unit_rows, passages - first)))

    def sample(self, rows: int) -> TokenBatch:
        """Return the tokens of the first passages; of the first ones again if there are fewer."""
        return self.tokens.select(np.arange(rows) % len(self.tokens))


def random_bert(config: BertConfig) -> BertModel:
    """Return a BERT with random weights, so large that vectors differ as much as those of a trained network."""
    torch.manual_seed(0)
    body = BertModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for name, weight in body.named_parameters():
            if "LayerNorm.weight" in name:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif weight.ndim == 1:
                weight.copy_(0.1 * torch.randn_like(weight))
            elif ".layer." in name:
                weight.mul_(2)
    return body


def save_random_bert(folder: Path, tokenizer: Path) -> EncoderConfig:
    """Save BERT-base with the weights of `random_bert`."""
    random_bert(BertConfig()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return EncoderConfig(model=str(folder), pooling="mean", max_tokens=MAX_TOKENS, title_join="pair")


def read_passages(files: Sequence[Path]) -> pa.Table:
    """Read id, title and text of JSONL files in BEIR's layout, gzipped or not, in random order."""
    rows: list[dict[str, str]] = []
    for path in files:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8") as lines:
            rows += map(json.loads, lines)
    order = np.random.default_rng(0).permutation(len(rows))
    columns = {"id": "_id", "title": "title", "text": "text"}
    return pa.table({name: [rows[row].get(key) or "" for row in order] for name, key in columns.items()})


def write_distinct(base: pa.Table, rows: int, folder: Path) -> list[Path]:
    """Write so many passages as Parquet files: those of `base` again and again.

    Each time another word at the end makes them different, because equal texts would be embedded once.
    """
    folder.mkdir(parents=True)

    def write(first: int) -> Path:
        numbers = np.arange(first, min(first + FILE_ROWS, rows))
        table = base.take(pa.array(numbers % base.num_rows))
        rounds = pa.array(numbers // base.num_rows).cast(pa.string())
        for name, separator in (("id", "#"), ("text", " ")):
            column = pc.binary_join_element_wise(table[name], rounds, separator)
            table = table.set_column(table.schema.get_field_index(name), name, column)
        path = folder / f"{first // FILE_ROWS:04d}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=1, row_group_size=10_000)
        return path

    with ThreadPoolExecutor() as pool:
        return list(pool.map(write, range(0, rows, FILE_ROWS)))
