"""A tiny collection that changes night by night: the one that all tests of whole runs use."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import yaml

from dpr.engine.executor import Executor, LocalExecutor
from dpr.engine.progress import Progress
from dpr.formats.manifest import SnapshotBody
from dpr.formats.snapshots import read_snapshot
from dpr.recipe import Recipe
from dpr.run_recipe import Allowed, Outcome, run_recipe
from dpr.search.vector_search import VectorSearch
from dpr.store import Store, open_store
from tests.tiny import Quiet, random_texts

ROWS = 30
SEGMENT_ROWS = 20
QUESTIONS_QD = np.random.default_rng(5).normal(size=(7, 32)).astype(np.float32)
"""The questions of `Collection.answers`: 7 vectors."""


class Collection:
    """A recipe, its store and its corpus, all below one folder."""

    def __init__(self, folder: Path, model: Path, texts: Mapping[str, str] | None = None, **fields: Any) -> None:
        """Make a collection that has no night yet.

        `model` is the encoder's folder, `texts` the corpus: 30 random passages by default. `fields` are sections of the
        recipe, such as `index={"factory": "Flat"}`; what they leave out is as in `_document`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.model = folder, model
        self.corpus: dict[str, str] = dict(random_texts(ROWS) if texts is None else texts)
        """Id → text, as the next night finds it."""
        self.more_rows: list[tuple[str, str]] = []
        """Further rows of (id, text) after those of `corpus`; their ids may occur there, too."""
        self.path = folder / "corpus.jsonl"
        self.fields = fields
        self.recipe = self._make_recipe()

    @property
    def store(self) -> Store:
        return open_store(self.recipe.store)

    def change(self, **fields: Any) -> None:
        """Change fields of the recipe, section by section, from the next night on."""
        self.fields = _merged(self.fields, fields)
        self.recipe = self._make_recipe()

    def write_corpus(self) -> None:
        """Write the corpus file, unless it holds exactly that already or the recipe names another file."""
        rows = "".join(
            json.dumps({"id": id_, "title": "", "text": text}) + "\n"
            for id_, text in (*self.corpus.items(), *self.more_rows)
        )
        if self.recipe.corpus.path == str(self.path) and (not self.path.exists() or self.path.read_text() != rows):
            self.path.write_text(rows)

    def night(
        self, executor: Executor | None = None, progress: Progress | None = None, allowed: Allowed | None = None
    ) -> Outcome:
        """Run the recipe over the corpus as it is now."""
        self.write_corpus()
        return run_recipe(self.recipe, executor or LocalExecutor(), progress or Quiet(), allowed or Allowed())

    def write_recipe(self) -> Path:
        """Write the recipe and the corpus for another process; returns the path of the recipe."""
        self.write_corpus()
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.recipe.model_dump(mode="json")))
        return path

    def copy(self, folder: Path) -> "Collection":
        """Copy everything into another folder, to continue differently there.

        The copy's corpus lies in another place, so its next night scans all of it, and embeds only what is new.
        """
        made = Collection(folder, self.model, self.corpus, **self.fields)
        made.more_rows = list(self.more_rows)
        shutil.copytree(self.recipe.store, made.recipe.store)
        return made

    def body(self, number: int) -> SnapshotBody:
        """Return the body of a snapshot."""
        return read_snapshot(self.store, number).body

    def file(self, name: str) -> Path:
        """Return where a stored object lies; the store must be a folder."""
        return Path(self.recipe.store, name)

    def files(self) -> set[str]:
        """Return the names of all files in the store's folder, those of the lease included."""
        folder = Path(self.recipe.store)
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    def answers(self, number: int) -> list[list[tuple[str, float]]]:
        """Return what a snapshot answers to `QUESTIONS_QD`: ids and scores of the best five."""
        return answers(self.store, number)

    def live_rows(self, body: SnapshotBody) -> dict[str, tuple[str, npt.NDArray[np.float32]]]:
        """Return id → text and vector of every live row of a snapshot, read with pyarrow alone."""
        dead = pq.read_table(self.file(body.deletions.name)).to_pylist() if body.deletions else []
        gone = {(row["segment"], row["row"]) for row in dead}
        found: dict[str, tuple[str, npt.NDArray[np.float32]]] = {}
        for entry in body.segments:
            table = pq.read_table(self.file(entry.object.name), columns=["id", "text", "embedding"])
            for number, row in enumerate(table.to_pylist()):
                if (entry.number, number) not in gone:
                    assert row["id"] not in found
                    found[row["id"]] = row["text"], stored_vector(row["embedding"])
        return found

    def _make_recipe(self) -> Recipe:
        return Recipe.model_validate(_merged(self._document(), self.fields))

    def _document(self) -> dict[str, Any]:
        return {
            "store": str(self.folder / "store"),
            "corpus": {"path": str(self.path), "format": "jsonl"},
            "encoder": {"model": str(self.model), "pooling": "mean", "normalize": True, "title_join": "space"},
            "resources": {"segment_rows": SEGMENT_ROWS, "cpus_per_encoder": 1},
            "limits": {"max_shrink": 1.0},
        }


class FirstNights:
    """Collections whose first night is over: each kind is made once in a test session, and then copied."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder, self._model = folder, model
        self._made: dict[str, Collection] = {}

    def copy(self, folder: Path, texts: Mapping[str, str] | None = None, **fields: Any) -> Collection:
        """Return a copy in `folder` of what `Collection(…, texts, **fields)` is after its first night."""
        kind = json.dumps([list(texts.items()) if texts is not None else None, fields], sort_keys=True)
        if kind not in self._made:
            made = Collection(self._folder / f"first-{len(self._made)}", self._model, texts, **fields)
            made.night()
            self._made[kind] = made
        return self._made[kind].copy(folder)


def stored_vector(value: list[float] | bytes) -> npt.NDArray[np.float32]:
    """Return a vector as pyarrow gives it: numbers, or bytes of int8 with a scale as float32 at their end."""
    if isinstance(value, bytes):
        codes_D, (scale,) = np.frombuffer(value[:-4], np.int8), np.frombuffer(value[-4:], "<f4")
        return (codes_D.astype(np.float32) * scale).astype(np.float16).astype(np.float32)
    return np.array(value, np.float32)


def answers(store: Store, number: int) -> list[list[tuple[str, float]]]:
    """Return what a snapshot answers to `QUESTIONS_QD`: ids and scores of the best five."""
    search = VectorSearch.open(store, read_snapshot(store, number).body)
    found = zip(*search.top(QUESTIONS_QD, 5), strict=True)
    return [[(hit.id, hit.score) for hit in search.segments.hits(scores_K, ids_K)] for scores_K, ids_K in found]


def let_pass(store: Store, seconds: float) -> None:
    """Make everything in a local store older by `seconds`, as if that time had passed."""
    for path in Path(store.url).rglob("*"):
        status = path.stat()
        os.utime(path, (status.st_atime, status.st_mtime - seconds))


def _merged(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """A document with `fields` in it, section by section."""
    merged = {**document, **fields}
    for name, value in fields.items():
        before = document.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(before, value)
    return merged
