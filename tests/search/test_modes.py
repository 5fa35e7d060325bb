"""Search by words and by both, over nights, against bm25s and brute force on all live passages."""

from pathlib import Path

import numpy as np
import pytest

from dpr.encoder.compute import Compute
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.engine.executor import LocalExecutor
from dpr.errors import IntegrityError, RecipeError
from dpr.formats.snapshots import live_snapshot
from dpr.nightly import make_segments
from dpr.operations.gc import collect
from dpr.operations.rollback import rollback
from dpr.operations.verify import verify
from dpr.recipe_index import LexicalConfig
from dpr.run import Plan, Run
from dpr.search.retrieve import Retriever
from dpr.store.lease import Lease
from tests.collection import Collection, FirstNights, let_pass
from tests.lexical.oracle import bm25s_scores, formula_pairs, formula_reach, tokens
from tests.tiny import Quiet, random_texts

QUESTIONS = ["w1 w2 w3", "w7 w8", "w150 w20"]
CONFIG, BESIDE_VECTORS = LexicalConfig(), LexicalConfig(k1=0.3)


@pytest.fixture
def collection(first_nights: FirstNights, tmp_path: Path) -> Collection:
    # enough candidates for all passages
    return first_nights.copy(tmp_path / "collection", texts_of_first_night(), lexical={"candidates": 100})


def texts_of_first_night() -> dict[str, str]:
    return random_texts(90, max_words=40) | {"p003": "w9 w1 w2 w3", "p005": "w7 w8 w7 w8 w150", "p007": "w20 w150 w20"}


def assert_answers_are_right(collection: Collection) -> None:
    """The live snapshot answers by words as bm25s does, and by both as the formula over all passages says."""
    rows = collection.live_rows(live_snapshot(collection.store).body)
    ids = list(rows)
    encoder = QuestionEncoder(resolve(collection.recipe.encoder).question, Compute())
    dense_QN = encoder.encode(QUESTIONS) @ np.stack([vector_D for _, vector_D in rows.values()]).T
    texts = [collection.corpus[id_] for id_ in ids]
    bm25_QN, beside_QN = (bm25s_scores(texts, QUESTIONS, config) for config in (CONFIG, BESIDE_VECTORS))
    pairs_QN = formula_pairs(texts, QUESTIONS, BESIDE_VECTORS)
    assert pairs_QN.any()
    reach_Q = formula_reach(texts, QUESTIONS, BESIDE_VECTORS)
    with Retriever.open(collection.store) as retriever:
        by_words = retriever.search(QUESTIONS, 5, mode="bm25").hits
        by_both = retriever.search(QUESTIONS, 5, mode="hybrid").hits
    for question in range(len(QUESTIONS)):
        dense_N, bm25_N, beside_N, pairs_N = (
            dict(zip(ids, s_QN[question].tolist(), strict=True)) for s_QN in (dense_QN, bm25_QN, beside_QN, pairs_QN)
        )
        terms = len(tokens([QUESTIONS[question]], CONFIG)[0])
        floor = 0.15 * reach_Q[question]
        words_N = {id_: max(beside_N[id_] + 0.6 * pairs_N[id_], floor) for id_ in ids}
        fused_N = {id_: words_N[id_] / terms**0.5 + 14.0 * dense_N[id_] for id_ in ids}
        for hits, scores_N in ((by_words[question], bm25_N), (by_both[question], fused_N)):
            best = sorted(scores_N.values(), reverse=True)[:5]
            best = [score for score in best if score > 0]
            assert [hit.score for hit in hits] == pytest.approx(best, abs=2e-3)
            assert [scores_N[hit.id] for hit in hits] == pytest.approx(best, abs=2e-3)
            assert [hit.text for hit in hits] == [collection.corpus[hit.id] for hit in hits]
        for hit in by_words[question]:
            assert hit.dense is None
            assert hit.bm25 is not None
            assert (hit.bm25.rank, hit.bm25.score) == (hit.rank, hit.score)
        for hit in by_both[question]:
            assert hit.dense is not None
            assert hit.bm25 is not None
            assert hit.dense.score == pytest.approx(dense_N[hit.id], abs=1e-4)
            assert hit.bm25.score == pytest.approx(beside_N[hit.id], abs=1e-4)
            better = np.array(list(dense_N.values())) - dense_N[hit.id]  # equal scores may have either rank
            assert np.count_nonzero(better > 1e-4) < (hit.dense.rank or 0) <= np.count_nonzero(better > -1e-4)


