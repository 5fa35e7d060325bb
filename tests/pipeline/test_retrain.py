"""When a codebook serves on and when a new one is trained: the recipe and drift decide, as plain FAISS measures it."""

import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from dpr.errors import IndexBuildError
from dpr.manifest import SnapshotBody
from dpr.pipeline.execute import LocalExecutor
from dpr.pipeline.run import run_recipe
from dpr.recipe import Recipe
from tests.tiny import WORDS, Quiet, make_encoder, write_jsonl


def recipe(folder: Path, **index: object) -> Recipe:
    return Recipe.model_validate(
        {
            "store": str(folder / "store"),
            "corpus": {"path": str(folder.parent / "corpus.jsonl"), "format": "jsonl"},
            "encoder": {
                "model": str(folder.parent / "encoder"),
                "pooling": "mean",
                "normalize": True,
                "title_join": "space",
            },
            "index": {"factory": "IVF8,PQ8x4", "train_rows": 250, **index},
            "resources": {"segment_rows": 300, "cpus_per_encoder": 1},
        }
    )


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SnapshotBody]:
    """A folder with a published night of long texts, and the corpus of the next, which adds texts of one word."""
    folder = tmp_path_factory.mktemp("nights")
    make_encoder(folder / "encoder")
    rng = np.random.default_rng(2)
    corpus = {f"p{n}": " ".join(rng.choice(WORDS, 20)) for n in range(300)}
    write_jsonl(folder / "corpus.jsonl", corpus)
    body = run_recipe(recipe(folder / "first"), LocalExecutor(), Quiet()).snapshot.body
    write_jsonl(folder / "corpus.jsonl", corpus | {f"short{n}": WORDS[n] for n in range(100)})
    return folder, body


def second(first: tuple[Path, SnapshotBody], name: str, **index: object) -> tuple[SnapshotBody, Quiet]:
    """The next night on a copy of the store."""
    folder, _ = first
    shutil.copytree(folder / "first", folder / name)
    progress = Quiet()
    return run_recipe(recipe(folder / name, **index), LocalExecutor(), progress).snapshot.body, progress


def drift(folder: Path, old: SnapshotBody, new: SnapshotBody) -> float:
    """Squared error of the new segments' vectors over their squared norm, relative to the codebook's, minus 1."""
    known = {entry.segment_id for entry in old.segments}
    files = [folder / "store" / entry.object.name for entry in new.segments if entry.segment_id not in known]
    vectors_ND = np.concatenate([np.stack(pq.read_table(file)["embedding"].to_numpy()) for file in files]).astype("f4")
    codebook = faiss.read_index(str(folder / "store" / old.codebook.object.name))
    error_ND = codebook.sa_decode(codebook.sa_encode(vectors_ND)) - vectors_ND
    return float((error_ND**2).sum() / (vectors_ND**2).sum()) / old.codebook.quantisation_error - 1


def test_drift_decides(first: tuple[Path, SnapshotBody]) -> None:
    folder, old = first
    kept, progress = second(first, "never", retrain="never")
    assert kept.codebook == old.codebook
    assert "train" not in progress.rows
    found = drift(folder / "never", old, kept)
    assert found > 0.2
    assert second(first, "above", max_drift=found * 1.01)[0].codebook == old.codebook
    retrained, progress = second(first, "below", max_drift=found * 0.99)
    assert retrained.codebook.codebook_id != old.codebook.codebook_id
    assert retrained.codebook.corpus_rows == 400
    assert progress.rows["embed"] == 100  # nothing is embedded again
    assert progress.rows["build"] == 400  # all parts are made anew


def test_the_recipe_decides(first: tuple[Path, SnapshotBody]) -> None:
    _, old = first
    assert second(first, "always", retrain="always")[0].codebook.codebook_id != old.codebook.codebook_id
    other, _ = second(first, "other", factory="IVF4,PQ8x4", max_drift=100.0)
    assert other.codebook.factory == "IVF4,PQ8x4"
    with pytest.raises(IndexBuildError, match=r"IVF4,PQ8x4.*IVF8,PQ8x4.*retrain is never"):
        second(first, "refused", factory="IVF4,PQ8x4", retrain="never")
