"""When a codebook serves on and when a new one is trained: the recipe and drift decide, as plain FAISS measures it."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from dpr.errors import IndexBuildError
from dpr.formats.manifest import SnapshotBody
from dpr.operations.run_report import IndexReport
from tests.collection import Collection, FirstNights
from tests.tiny import WORDS, Quiet, random_texts

SHORT = {f"short{n}": f"{WORDS[n % 200]} {WORDS[n // 200]}" for n in range(1100)}
ALIKE = {f"alike{n}": " ".join([*WORDS[:50], WORDS[n % 200], WORDS[n // 200]]) for n in range(1000)}


def long_texts(name: str, rows: int, seed: int) -> dict[str, str]:
    return random_texts(rows, name, seed, min_words=20, max_words=20)


LONG = long_texts("p", 300, 2)
MORE = {"segment_rows": 700}


class Nights:
    """Nights on a copy of a collection."""

    def __init__(self, folder: Path, collection: Collection) -> None:
        self.collection = collection.copy(folder)
        self.first = self.collection.body(1)

    def night(self, corpus: dict[str, str], **index: Any) -> SnapshotBody:
        """Publish a corpus; `report`, `rows` done by each stage and `reasons` are then those of this night."""
        self.collection.corpus = corpus
        self.collection.change(index=index)
        progress = Quiet()
        outcome = self.collection.night(progress=progress)
        assert outcome.report is not None
        self.report: IndexReport = outcome.report.index
        self.rows = progress.rows
        self.reasons = [message for message in progress.messages if message.startswith("index: ")]
        return outcome.snapshot.body

    def vectors(self, body: SnapshotBody, known: SnapshotBody | None = None) -> npt.NDArray[np.float32]:
        """Vectors (N, D) of the segments of a snapshot that another one does not have."""
        names = {entry.object.name for entry in body.segments}
        names -= {entry.object.name for entry in known.segments} if known else set()
        tables = [pq.read_table(self.collection.file(name), columns=["embedding"]) for name in sorted(names)]
        return np.concatenate([np.stack(table["embedding"].to_numpy()) for table in tables]).astype(np.float32)

    def codebook(self, body: SnapshotBody) -> faiss.Index:
        return faiss.read_index(str(self.collection.file(body.codebook.object.name)))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights) -> Collection:
    """A published night of 300 long texts."""
    return first_nights.copy(
        tmp_path_factory.mktemp("drift"),
        LONG,
        index={"factory": "IVF8,PQ8x4", "train_rows": 250},
        gate={"min_recall": 0},
        resources=MORE,
    )


@pytest.mark.slow
def test_drift_of_quantisation_error_decides(first: Collection, tmp_path: Path) -> None:
    nights = Nights(tmp_path / "never", first)
    old = nights.first
    kept = nights.night(LONG | SHORT, retrain="never")
    assert kept.codebook == old.codebook
    assert "train" not in nights.rows
    assert nights.rows["drift"] == 1100  # measured by a unit, not by the driver
    vectors_ND, codebook = nights.vectors(kept, old), nights.codebook(old)
    error_ND = codebook.sa_decode(codebook.sa_encode(vectors_ND)) - vectors_ND
    expected = float((error_ND**2).sum() / (vectors_ND**2).sum()) / old.codebook.quantisation_error - 1
    drift = nights.report.drift
    assert drift is not None
    assert drift.rows == 1100
    assert drift.list_imbalance is not None
    assert drift.quantisation_error == pytest.approx(expected, rel=1e-4)
    assert f"drift {expected:.3f} of quantisation error and {drift.list_imbalance:.3f} of list" in nights.reasons[0]
    largest = max(expected, drift.list_imbalance)
    assert largest > 0.2
    # the segments are there now, so another index of them embeds nothing
    above = Nights(tmp_path / "above", nights.collection)
    assert above.night(LONG | SHORT, retrain="auto", max_drift=largest * 1.01).codebook == old.codebook
    below = Nights(tmp_path / "below", nights.collection)
    retrained = below.night(LONG | SHORT, retrain="auto", max_drift=largest * 0.99)
    assert retrained.codebook.codebook_id != old.codebook.codebook_id
    assert retrained.codebook.corpus_rows == 1400
    assert retrained.codebook.last_segment == max(entry.number for entry in retrained.segments)
    assert below.rows["embed"] == 0
    assert below.rows["build"] == 1400  # all parts are made again


@pytest.mark.slow
def test_few_rows_decide_nothing_and_many_small_nights_add_up(first: Collection, tmp_path: Path) -> None:
    nights = Nights(tmp_path, first)
    old = nights.first
    some = dict(list(SHORT.items())[:400])
    second = nights.night(LONG | some, max_drift=0.01)
    assert second.codebook == old.codebook
    assert nights.report.drift is None
    assert "drift" not in nights.rows
    assert "400 rows came since training, too few to measure drift (minimum 427)" in nights.report.reason
    third = nights.night(LONG | SHORT)  # 700 more
    assert third.codebook.codebook_id != old.codebook.codebook_id
    assert nights.report.drift is not None
    assert nights.report.drift.rows == 1100
    nights.night(LONG | SHORT | long_texts("more", 10, 5))
    assert not nights.report.trained
    assert "10 rows came since training" in nights.report.reason


@pytest.mark.slow
def test_drift_of_list_imbalance_decides(tmp_path: Path, first_nights: FirstNights) -> None:
    corpus = long_texts("p", 1500, 2)
    exact = first_nights.copy(
        tmp_path / "first",
        corpus,
        index={"factory": "IVF8,Flat", "train_rows": 1500},
        gate={"min_recall": 0},
        resources=MORE,
    )
    lopsided = Nights(tmp_path / "lopsided", exact)
    old = lopsided.first
    assert (old.codebook.quantisation_error, old.codebook.last_segment) == (0.0, old.segments[-1].number)
    index = lopsided.codebook(old)
    index.add(lopsided.vectors(old))
    assert old.codebook.list_imbalance == pytest.approx(index.invlists.imbalance_factor(), rel=0.2)

    evenly = Nights(tmp_path / "evenly", exact)
    assert evenly.night(corpus | long_texts("q", 1000, 6)).codebook == old.codebook
    new = lopsided.night(corpus | ALIKE)
    assert new.codebook.codebook_id != old.codebook.codebook_id
    drift = lopsided.report.drift
    assert drift is not None
    assert drift.quantisation_error == 0.0
    assert drift.list_imbalance is not None
    assert "list imbalance" in lopsided.report.reason
    # no less than what the index would have become
    before = index.invlists.imbalance_factor()
    index.add(lopsided.vectors(new, old))
    assert drift.list_imbalance > 0.9 * (index.invlists.imbalance_factor() / before - 1) > 0.2


@pytest.mark.slow
def test_the_recipe_decides(first: Collection, tmp_path: Path) -> None:
    corpus = LONG | long_texts("q", 10, 7)
    always = Nights(tmp_path / "always", first)
    assert always.night(corpus, retrain="always").codebook.codebook_id != always.first.codebook.codebook_id
    assert Nights(tmp_path / "other", first).night(corpus, factory="IVF4,PQ8x4").codebook.factory == "IVF4,PQ8x4"
    with pytest.raises(IndexBuildError, match=r"IVF4,PQ8x4.*IVF8,PQ8x4.*retrain is never"):
        Nights(tmp_path / "refused", first).night(corpus, factory="IVF4,PQ8x4", retrain="never")


@pytest.mark.slow
def test_a_corpus_too_small_to_train_on_keeps_its_codebook(tmp_path: Path, first_nights: FirstNights) -> None:
    large = first_nights.copy(
        tmp_path / "first", LONG, index={"factory": "IVF64,Flat", "train_rows": 250}, resources=MORE
    )
    few = dict(list(LONG.items())[:50])
    kept = Nights(tmp_path / "auto", large)
    assert kept.night(few).codebook == kept.first.codebook
    never = Nights(tmp_path / "never", large)
    assert never.night(few, factory="auto", retrain="never", train_rows=10).codebook == kept.first.codebook
    with pytest.raises(IndexBuildError, match="needs at least 64 training vectors and there are 50"):
        Nights(tmp_path / "always", large).night(few, retrain="always")
