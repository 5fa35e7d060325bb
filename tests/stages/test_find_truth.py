"""Questions and their exact neighbours: kept over nights, and after any deletions those of brute force.

Shapes: Q questions, N passages, K neighbours.
"""

import json
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

from dpr.encoder.compute import Compute
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.engine.executor import LocalExecutor
from dpr.engine.run_state import StageReport
from dpr.errors import IntegrityError
from dpr.formats import layout
from dpr.formats.deletions import RowSet, read_deletions, with_dead
from dpr.formats.manifest import SegmentEntry, SnapshotBody
from dpr.formats.objects import put_object
from dpr.formats.records import ObjectRef, read_record
from dpr.recipe_index import IndexConfig
from dpr.run import Plan, Run
from dpr.run_recipe import Outcome
from dpr.stages.find_truth import CACHED_DEPTH, Truth, TruthResult, find_truth, read_neighbours, write_truth
from dpr.stages.question_vectors import STAND_INS, QuestionVectors, live_among
from dpr.stages.train import IndexContext, index_context
from dpr.store import PARALLEL_READS, LocalStore
from tests.collection import Collection, FirstNights
from tests.formats.samples import RemoteStore
from tests.tiny import Quiet, random_texts

QUESTIONS = ["w1 w2 w3", "w100", "w7 w9", "w5 w50 w150", "w33 w44"]


def reports(outcome: Outcome, stage: str) -> list[StageReport]:
    assert outcome.report is not None
    return [report for report in outcome.report.stages if report.stage == stage]


def write_questions(path: Path, questions: list[str]) -> dict[str, Any]:
    """Write questions; returns the gate of a recipe that asks them."""
    path.write_text("".join(json.dumps({"question": text, "answers": ["p000"]}) + "\n" for text in questions))
    return {"questions": str(path), "answers": "strings", "at": [1]}


def drawn(collection: Collection, body: SnapshotBody) -> set[tuple[str, int]]:
    """The passages that stand in for questions: SHA-256 of the segment, and row."""
    stem = layout.questions(body.encoder_id, body.gate.questions_id)
    vectors = read_record(collection.store, layout.record(stem), QuestionVectors)
    assert vectors is not None
    assert len(vectors.drawn) == vectors.rows == len(set(vectors.drawn))
    return set(vectors.drawn)


def test_stand_ins_are_kept_over_nights_and_old_segments_are_not_compared_again(
    tmp_path: Path, first_nights: FirstNights
) -> None:
    collection = first_nights.copy(tmp_path)
    first = collection.body(1)
    assert first.gate.question_kind == "sentences"
    rows = {(entry.object.sha256, row) for entry in first.segments for row in range(entry.rows)}
    assert drawn(collection, first) == rows  # there are fewer than would be drawn
    assert len(rows) == 30 < STAND_INS

    collection.change(resources={"compact_below": 0.0})
    collection.corpus |= {"p001": "w1 w2", "new": "w3 w4"}
    second = collection.night()
    for name in list(collection.corpus)[2:8]:
        del collection.corpus[name]
    third = collection.night()
    for number, outcome in enumerate((second, third), 2):
        assert outcome.snapshot.number == number
        assert outcome.snapshot.body.gate.questions_id == first.gate.questions_id
        assert reports(outcome, "questions") == []
    (compared,) = reports(second, "truth")
    assert (compared.units, compared.done_before, compared.rows) == (3, 2, 2)
    (compared,) = reports(third, "truth")
    assert (compared.units, compared.done_before) == (3, 3)


@pytest.mark.parametrize(("gone", "redraws"), [(15, False), (16, True)])
def test_stand_ins_are_drawn_again_once_more_than_half_have_moved(
    tmp_path: Path, first_nights: FirstNights, gone: int, redraws: bool
) -> None:
    collection = first_nights.copy(tmp_path)
    collection.change(resources={"compact_below": 0.0})
    collection.corpus = dict(list(collection.corpus.items())[gone:]) | {"new": "w3 w4"}
    outcome = collection.night()
    old, new = drawn(collection, collection.body(1)), drawn(collection, outcome.snapshot.body)
    assert len(reports(outcome, "questions")) == redraws
    assert (new != old) == redraws
    assert len(new) == (31 - gone if redraws else 30)
    if redraws:
        rows = collection.live_rows(outcome.snapshot.body)
        encoder = QuestionEncoder(resolve(collection.recipe.encoder).question, Compute())
        sentences = {text: encoder.encode([text])[0] for text, _ in rows.values()}  # each passage is one sentence
        for vector_D in stored_questions(collection, outcome.snapshot.body):
            assert min(np.abs(vector_D - sentence_D).max() for sentence_D in sentences.values()) < 2e-3


