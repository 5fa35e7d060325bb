"""Parts belong to the codebook they were coded with, and never meet another."""

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import dpr.stages.train
from dpr.errors import IntegrityError
from dpr.formats import layout
from dpr.formats.manifest import SnapshotBody
from dpr.formats.records import read_record
from dpr.formats.snapshots import numbers
from dpr.index.training import train
from dpr.operations.verify import verify
from dpr.stages.build import PartResult
from dpr.stages.train import TrainResult
from tests.collection import QUESTIONS_QD, Collection, FirstNights
from tests.tiny import Quiet, random_texts

ROWS = 120
INDEX = {"factory": "IVF4,SQ8", "nprobe": 4, "rescore": 0, "retrain": "always"}


@pytest.fixture
def collection(tmp_path: Path, first_nights: FirstNights) -> Collection:
    return first_nights.copy(
        tmp_path, random_texts(ROWS), index=INDEX, gate={"min_recall": 0}, resources={"segment_rows": 40}
    )


def lose_codebook(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delete the codebook and its record, and let a machine that computes otherwise train it again."""
    body = collection.body(1)
    name = layout.codebook(body.encoder_id, body.codebook.codebook_id)
    assert read_record(collection.store, layout.record(name), TrainResult) is not None
    collection.store.delete(layout.record(name))
    collection.store.delete(body.codebook.object.name)

    def train_otherwise(sample_ND: Any, plan: Any, seed: int, hardware: Any) -> Any:
        return train(sample_ND, plan, seed + 1, hardware)

    monkeypatch.setattr(dpr.stages.train, "train", train_otherwise)


def assert_coded_with_its_codebook(collection: Collection, body: SnapshotBody) -> None:
    """The snapshot answers as plain FAISS does with the snapshot's codebook and all vectors."""
    rows = collection.live_rows(body)
    ids = list(rows)
    index = faiss.read_index(str(collection.file(body.codebook.object.name)))
    index.add(np.stack([vector for _, vector in rows.values()]))
    index.nprobe = 4
    scores_QK, rows_QK = index.search(QUESTIONS_QD, 5)
    for expected_K, scores_K, hits in zip(rows_QK, scores_QK, collection.answers(2), strict=True):
        assert [score for _, score in hits] == pytest.approx(scores_K.tolist(), abs=1e-5)
        assert {id_ for id_, _ in hits} == {ids[row] for row in expected_K}


def test_a_codebook_with_other_bytes_has_all_parts_built_again(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_codebook(collection, monkeypatch)
    collection.change(gate={"at": [1]})  # so that there is something to do
    progress = Quiet()
    body = collection.night(progress=progress).snapshot.body
    old = collection.body(1)
    assert body.codebook.codebook_id == old.codebook.codebook_id
    assert body.codebook.object.sha256 != old.codebook.object.sha256
    assert body.segments == old.segments
    assert (progress.rows["embed"], progress.rows["train"], progress.rows["build"]) == (0, ROWS - ROWS // 11, ROWS)
    assert verify(collection.store, [2], deep=True)[1] == []
    assert_coded_with_its_codebook(collection, body)


def test_a_part_under_another_codebooks_name_is_refused(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody puts the old parts where those of the new codebook belong."""
    lose_codebook(collection, monkeypatch)
    collection.change(gate={"at": [1]})
    other = collection.copy(collection.folder / "other")
    new = other.night().snapshot.body  # another folder, the same codebook
    old = collection.body(1)
    for entry in old.segments:
        record = layout.record(layout.part(old.codebook.object.sha256, entry.object.sha256))
        part = read_record(collection.store, record, PartResult)
        assert part is not None
        stem = layout.part(new.codebook.object.sha256, entry.object.sha256)
        moved = part.part.model_copy(update={"name": f"{stem}-{part.part.name.rpartition('-')[2]}"})
        collection.store.put_file_if_absent(moved.name, collection.file(part.part.name))
        collection.store.put(
            layout.record(stem), json.dumps({"rows": part.rows, "part": moved.model_dump(), "far": None}).encode()
        )
    with pytest.raises(IntegrityError, match="codebook") as refused:
        collection.night()
    assert "\n" not in str(refused.value)
    assert old.codebook.object.sha256[:8] in str(refused.value)
    assert new.codebook.object.sha256[:8] in str(refused.value)
    assert numbers(collection.store) == [1]
