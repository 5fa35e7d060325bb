"""The few corpora and recipes that all simulated nights are about.

They are few so that undisturbed nights, which disturbed ones are compared with, are run once a process. A corpus is a
list of two files, of which each has three versions: with edits, new passages, deletions, renamed passages (whose text
stays, so that the vector is borrowed), a row that cannot be used, and so many deletions that a segment is compacted.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from dpr.recipe import Recipe
from simulation.key_vectors import make_model

Kind = Literal["loose", "shards", "demanding"]
"""Recipes. `loose`: an exact index, whose new rows stay loose. `shards`: inverted lists in two shards that take up new
rows, and words. `demanding`: like `loose`, with a gate that no index passes."""
DIM = 8
VERSIONS = tuple((a, b) for a in range(3) for b in range(3))
Version = tuple[int, int]
_TIME_NS = 1_800_000_000 * 10**9
"""When all files were changed: the identity of a file contains it, and a replay must find the same."""


def texts_of(version: Version) -> dict[str, str]:
    """Return id → text of the usable passages of a corpus."""
    return {**_first(version[0]), **_second(version[1])}


def _passages(name: str, numbers: Iterable[int], words: str = "") -> dict[str, str]:
    return {f"{name}{n:02d}": f"{name} text number {n} of w{n * 7 % 31} and w{n * 5 % 17}{words}" for n in numbers}


def _first(version: int) -> dict[str, str]:
    if version == 0:
        return _passages("a", range(14))
    if version == 1:
        return _passages("a", range(1, 12)) | _passages("a", (12, 13), " edited") | _passages("a", range(20, 24))
    renamed = {f"renamed-{id_}": text for id_, text in _passages("a", range(3)).items()}
    return _passages("a", range(3, 14)) | renamed | _passages("a", (30,))


def _second(version: int) -> dict[str, str]:
    if version == 0:
        return _passages("b", range(12))
    if version == 1:
        return _passages("b", range(10)) | _passages("b", (10, 11), " edited")
    return _passages("b", range(8, 12)) | _passages("b", range(40, 43))


def write_inputs(folder: Path) -> None:
    """Write all files that simulated nights read."""
    make_model(folder / "model", DIM)
    for version in range(3):
        _write(folder / f"a{version}.jsonl", _first(version))
        _write(folder / f"b{version}.jsonl", _second(version), unusable=version == 1)
    questions = [{"question": f"what is number {n}", "answers": [f"a{n:02d}"]} for n in range(4, 9)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions), encoding="utf-8")
    for path in folder.rglob("*"):
        os.utime(path, ns=(_TIME_NS, _TIME_NS))


def _write(path: Path, passages: Mapping[str, str], *, unusable: bool = False) -> None:
    rows = [{"id": id_, "title": "", "text": text} for id_, text in passages.items()]
    lines = [json.dumps(row) + "\n" for row in rows] + ['{"id": "without text"}\n'] * unusable
    path.write_text("".join(lines), encoding="utf-8")


def recipe_of(kind: Kind, version: Version, store_url: str) -> Recipe:
    """Return the recipe of a night; its paths are relative to the folder of `write_inputs`."""
    document: dict[str, Any] = {
        "store": store_url,
        "corpus": {"path": [f"a{version[0]}.jsonl", f"b{version[1]}.jsonl"], "format": "jsonl"},
        "encoder": {"model": "./model"},
        "index": {"factory": "Flat"},
        "lexical": {"build": False},
        "gate": {"min_recall": 0.0},
        "limits": {"max_shrink": 1.0, "max_quarantine_share": 0.2},
        "resources": {"segment_rows": 10, "cpus_per_encoder": 1},
    }
    if kind == "shards":
        document |= {"index": {"factory": "IVF2,SQ8", "shards": 2}, "lexical": {"build": True}}
    if kind == "demanding":
        document["gate"] |= {"questions": "questions.jsonl", "min_accuracy": {1: 1.0}}
    return Recipe.model_validate(document)
