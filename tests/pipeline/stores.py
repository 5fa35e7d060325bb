"""A tiny collection and its recipe, for tests of whole runs."""

from pathlib import Path

import numpy as np

from dpr.engine.stage import LocalExecutor
from dpr.nightly import Outcome, run_recipe
from dpr.recipe import Recipe
from tests.tiny import WORDS, Quiet, write_jsonl


def tiny_recipe(folder: Path, encoder: Path, rows: int = 600, **index: object) -> Recipe:
    """A recipe over `rows` random passages below `folder`, in segments of 100."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    corpus = {f"p{n:04d}": " ".join(rng.choice(WORDS, rng.integers(3, 20))) for n in range(rows)}
    document = {
        "store": str(folder / "store"),
        "corpus": {"path": str(write_jsonl(folder / "corpus.jsonl", corpus)), "format": "jsonl"},
        "encoder": {"model": str(encoder), "pooling": "mean", "normalize": True, "title_join": "space"},
        "resources": {"segment_rows": 100, "cpus_per_encoder": 1},
        "index": index,
    }
    return Recipe.model_validate(document)


def run(recipe: Recipe) -> Outcome:
    """Run a recipe in this process."""
    return run_recipe(recipe, LocalExecutor(), Quiet())
