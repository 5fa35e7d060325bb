"""Nights of a store whose vectors are int8: answers are exact over what is stored, and other forms never mix with it.

Shapes: N passages, Q questions, K hits, D dimensions.
"""

from pathlib import Path

import numpy as np
import pytest

from dpr.encoder.compute import Compute
from dpr.encoder.encode import PassageEncoder
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.errors import IntegrityError
from dpr.formats.manifest import SnapshotBody
from dpr.formats.stored_vectors import as_stored
from dpr.operations.verify import verify
from dpr.search.retrieve import Retriever
from dpr.search.segment_set import SegmentSet
from dpr.store import LocalStore
from tests.collection import Collection, FirstNights
from tests.formats.samples import put_segment, random_vectors
from tests.tiny import WORDS, random_texts

K = 10
QUESTIONS = [f"{first} {second}" for first, second in zip(WORDS[:12], WORDS[30:42], strict=True)]


@pytest.fixture
def collection(tmp_path: Path, first_nights: FirstNights) -> Collection:
    """A collection with vectors of float16, after its first night."""
    return first_nights.copy(
        tmp_path,
        random_texts(300),
        encoder={"precision": "fp32"},
        index={"factory": "IVF8,PQ8x4", "nprobe": 8, "rescore": 300, "train_rows": 200},
        gate={"min_recall": 0},
        resources={"segment_rows": 100},
    )


def check_answers(collection: Collection, body: SnapshotBody) -> None:
    """Exact and usual search give what numpy finds among the stored vectors, as pyarrow reads them."""
    rows = collection.live_rows(body)
    assert {id_: text for id_, (text, _) in rows.items()} == collection.corpus
    ids, vectors_ND = list(rows), np.stack([vector_D for _, vector_D in rows.values()])
    questions_QD = QuestionEncoder(resolve(collection.recipe.encoder).question, Compute("fp32")).encode(QUESTIONS)
    scores_QN = questions_QD @ vectors_ND.T
    with Retriever.open(collection.store) as retriever:
        for exact in (True, False):
            for scores_N, hits in zip(scores_QN, retriever.search(QUESTIONS, K, exact=exact).hits, strict=True):
                best_K = np.sort(scores_N)[::-1][:K]
                assert [hit.score for hit in hits] == pytest.approx(best_K.tolist(), abs=1e-5)
                assert [scores_N[ids.index(hit.id)] for hit in hits] == pytest.approx(best_K.tolist(), abs=1e-5)


@pytest.mark.slow
def test_a_float16_store_becomes_int8_without_encoding(collection: Collection) -> None:
    before = collection.body(1)
    collection.change(encoder={"store_as": "int8"})
    outcome = collection.night()
    body, report = outcome.snapshot.body, outcome.report
    assert report is not None
    assert {stage.stage: stage.units for stage in report.stages}["embed"] == 0
    assert report.found.model_dump().items() >= {"new": 0, "dead": 0, "restored": 0}.items()
    assert body.encoder_id != before.encoder_id
    assert {entry.segment_id for entry in body.segments}.isdisjoint(entry.segment_id for entry in before.segments)
    as_float16, as_int8 = collection.live_rows(before), collection.live_rows(body)
    for id_, (_, vector_D) in as_float16.items():
        expected_D = as_stored(vector_D[None].astype(np.float16), "int8")[0]
        np.testing.assert_array_equal(as_int8[id_][1], expected_D.astype(np.float32))
    check_answers(collection, body)
    assert verify(collection.store, [1, 2], deep=True)[1] == []
    assert not collection.night().published

    collection.corpus["new"] = "w1 w2 w3"
    del collection.corpus[next(iter(collection.corpus))]
    later = collection.night().snapshot.body
    assert {entry.segment_id for entry in body.segments} <= {entry.segment_id for entry in later.segments}
    check_answers(collection, later)

    collection.change(encoder={"store_as": "float16"})  # the snapshot of float16 is still there to begin from
    back = collection.night().snapshot.body
    assert back.encoder_id == before.encoder_id
    encode = PassageEncoder(resolve(collection.recipe.encoder).passage, Compute("fp32", threads=1)).encode
    fresh_ND = encode([""] * len(collection.corpus), list(collection.corpus.values()))
    stored = collection.live_rows(back)
    np.testing.assert_allclose(np.stack([stored[id_][1] for id_ in collection.corpus]), fresh_ND, atol=1e-3)


def test_segments_of_two_forms_do_not_meet(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    entries = [
        put_segment(store, tmp_path, 0, random_vectors(20, 8)),
        put_segment(store, tmp_path, 1, random_vectors(20, 8), store_as="int8"),
    ]
    with pytest.raises(IntegrityError, match=r"stored as 8 numbers of float16 \(.*\) and 8 numbers of int8 \("):
        SegmentSet.open(store, entries, None)
