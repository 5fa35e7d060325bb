"""Questions in, hits with their text out; and a marker that keeps the snapshot while it is read."""

import gc
import json
import logging
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from dpr.encoder.compute import Compute
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.errors import EncoderError, IntegrityError, MissingObjectError
from dpr.formats import layout
from dpr.search.retrieve import Retriever
from tests.collection import Collection, FirstNights
from tests.formats.samples import snapshots_read
from tests.tiny import make_encoder

QUESTIONS = ["w1 w2 w3", "w7", "w150 w20"]


@pytest.fixture
def collection(first_nights: FirstNights, tmp_path: Path) -> Collection:
    return first_nights.copy(tmp_path / "collection")


@pytest.mark.parametrize("exact", [False, True])
def test_hits_are_those_of_brute_force_with_their_text(collection: Collection, exact: bool) -> None:
    rows = collection.live_rows(collection.body(1))
    assert {id_: text for id_, (text, _) in rows.items()} == collection.corpus
    encoder = QuestionEncoder(resolve(collection.recipe.encoder).question, Compute())
    scores_QN = encoder.encode(QUESTIONS) @ np.stack([vector_D for _, vector_D in rows.values()]).T
    with Retriever.open(collection.store) as retriever:
        answer = retriever.search(QUESTIONS, 5, exact=exact)
    assert len(answer.hits) == len(QUESTIONS)
    for hits, scores_N in zip(answer.hits, scores_QN, strict=True):
        best = np.argsort(-scores_N)[:5]
        assert [hit.id for hit in hits] == [list(rows)[row] for row in best]
        assert [hit.score for hit in hits] == pytest.approx(scores_N[best].tolist(), abs=1e-5)
        assert [hit.text for hit in hits] == [collection.corpus[hit.id] for hit in hits]
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("precision", "other"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_questions_are_encoded_in_the_precision_of_the_recipe(
    first_nights: FirstNights, tmp_path: Path, precision: Literal["fp32", "bf16"], other: Literal["fp32", "bf16"]
) -> None:
    collection = first_nights.copy(tmp_path / "collection", encoder={"precision": precision})
    rows = collection.live_rows(collection.body(1))
    tower = resolve(collection.recipe.encoder).question
    with Retriever.open(collection.store) as retriever:
        (hits,) = retriever.search(QUESTIONS[:1], 5, exact=True).hits
    found = [hit.score for hit in hits]
    expected, others = (
        [float(question_D @ rows[hit.id][1]) for hit in hits]
        for compute in (precision, other)
        for question_D in QuestionEncoder(tower, Compute(compute)).encode(QUESTIONS[:1])
    )
    assert found == pytest.approx(expected, abs=1e-6)
    assert found != pytest.approx(others, abs=1e-5)


def test_an_older_snapshot_answers_as_it_did(collection: Collection) -> None:
    text = collection.corpus["p003"]
    collection.corpus["p003"] = "w9"
    collection.night()
    shown = {}
    for number in (1, 2, None):
        with Retriever.open(collection.store, number) as retriever:
            assert retriever.number == (number or 2)
            shown[number] = {hit.id: hit.text for hit in retriever.search(["w9"], 30).hits[0]}
    assert shown[1]["p003"] == text
    assert shown[2] == shown[None] == collection.corpus


def test_a_retriever_is_a_reader_until_it_is_closed_or_dropped(collection: Collection) -> None:
    store = collection.store
    with Retriever.open(store) as retriever:
        assert snapshots_read(store) == [1]
        assert retriever.search(["w1"], 1).hits[0]
    assert snapshots_read(store) == []
    retriever = Retriever.open(store)
    assert snapshots_read(store) == [1]
    del retriever
    gc.collect()
    until = time.monotonic() + 60
    while snapshots_read(store):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_opening_that_fails_leaves_no_marker(collection: Collection, tmp_path: Path) -> None:
    store, other = collection.store, make_encoder(tmp_path / "other", seed=1)
    with pytest.raises(EncoderError, match="was made by encoder"):
        Retriever.open(store, model=str(other))
    with pytest.raises(MissingObjectError, match="has no snapshot 9"):
        Retriever.open(store, 9)
    path = collection.file(collection.body(1).index.shards[0].object.name)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match="its record says"):
        Retriever.open(store)
    assert list(store.list("readers/")) == []


def test_a_model_that_only_the_snapshot_names_is_not_fetched(collection: Collection) -> None:
    """A person who can write a store must not be able to make its readers fetch and load other models."""
    path = collection.file(layout.snapshot(1))
    document = json.loads(path.read_text())
    document["body"]["encoder"]["config"]["model"] = "s3://somebody/model"
    path.write_text(json.dumps(document))
    with pytest.raises(EncoderError, match=r"names the question model s3://somebody/model, which is not on this mach"):
        Retriever.open(collection.store)
    with Retriever.open(collection.store, model=collection.recipe.encoder.model) as retriever:
        assert retriever.search(["w1"], 1).hits[0]


def test_a_store_that_cannot_be_written_is_read_and_one_warning_says_so(
    collection: Collection, caplog: pytest.LogCaptureFixture
) -> None:
    collection.file("readers").write_bytes(b"")  # a file where the folder would be: every write of a marker fails
    with caplog.at_level(logging.WARNING), Retriever.open(collection.store) as retriever:
        assert retriever.search(["w1"], 1).hits[0]
    (record,) = [record for record in caplog.records if record.name == "dpr.formats.markers"]
    assert "snapshot 1 is read without a marker" in record.getMessage()
    assert collection.recipe.store in record.getMessage()
