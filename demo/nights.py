"""Make a store with several nights, in which Python's documentation grows, for the pictures in docs/."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

from demo.python_docs import write_corpus
from dpr.formats.snapshots import numbers
from dpr.operations.rollback import rollback
from dpr.run_recipe import Allowed
from dpr.store import open_store
from ray_jobs.jobs import run_whole

RECIPE: Final = Path(__file__).resolve().parent / "demo.yaml"
SHARES: Final = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The share of all passages that each night finds."""
ROLLED_BACK: Final = 4
"""After this night somebody rolls back to the night before it."""


def make_nights(folder: Path) -> str:
    """Make the nights in a folder, unless they are there already, and return the address of the store."""
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["store"], recipe["corpus"]["path"] = "store", "corpus.jsonl"
    recipe["gate"]["questions"] = str(RECIPE.with_name("questions.jsonl"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    store = open_store(str(folder / "store"))
    if len(numbers(store)) > len(SHARES):
        return store.url
    write_corpus(folder / "all.jsonl")
    lines = (folder / "all.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    for night, share in enumerate(SHARES, 1):
        (folder / "corpus.jsonl").write_text("".join(_some(lines, share)), encoding="utf-8")
        run_whole(str(folder / "recipe.yaml"), Allowed(), local=True)
        if night == ROLLED_BACK:
            rollback(store, numbers(store)[-2])
    return store.url


def _some(lines: list[str], share: float) -> Iterator[str]:
    """Yield this share of the lines, evenly spread; a larger share includes all lines of a smaller one."""
    golden = 0.6180339887498949
    return (line for number, line in enumerate(lines) if number * golden % 1 < share)