def stored_questions(collection: Collection, body: SnapshotBody) -> npt.NDArray[np.float32]:
    """Vectors of the questions, read with pyarrow alone."""
    stem = layout.questions(body.encoder_id, body.gate.questions_id)
    (path,) = [collection.file(name) for name in collection.files() if name.startswith(f"{stem}-")]
    return np.array(pq.read_table(path)["embedding"].to_pylist(), np.float32)


def test_questions_of_the_recipe_are_encoded_once_and_asked_of_every_night(
    tmp_path: Path, first_nights: FirstNights
) -> None:
    collection = first_nights.copy(tmp_path)
    names = ["p001", "p002", "p003"]
    questions = [{"question": collection.corpus[name], "answers": [name]} for name in names]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    collection.change(gate={"questions": str(tmp_path / "questions.jsonl"), "at": [1]})
    first = collection.night()
    assert first.snapshot.body.gate.accuracy_exact == {"1": 1.0}
    assert "measured with only 3 questions, so recall is known to ± " in first.snapshot.body.gate.settings
    tower = resolve(collection.recipe.encoder).question
    expected_QD = QuestionEncoder(tower, Compute()).encode([question["question"] for question in questions])
    assert np.array_equal(stored_questions(collection, first.snapshot.body), expected_QD)
    collection.corpus["p002"] = "w1 w2 w3"
    second = collection.night()
    assert second.snapshot.body.gate.accuracy_exact == {"1": pytest.approx(2 / 3)}
    assert [(report.units, report.done_before) for report in reports(second, "questions")] == [(1, 1)]
    assert [(report.units, report.done_before) for report in reports(second, "truth")] == [(3, 2)]


def truth_of(collection: Collection, body: SnapshotBody, depth: int) -> tuple[Truth, list[StageReport]]:
    """What the stage finds for a snapshot."""
    run = Run(Plan.of(collection.recipe), LocalExecutor(), Quiet())
    truth = find_truth(run, index_context(run, body.segments, body.deletions), depth)
    return truth, [report for report in run.stage_reports if report.stage == "truth"]


def assert_brute_force(collection: Collection, body: SnapshotBody, truth: Truth) -> None:
    """The neighbours are the best of all live rows, in float64."""
    rows = collection.live_rows(body)
    ids, vectors_ND = list(rows), np.stack([vector for _, vector in rows.values()]).astype(np.float64)
    names = passage_names(collection, body)
    questions_QD = stored_questions(collection, body).astype(np.float64)
    exact_QN = questions_QD @ vectors_ND.T
    depth = truth.ids_QK.shape[1]
    found = min(depth, len(ids))
    best_QK = -np.sort(-exact_QN, axis=1)[:, :found]
    np.testing.assert_allclose(truth.scores_QK[:, :found], best_QK, atol=1e-5)
    assert (truth.ids_QK[:, found:] == -1).all()
    for q, ids_K in enumerate(truth.ids_QK[:, :found].tolist()):
        passages = [names[id_] for id_ in ids_K]
        assert len(set(passages)) == found
        assert exact_QN[q][[ids.index(name) for name in passages]] == pytest.approx(best_QK[q], abs=1e-5)


def passage_names(collection: Collection, body: SnapshotBody) -> dict[int, str]:
    """Id in the index → id of the passage."""
    names = {}
    for entry in body.segments:
        table = pq.read_table(collection.file(entry.object.name), columns=["id"])
        names |= {entry.number << 32 | row: name for row, name in enumerate(table["id"].to_pylist())}
    return names


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, 5, 40])
def test_truth_is_that_of_brute_force_after_nights_with_deletions(
    tmp_path: Path, first_nights: FirstNights, depth: int
) -> None:
    collection = first_nights.copy(tmp_path)
    collection.change(gate=write_questions(tmp_path / "questions.jsonl", QUESTIONS), resources={"compact_below": 0.0})
    rng = np.random.default_rng(depth)
    for night in range(3):
        for name in rng.choice(list(collection.corpus), 6, replace=False):
            del collection.corpus[str(name)]
        collection.corpus |= random_texts(7, f"night{night}-", seed=night + 10)
        body = collection.night().snapshot.body
        truth, compared = truth_of(collection, body, depth)
        assert_brute_force(collection, body, truth)
        assert len(compared) == 1