@pytest.mark.slow
def test_nights_that_add_delete_and_change_answer_as_one_index(collection: Collection) -> None:
    assert_answers_are_right(collection)
    for gone in [f"p{n:03d}" for n in range(0, 24, 2)]:
        del collection.corpus[gone]
    collection.corpus |= random_texts(15, "new", seed=4)
    collection.corpus["p001"] = "w1 w2 w1 w7"
    progress = Quiet()
    body = collection.night(progress=progress).snapshot.body
    assert body.lexical is not None
    assert 0 < progress.rows["embed"] + progress.rows["copy"] < 30
    assert progress.rows["invert"] == 0  # who writes a segment writes its words
    old = collection.body(1).lexical
    assert old is not None
    assert {part.object for part in old.parts} & {part.object for part in body.lexical.parts}
    assert_answers_are_right(collection)
    assert verify(collection.store, [1, 2], deep=True)[1] == []
    rollback(collection.store, 1)
    collection.corpus = texts_of_first_night()
    assert_answers_are_right(collection)


def test_another_rule_makes_new_parts_and_embeds_nothing(collection: Collection) -> None:
    first = collection.body(1).lexical
    assert first is not None
    collection.change(lexical={"stemming": False})
    progress = Quiet()
    second = collection.night(progress=progress).snapshot.body.lexical
    assert (progress.rows["embed"], progress.rows["invert"]) == (0, 90)
    collection.change(lexical={"k1": 1.5})
    progress = Quiet()
    third = collection.night(progress=progress).snapshot.body.lexical
    assert progress.rows["invert"] == 0
    assert second is not None
    assert third is not None
    assert [p.object for p in second.parts] == [p.object for p in third.parts] != [p.object for p in first.parts]


def test_a_run_that_goes_on_under_another_rule_makes_its_own_words(collection: Collection) -> None:
    collection.corpus["new"] = "w1 w2 w3 w150"
    collection.write_corpus()
    made = make_segments(Run(Plan.of(collection.recipe), LocalExecutor(), Quiet())).settled.words
    assert len(made) == 1
    collection.change(lexical={"stemming": False})
    collection.night()
    for part in made:
        collection.store.delete(part.name)  # as garbage collection does, since no snapshot names it
    collection.change(lexical={"stemming": True})
    progress = Quiet()
    collection.night(progress=progress)
    assert (progress.rows["embed"], progress.rows["invert"]) == (0, 1)
    assert verify(collection.store, [3], deep=True)[1] == []
    assert_answers_are_right(collection)


def test_words_come_back_with_their_segments(collection: Collection) -> None:
    first = dict(collection.corpus)
    lexical = {name for name in collection.files() if name.startswith("lexical/")}
    collection.corpus = {f"other-{id_}": f"{text} w3" for id_, text in first.items()}
    collection.night()
    collection.corpus = first
    progress = Quiet()
    body = collection.night(progress=progress).snapshot.body
    assert (progress.rows["embed"], progress.rows["invert"]) == (0, 0)
    assert body.lexical is not None
    assert {part.object.name for part in body.lexical.parts} <= lexical
    assert_answers_are_right(collection)


def test_words_are_kept_while_a_snapshot_names_them(collection: Collection) -> None:
    before = {name for name in collection.files() if name.startswith("lexical/")}
    collection.change(lexical={"build": False})
    body = collection.night().snapshot.body
    assert body.lexical is None
    let_pass(collection.store, 48 * 3600.0)
    for keep, left in ((2, before), (1, set())):
        with Lease.acquire(collection.store, "gc") as lease:
            collect(collection.store, keep, lease)
        assert {name for name in collection.files() if name.startswith("lexical/")} == left


def test_a_snapshot_without_words_says_so(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "collection", lexical={"build": False})
    assert not any(name.startswith("lexical/") for name in collection.files())
    with Retriever.open(collection.store) as retriever:
        assert len(retriever.search(QUESTIONS, 3).hits) == len(QUESTIONS)
        for mode in ("bm25", "hybrid"):
            with pytest.raises(RecipeError, match=f"mode {mode} needs an index of words, and this snapshot has none"):
                retriever.search(QUESTIONS, 3, mode=mode)


def test_the_recipe_decides_the_mode(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "collection", lexical={"mode": "bm25"})
    with Retriever.open(collection.store) as retriever:
        assert retriever.search(["w1 w2"], 3).hits == retriever.search(["w1 w2"], 3, mode="bm25").hits


def test_a_damaged_part_is_found_and_not_searched(collection: Collection) -> None:
    lexical = collection.body(1).lexical
    assert lexical is not None
    path = collection.file(lexical.parts[0].object.name)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert [problem.object for problem in verify(collection.store, [1], deep=True)[1]] == [lexical.parts[0].object.name]
    with pytest.raises(IntegrityError, match="sha256"):
        Retriever.open(collection.store)
