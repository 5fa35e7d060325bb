"""When a codebook serves on and when a new one is trained: the recipe and drift decide, as plain FAISS measures it."""

import shutil
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from dpr.errors import IndexBuildError
from dpr.formats.manifest import SnapshotBody
from dpr.engine.stage import LocalExecutor
from dpr.operations.run_report import IndexReport
from dpr.nightly import run_recipe
from dpr.recipe import Recipe
from tests.tiny import WORDS, Quiet, make_encoder, write_jsonl

SHORT = {f"short{n}": f"{WORDS[n % 200]} {WORDS[n // 200]}" for n in range(1100)}
ALIKE = {f"alike{n}": " ".join([*WORDS[:50], WORDS[n % 200], WORDS[n // 200]]) for n in range(1000)}


def random_texts(name: str, rows: int, seed: int) -> dict[str, str]:
    rng = np.random.default_rng(seed)
    return {f"{name}{n}": " ".join(rng.choice(WORDS, 20)) for n in range(rows)}


LONG = random_texts("p", 300, 2)


class Nights:
    """A store and the nights on it."""

    def __init__(self, folder: Path, encoder: Path) -> None:
        self.folder, self.encoder = folder, encoder

    def copy(self, name: str) -> "Nights":
        """The same nights so far, to go on otherwise."""
        shutil.copytree(self.folder, self.folder.parent / name)
        return Nights(self.folder.parent / name, self.encoder)

    def night(self, corpus: dict[str, str], **index: object) -> SnapshotBody:
        """Publish a corpus; `report` and `rows`, done by each stage, are then those of this night."""
        recipe = Recipe.model_validate(
            {
                "store": str(self.folder / "store"),
                "corpus": {"path": str(write_jsonl(self.folder / "corpus.jsonl", corpus)), "format": "jsonl"},
                "encoder": {"model": str(self.encoder), "pooling": "mean", "normalize": True, "title_join": "space"},
                "index": {"factory": "IVF8,PQ8x4", "train_rows": 250, **index},
                "resources": {"segment_rows": 700, "cpus_per_encoder": 1},
            }
        )
        progress = Quiet()
        outcome = run_recipe(recipe, LocalExecutor(), progress, allow_shrink=True)
        assert outcome.report is not None
        self.report: IndexReport = outcome.report.index
        self.rows = progress.rows
        self.said = [said for said in progress.said if said.startswith("index: ")]
        return outcome.snapshot.body

    def vectors(self, body: SnapshotBody, after: SnapshotBody) -> npt.NDArray[np.float32]:
        """Vectors (N, D) of the segments that `after` does not have."""
        known = {entry.segment_id for entry in after.segments}
        files = [self.folder / "store" / entry.object.name for entry in body.segments if entry.segment_id not in known]
        return np.concatenate([np.stack(pq.read_table(file)["embedding"].to_numpy()) for file in files]).astype("f4")

    def codebook(self, body: SnapshotBody) -> faiss.Index:
        return faiss.read_index(str(self.folder / "store" / body.codebook.object.name))


@pytest.fixture(scope="module", name="encoder")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> tuple[Nights, SnapshotBody]:
    """A published night of 300 long texts."""
    nights = Nights(tmp_path_factory.mktemp("nights") / "first", encoder)
    nights.folder.mkdir()
    return nights, nights.night(LONG)


def test_drift_of_quantisation_error_decides(first: tuple[Nights, SnapshotBody]) -> None:
    nights, old = first[0].copy("never"), first[1]
    kept = nights.night(LONG | SHORT, retrain="never")
    assert kept.codebook == old.codebook
    assert "train" not in nights.rows
    vectors_ND, codebook = nights.vectors(kept, old), nights.codebook(old)
    error_ND = codebook.sa_decode(codebook.sa_encode(vectors_ND)) - vectors_ND
    expected = float((error_ND**2).sum() / (vectors_ND**2).sum()) / old.codebook.quantisation_error - 1
    drift = nights.report.drift
    assert drift is not None
    assert drift.rows == 1100
    assert drift.list_imbalance is not None
    assert drift.quantisation_error == pytest.approx(expected, rel=1e-4)
    assert f"drift {expected:.3f} of quantisation error and {drift.list_imbalance:.3f} of list" in nights.said[0]
    largest = max(expected, drift.list_imbalance)
    assert largest > 0.2
    nights = first[0].copy("above")
    assert nights.night(LONG | SHORT, max_drift=largest * 1.01).codebook == old.codebook
    nights = first[0].copy("below")
    retrained = nights.night(LONG | SHORT, max_drift=largest * 0.99)
    assert retrained.codebook.codebook_id != old.codebook.codebook_id
    assert retrained.codebook.corpus_rows == 1400
    assert retrained.codebook.last_segment == max(entry.number for entry in retrained.segments)
    assert nights.rows["embed"] == 1100  # nothing is embedded again
    assert nights.rows["build"] == 1400  # all parts are made anew


def test_few_rows_decide_nothing_and_many_small_nights_add_up(first: tuple[Nights, SnapshotBody]) -> None:
    nights, old = first[0].copy("small"), first[1]
    some = dict(list(SHORT.items())[:600])
    second = nights.night(LONG | some, max_drift=0.01)
    assert second.codebook == old.codebook
    assert nights.report.drift is None
    assert "600 rows came since training" in nights.report.why
    third = nights.night(LONG | SHORT, max_drift=0.01)  # 500 more
    assert third.codebook.codebook_id != old.codebook.codebook_id
    assert nights.report.drift is not None
    assert nights.report.drift.rows == 1100
    nights.night(LONG | SHORT | random_texts("more", 10, 5), max_drift=0.01)
    assert not nights.report.trained
    assert "10 rows came since training" in nights.report.why


def test_drift_of_list_imbalance_decides(tmp_path: Path, encoder: Path) -> None:
    nights = Nights(tmp_path / "first", encoder)
    nights.folder.mkdir()
    exact = {"factory": "IVF8,Flat", "train_rows": 1500}
    corpus = random_texts("p", 1500, 2)
    old = nights.night(corpus, **exact)
    assert (old.codebook.quantisation_error, old.codebook.last_segment) == (0.0, old.segments[-1].number)
    index = nights.codebook(old)
    index.add(nights.vectors(old, old.model_copy(update={"segments": []})))
    assert old.codebook.list_imbalance == pytest.approx(index.invlists.imbalance_factor(), rel=0.2)

    evenly = nights.copy("evenly")
    assert evenly.night(corpus | random_texts("q", 1000, 6), **exact).codebook == old.codebook
    lopsided = nights.copy("lopsided")
    new = lopsided.night(corpus | ALIKE, **exact)
    assert new.codebook.codebook_id != old.codebook.codebook_id
    drift = lopsided.report.drift
    assert drift is not None
    assert drift.quantisation_error == 0.0
    assert drift.list_imbalance is not None
    assert "list imbalance" in lopsided.report.why
    # no less than what the index would have become
    before = index.invlists.imbalance_factor()
    index.add(lopsided.vectors(new, old))
    assert drift.list_imbalance > 0.9 * (index.invlists.imbalance_factor() / before - 1) > 0.2


def test_the_recipe_decides(first: tuple[Nights, SnapshotBody]) -> None:
    nights, old = first
    corpus = LONG | random_texts("q", 10, 7)
    assert nights.copy("always").night(corpus, retrain="always").codebook.codebook_id != old.codebook.codebook_id
    assert nights.copy("other").night(corpus, factory="IVF4,PQ8x4").codebook.factory == "IVF4,PQ8x4"
    with pytest.raises(IndexBuildError, match=r"IVF4,PQ8x4.*IVF8,PQ8x4.*retrain is never"):
        nights.copy("refused").night(corpus, factory="IVF4,PQ8x4", retrain="never")


def test_a_corpus_too_small_to_train_on_keeps_its_codebook(tmp_path: Path, encoder: Path) -> None:
    nights = Nights(tmp_path / "first", encoder)
    nights.folder.mkdir()
    old = nights.night(LONG, factory="IVF64,Flat")
    few = dict(list(LONG.items())[:50])
    assert nights.copy("auto").night(few, factory="IVF64,Flat").codebook == old.codebook
    assert nights.copy("never").night(few, factory="auto", retrain="never", train_rows=10).codebook == old.codebook
    with pytest.raises(IndexBuildError, match="needs at least 64 training vectors and there are 50"):
        nights.copy("always").night(few, factory="IVF64,Flat", retrain="always")
