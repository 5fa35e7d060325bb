"""A tiny collection that changes night by night, and a clock for its store."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from dpr.engine.stage import LocalExecutor
from dpr.nightly import Outcome, run_recipe
from dpr.recipe import Recipe
from dpr.search.retrieve import VectorSearch
from dpr.formats.snapshots import read_snapshot
from dpr.store import Store, open_store
from tests.tiny import WORDS, Quiet, write_jsonl

QUESTIONS_QD = np.random.default_rng(5).normal(size=(7, 32)).astype(np.float32)


class Nights:
    """`corpus` (id → text) is what the next night finds."""

    def __init__(self, folder: Path, encoder: Path, store: str | None = None, **fields: Any) -> None:
        rng = np.random.default_rng(0)
        self.corpus = {f"p{n:03d}": " ".join(rng.choice(WORDS, rng.integers(3, 9))) for n in range(30)}
        self.path = folder / "corpus.jsonl"
        folder.mkdir(exist_ok=True)
        document = {
            "store": store or str(folder / "store"),
            "corpus": {"path": str(self.path), "format": "jsonl"},
            "encoder": {"model": str(encoder), "pooling": "mean", "normalize": True, "title_join": "space"},
            "resources": {"segment_rows": 20, "cpus_per_encoder": 1},
            "limits": {"max_shrink": 1.0},
        }
        self.recipe = Recipe.model_validate(document | fields)
        self.store = open_store(self.recipe.store)

    def night(self) -> Outcome:
        """Run the recipe over the corpus as it is now."""
        write_jsonl(self.path, self.corpus)
        return run_recipe(self.recipe, LocalExecutor(), Quiet())


def answers(store: Store, number: int) -> list[list[tuple[str, float]]]:
    """What a snapshot answers to `QUESTIONS_QD`: ids and scores of the best five."""
    vectors = VectorSearch.open(store, read_snapshot(store, number).body)
    found = zip(*vectors.top(QUESTIONS_QD, 5), strict=True)
    return [[(hit.id, hit.score) for hit in vectors.segments.hits(scores_K, ids_K)] for scores_K, ids_K in found]


def let_pass(store: Store, seconds: float) -> None:
    """Make everything in a local store so much older, as if that time had passed."""
    for path in Path(store.url).rglob("*"):
        status = path.stat()
        os.utime(path, (status.st_atime, status.st_mtime - seconds))
