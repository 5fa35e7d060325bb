"""What the gate says that the index loses, against searches by plain numpy and bounds by scipy.

Shapes: Q questions, N passages.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from dpr.errors import GateError
from dpr.evaluate.significance import share_at_least, share_at_most
from dpr.formats import layout
from dpr.formats.gate_report import IndexLoss
from dpr.formats.manifest import SnapshotBody
from dpr.formats.records import read_record
from dpr.index.truth import Ids
from dpr.search.vector_search import VectorSearch
from dpr.stages.gate import GateResult
from dpr.stages.gate_limits import check_gate
from dpr.stages.question_halves import split_questions
from dpr.stages.question_vectors import QuestionVectors, read_questions
from tests.collection import Collection, FirstNights
from tests.tiny import Quiet, random_texts

SENTENCES = list(random_texts(360, seed=4, min_words=6, max_words=9).values())
TEXTS = {f"p{n:03}": ". ".join(SENTENCES[3 * n : 3 * n + 3]) for n in range(120)}
"""Each of three sentences."""
INDEX = {"factory": "IVF8,SQ8", "nprobe": 4, "rescore": 20, "recall_at": 5}
MAX_LOSS = 0.1
WANTED = 80
"""Sentences that tell whether a tenth is lost."""


def night_of(folder: Path, first_nights: FirstNights, questions: int) -> Collection:
    """Return a collection that asks some questions, each a few words of a passage, and visits half of the lists."""
    gate, resources = {"min_recall": 0, "max_drop": None, "at": [1, 5]}, {"segment_rows": 50}
    collection = first_nights.copy(folder, TEXTS, index=INDEX, gate=gate, resources=resources)
    names = list(TEXTS)[:questions]
    rows = [{"question": " ".join(TEXTS[name].split()[1:6]), "answers": [name]} for name in names]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    collection.change(gate={"questions": str(folder / "questions.jsonl")} if questions else {})
    return collection


def vectors_of(collection: Collection, body: SnapshotBody) -> QuestionVectors:
    record = layout.record(layout.questions(body.encoder_id, body.gate.questions_id))
    found = read_record(collection.store, record, QuestionVectors)
    assert found is not None
    return found


def own_rows(body: SnapshotBody, vectors: QuestionVectors) -> Ids:
    """Return which passage each sentence is of: its place among all, where none is dead."""
    names = [entry.object.sha256 for entry in body.segments for _ in range(entry.rows)]
    return np.array([names.index(sha256) + row for sha256, row in vectors.drawn])


def counted(collection: Collection, body: SnapshotBody, answers: Ids, rows: Ids) -> tuple[int, int, int]:
    """Count by hand: how many of some questions are asked, and how many only exact search or the index answers."""
    live = collection.live_rows(body)
    vectors_ND = np.stack([vector for _, vector in live.values()])
    questions_QD = read_questions(collection.store, vectors_of(collection, body).vectors)[rows]
    best_QK = np.argsort(-(questions_QD @ vectors_ND.T), axis=1, kind="stable")[:, :5]
    ids = [f"{entry.number}-{row}" for entry in body.segments for row in range(entry.rows)]
    search = VectorSearch.open(collection.store, body)
    found_QK = search.top(questions_QD, 5)[1]
    names_QK = [[f"{id_ >> 32}-{id_ & 0xFFFFFFFF}" for id_ in found if id_ >= 0] for found in found_QK.tolist()]
    exactly = np.array([answer in best for answer, best in zip(answers, best_QK.tolist(), strict=True)])
    by_index = np.array([ids[answer] in names for answer, names in zip(answers, names_QK, strict=True)])
    return len(rows), int((exactly & ~by_index).sum()), int((by_index & ~exactly).sum())


def figures(loss: IndexLoss) -> tuple[str, int, int, int]:
    return loss.kind, loss.questions, loss.lost, loss.won


@pytest.mark.slow
def test_few_questions_get_sentences_beside_them_and_both_losses_are_counted(
    tmp_path: Path, first_nights: FirstNights
) -> None:
    collection = night_of(tmp_path, first_nights, 30)
    plain = collection.night().snapshot.body
    assert [loss.kind for loss in plain.gate.losses] == ["questions"]
    collection.change(gate={"max_loss": MAX_LOSS}, index={"seed": 8})
    body = collection.night().snapshot.body
    vectors = vectors_of(collection, body)
    assert (body.gate.questions, vectors.rows, len(vectors.drawn)) == (30, 30 + WANTED, WANTED)
    own = own_rows(body, vectors)
    of_questions = ("questions", *counted(collection, body, np.arange(30), np.arange(30)))
    of_sentences = ("sentences", *counted(collection, body, own, np.arange(30, 30 + WANTED)))
    assert [figures(loss) for loss in body.gate.losses] == [of_questions, of_sentences]
    assert of_sentences[2] > 0
    lost = of_sentences[2]
    assert body.gate.losses[1].at_most == pytest.approx(
        binomtest(lost, WANTED).proportion_ci(0.9, method="exact").high, abs=1e-6
    )
    # the questions themselves are encoded as without sentences, and measured as before
    before = read_questions(collection.store, vectors_of(collection, plain).vectors)
    assert np.array_equal(read_questions(collection.store, vectors.vectors)[:30], before)
    assert body.gate.accuracy_exact == plain.gate.accuracy_exact
    assert f"on {WANTED} sentences ({lost} lost, " in body.gate.settings


@pytest.mark.slow
def test_sentences_are_kept_while_the_same_is_wanted(tmp_path: Path, first_nights: FirstNights) -> None:
    collection = night_of(tmp_path, first_nights, 30)
    collection.change(gate={"max_loss": MAX_LOSS}, resources={"compact_below": 0.0})
    collection.corpus["new"] = "w1 w2 w3"
    first = collection.night().snapshot.body
    drawn = vectors_of(collection, first).drawn
    gone = next(iter(TEXTS))
    del collection.corpus[gone]
    second = collection.night().snapshot.body
    assert second.gate.questions_id == first.gate.questions_id
    assert vectors_of(collection, second).drawn == drawn
    was_drawn = (first.segments[0].object.sha256, 0) in drawn
    assert second.gate.losses[1].questions == WANTED - was_drawn
    collection.change(gate={"max_loss": MAX_LOSS / 2})
    collection.corpus["newer"] = "w4 w5 w6"
    third = collection.night().snapshot.body
    assert len(vectors_of(collection, third).drawn) == 121  # all passages: fewer than would be drawn


@pytest.mark.slow
def test_without_questions_sentences_that_chose_no_settings_tell(tmp_path: Path, first_nights: FirstNights) -> None:
    collection = night_of(tmp_path, first_nights, 0)
    body = collection.night().snapshot.body
    assert (body.gate.question_kind, body.gate.questions) == ("sentences", 120)
    (loss,) = body.gate.losses
    _, held_out = split_questions(120, collection.recipe.index.seed)
    own = own_rows(body, vectors_of(collection, body))
    assert figures(loss) == ("sentences", *counted(collection, body, own[held_out], held_out))


@pytest.mark.slow
def test_enough_questions_need_no_sentences(tmp_path: Path, first_nights: FirstNights) -> None:
    collection = night_of(tmp_path, first_nights, WANTED)
    collection.change(gate={"max_loss": MAX_LOSS})
    report = collection.night().snapshot.body.gate
    assert [loss.kind for loss in report.losses] == ["questions"]


@pytest.mark.parametrize(("lost", "is_refused"), [(0, False), (12, False), (13, False), (14, True)])
def test_a_loss_that_chance_does_not_explain_is_refused(
    lost: int, is_refused: bool, tmp_path: Path, first_nights: FirstNights
) -> None:
    """Of 4,000, eight are the allowed share; up to thirteen may be chance."""
    collection = first_nights.copy(tmp_path)
    collection.change(gate={"max_loss": 0.002})
    loss = IndexLoss(kind="sentences", questions=4_000, lost=lost + 2, won=2, at_most=0.0072)
    report = collection.body(1).gate.model_copy(update={"losses": [loss]})
    result = GateResult(
        rows=1, report=report, nprobe=1, margin=None, rescore=0, deeper=None, recall_target=0.998, curve=[]
    )
    if not is_refused:
        check_gate(collection.recipe, result)
        return
    with pytest.raises(GateError) as error:
        check_gate(collection.recipe, result)
    assert str(error.value) == (
        "the index loses 0.35 points of top-20 on 4,000 sentences (16 lost, 2 won), and at most 0.72 with a confidence "
        "of 95%; that is more than 0.21 with the same confidence, and the recipe allows 0.2 (gate.max_loss 0.002); "
        "nothing was published: raise index.recall_target, or gate.max_loss"
    )
    collection.change(gate={"max_loss": None})
    check_gate(collection.recipe, result)


@pytest.mark.parametrize("questions", [1, 7, 300, 7_277])
@pytest.mark.parametrize("found", [0, 1, 5, 300])
def test_bounds_of_a_share_are_those_of_clopper_and_pearson(found: int, questions: int) -> None:
    found = min(found, questions)
    exact = binomtest(found, questions).proportion_ci(0.9, method="exact")  # 5% on either side
    assert share_at_most(found, questions) == pytest.approx(exact.high, abs=1e-9)
    assert share_at_least(found, questions) == pytest.approx(exact.low, abs=1e-9)


def test_nothing_asked_tells_nothing() -> None:
    assert (share_at_most(0, 0), share_at_least(0, 0)) == (1.0, 0.0)


def test_a_few_questions_that_all_find_everything_still_say_how_little_that_tells(
    tmp_path: Path, first_nights: FirstNights
) -> None:
    collection = night_of(tmp_path, first_nights, 5)
    collection.change(index={"nprobe": 8})
    report = collection.night(progress=Quiet()).snapshot.body.gate
    assert report.recall == 1.0
    found = re.search(r"measured with only 5 questions, so recall is known to ± (0\.\d\d)", report.settings)
    assert found
    assert float(found[1]) == pytest.approx(1 - 0.05 ** (1 / 5), abs=0.005)  # the rule of three, exactly