def test_a_segment_whose_neighbours_died_is_compared_again_without_the_dead(tmp_path: Path, encoder: Path) -> None:
    """So many of one question's neighbours that fewer than are needed are left of those that were kept."""
    texts = random_texts(CACHED_DEPTH + 120, min_words=4)
    collection = Collection(
        tmp_path,
        encoder,
        texts,
        resources={"segment_rows": 1000, "compact_below": 0.0},
        gate=write_questions(tmp_path / "questions.jsonl", QUESTIONS),
    )
    body = collection.night().snapshot.body
    depth = 20  # what the gate needs for recall@20
    rows = collection.live_rows(body)
    question_D = stored_questions(collection, body)[0]
    nearest = sorted(rows, key=lambda name: -float(rows[name][1] @ question_D))

    def night_without(count: int) -> Outcome:
        """A night after the removal of the first question's `count` nearest passages."""
        collection.corpus = {name: text for name, text in texts.items() if name not in nearest[:count]}
        return collection.night()

    enough = night_without(CACHED_DEPTH - depth)
    assert [(report.units, report.done_before) for report in reports(enough, "truth")] == [(1, 1)]
    too_few = night_without(CACHED_DEPTH - depth + 1)
    assert [(report.units, report.done_before) for report in reports(too_few, "truth")] == [(1, 1), (1, 0)]
    for outcome in (enough, too_few):
        truth, _ = truth_of(collection, outcome.snapshot.body, depth)
        assert_brute_force(collection, outcome.snapshot.body, truth)
    # and what was found without the dead is kept in its turn
    _, compared = truth_of(collection, too_few.snapshot.body, depth)
    assert [(report.units, report.done_before) for report in compared] == [(1, 1), (1, 1)]
    # the passages that are left are fewer than the neighbours that are wanted
    few = night_without(len(texts) - 7)
    truth, _ = truth_of(collection, few.snapshot.body, depth)
    assert_brute_force(collection, few.snapshot.body, truth)


@pytest.mark.parametrize("kind", ["vectors", "truth"])
def test_what_is_kept_is_verified_when_it_is_read(tmp_path: Path, first_nights: FirstNights, kind: str) -> None:
    collection = first_nights.copy(tmp_path)
    body = collection.body(1)
    stem = layout.questions(body.encoder_id, body.gate.questions_id)
    if kind == "truth":
        sha256 = body.segments[0].object.sha256
        stem = f"{stem.removesuffix('vectors')}{sha256[: layout.SHORT_DIGEST]}"
    (name,) = [name for name in collection.files() if name.startswith(f"{stem}-") and name.endswith(".parquet")]
    data = bytearray(collection.file(name).read_bytes())
    data[len(data) // 2] ^= 1
    collection.file(name).write_bytes(data)
    collection.corpus["new"] = "w3 w4"
    with pytest.raises(IntegrityError, match=rf"object {name} in .* has sha256 [0-9a-f]{{64}}, its record says "):
        collection.night()


def test_neighbours_of_many_segments_are_not_all_fetched_before_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, found = RemoteStore(tmp_path / "store"), []
    for number in range(3 * PARALLEL_READS):
        write_truth(tmp_path / "truth", np.full((2, 3), number, np.float32), np.full((2, 3), number))
        found.append(TruthResult(rows=3, truth=put_object(store, f"truth/{number}", tmp_path / "truth")))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    used = 0
    for number, (scores_QK, rows_QK) in enumerate(read_neighbours(store, found, 2)):
        assert (scores_QK == number).all()
        assert (rows_QK == number).all()
        time.sleep(0.01)  # readers that were let run ahead would do so now
        used += 1
        assert len(store.reads) <= used + PARALLEL_READS
        assert 1 <= sum(path.is_file() for path in temporary.rglob("*")) <= PARALLEL_READS
    assert used == len(found)
    assert not list(temporary.iterdir())


def test_passages_are_live_unless_they_died_or_their_segment_is_gone(tmp_path: Path) -> None:
    store, rows, several = LocalStore(tmp_path), 200_000, 40
    dead = {number: np.arange(number, rows, 1_000, dtype=np.uint32) for number in range(several)}
    entries = [
        with_dead(
            SegmentEntry(
                number=number,
                segment_id=str(number),
                rows=rows,
                object=ObjectRef(name=str(number), size_bytes=0, sha256=f"{number:064}"),
            ),
            dead[number],
        )
        for number in range(several)
    ]
    context = IndexContext(store.url, "e", 4, IndexConfig(), tuple(entries), RowSet(dead).put(store))
    deletions = read_deletions(store, context.deletions)
    drawn = [(f"{number:064}", row) for number in range(several + 1) for row in (number, number + 1, rows - 1)]
    tracemalloc.start()
    try:
        live = live_among(context, deletions, drawn)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert live == [
        number < several and row not in dead[number]
        for number in range(several + 1)
        for row in (number, number + 1, rows - 1)
    ]
    assert peak_bytes < several * rows / 10  # a mask of all rows would take ten times as much
