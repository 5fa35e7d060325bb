"""The gate compares a snapshot with the live one, question by question: a real loss stops the run, chance does not."""

import getpass
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertModel

from dpr.errors import GateError
from dpr.formats.snapshots import latest_snapshot
from dpr.run_recipe import Allowed
from dpr.search.retrieve import Retriever
from tests.collection import Collection, FirstNights
from tests.tiny import Quiet, make_encoder, random_texts

pytestmark = pytest.mark.slow
PASSAGES = 150
DROP = 0.02


def questions_about(corpus: dict[str, str]) -> dict[str, str]:
    """Return a question for each passage: half of its words, in another order."""
    rng = np.random.default_rng(5)
    question_of = {}
    for id_, text in corpus.items():
        words = text.split()
        question_of[id_] = " ".join(rng.permutation(words)[: max(1, len(words) // 2)])
    return question_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights) -> tuple[Collection, dict[str, str]]:
    """Make a collection whose live snapshot was measured with questions; return these by passage, too."""
    folder = tmp_path_factory.mktemp("asked")
    collection = first_nights.copy(folder / "collection", random_texts(PASSAGES, min_words=6))
    questions = questions_about(collection.corpus)
    path = folder / "questions.jsonl"
    rows = ({"question": text, "answers": [id_]} for id_, text in questions.items())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    collection.change(gate={"questions": str(path), "min_recall": 0, "at": [1, 5], "max_drop": DROP})
    collection.night()
    return collection, questions


@pytest.fixture
def measured(tmp_path: Path, made: tuple[Collection, dict[str, str]]) -> tuple[Collection, dict[str, str]]:
    """Give a copy of that collection, and the questions by passage."""
    collection, questions = made
    return collection.copy(tmp_path / "collection"), questions


def damaged(folder: Path, share: float) -> Path:
    """Make the encoder of the collection again; a share of all words are one and the same to it."""
    model = BertModel.from_pretrained(make_encoder(folder), add_pooling_layer=False)
    torch.manual_seed(3)
    with torch.no_grad():
        words = model.embeddings.word_embeddings.weight
        lost = torch.rand(len(words)) < share
        words[lost] = words[lost].mean(dim=0)
    model.save_pretrained(folder)
    return folder


def shaken(folder: Path, seed: int) -> Path:
    """Make the encoder of the collection again, with a little noise in what it knows of words."""
    model = BertModel.from_pretrained(make_encoder(folder), add_pooling_layer=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        words = model.embeddings.word_embeddings.weight
        words += 0.1 * words.std() * torch.randn_like(words)
    model.save_pretrained(folder)
    return folder


def answered(collection: Collection, questions: dict[str, str], k: int) -> set[str]:
    """Return the questions that the live snapshot answers within the first k hits."""
    with Retriever.open(collection.store) as retriever:
        found = retriever.search(list(questions.values()), 20, mode="dense").hits
    pairs = zip(questions.items(), found, strict=True)
    return {text for (id_, text), hits in pairs if id_ in {hit.id for hit in hits[:k]}}


def test_a_damaged_encoder_is_refused_and_the_questions_that_it_lost_are_listed(
    measured: tuple[Collection, dict[str, str]], tmp_path: Path
) -> None:
    collection, questions = measured
    before = {k: answered(collection, questions, k) for k in (1, 5)}
    collection.change(encoder={"model": str(damaged(tmp_path / "damaged", 0.9))})
    with pytest.raises(GateError, match=r"gate\.max_drop allows 0\.02; nothing was published") as refused:
        collection.night()
    assert GateError.exit_code == 3
    live = latest_snapshot(collection.store)
    assert live is not None
    assert live.number == 2

    collection.night(allowed=Allowed(force="the old model is withdrawn"))
    live = latest_snapshot(collection.store)
    assert live is not None
    assert live.number == 3
    assert live.note.startswith(f"forced by {getpass.getuser()}@")
    assert ": the old model is withdrawn (the gate said: top-" in live.note
    (stored,) = (collection.folder / "store" / "runs").rglob("lost-*.jsonl")
    assert stored.name in str(refused.value)
    listed = [json.loads(line) for line in stored.read_text().splitlines()]
    for k in (1, 5):
        lost = before[k] - answered(collection, questions, k)
        assert len(lost) > DROP * len(questions)
        assert {row["question"] for row in listed if row["within"] == k} == lost


def test_a_difference_that_chance_explains_does_not_stop_a_night(
    measured: tuple[Collection, dict[str, str]], tmp_path: Path
) -> None:
    collection, questions = measured
    before = {k: answered(collection, questions, k) for k in (1, 5)}
    falls = []
    for seed in range(2):
        gate = {**collection.recipe.gate.model_dump(), "max_drop": 0.0}
        collection.change(encoder={"model": str(shaken(tmp_path / f"shaken-{seed}", seed))}, gate=gate)
        assert collection.night().published
        after = {k: answered(collection, questions, k) for k in (1, 5)}
        falls += [len(before[k]) - len(after[k]) for k in (1, 5)]
        before = after
    assert max(falls) > 0  # a night was worse than the one before


def test_questions_with_other_answers_are_not_compared(
    measured: tuple[Collection, dict[str, str]], tmp_path: Path
) -> None:
    collection, questions = measured
    path = tmp_path / "wrong.jsonl"
    others = [*list(questions)[1:], "p000"]
    rows = [{"question": text, "answers": [id_]} for id_, text in zip(others, questions.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    collection.change(gate={**collection.recipe.gate.model_dump(), "questions": str(path)})
    progress = Quiet()
    assert collection.night(progress=progress).published
    assert any("they have 0 questions with the same answers in common" in text for text in progress.messages)


def test_a_check_that_fails_after_publishing_rolls_back(
    measured: tuple[Collection, dict[str, str]],
) -> None:
    collection, _ = measured
    old = collection.body(2)
    collection.corpus["p000"] = "w1 w2 w3"
    check = f'test "$DPR_SNAPSHOT" = 3 && test "$DPR_STORE" = "{collection.store.url}" && echo broken && exit 4'
    collection.change(gate={**collection.recipe.gate.model_dump(), "after_publish": check})
    with pytest.raises(GateError, match="ended with code 4 for snapshot 3: broken; snapshot 4 is live"):
        collection.night()
    live = latest_snapshot(collection.store)
    assert live is not None
    assert (live.number, live.body) == (4, old)
    assert live.note == "rollback to 2"


def test_a_check_that_succeeds_leaves_the_snapshot(measured: tuple[Collection, dict[str, str]]) -> None:
    collection, _ = measured
    collection.corpus["p000"] = "w1 w2 w3"
    collection.change(gate={**collection.recipe.gate.model_dump(), "after_publish": 'test "$DPR_SNAPSHOT" = 3'})
    assert collection.night().snapshot.number == 3


def test_another_encoder_is_published_only_if_it_is_better_where_that_is_demanded(
    measured: tuple[Collection, dict[str, str]], tmp_path: Path
) -> None:
    collection, questions = measured
    original = str(collection.model)
    collection.change(encoder={"model": str(damaged(tmp_path / "damaged", 0.9))})
    collection.night(allowed=Allowed(force="to have something worse"))
    before = answered(collection, questions, 1)
    demand = {**collection.recipe.gate.model_dump(), "new_encoder": "better"}
    progress = Quiet()
    collection.change(encoder={"model": original}, gate=demand)
    assert collection.night(progress=progress).published
    now = answered(collection, questions, 1)
    won, lost = len(now - before), len(before - now)
    (message,) = (text for text in progress.messages if "better than live snapshot 3" in text)
    shares = f"{len(before) / PASSAGES:.4f} before and {len(now) / PASSAGES:.4f} now"
    assert f"top-1 accuracy {shares} ({won} won, {lost} lost, p 0.0001)" in message

    collection.change(encoder={"model": str(damaged(tmp_path / "a-little", 0.02))})
    with pytest.raises(GateError, match=r"not better than .* beyond what chance explains \(top-1 accuracy"):
        collection.night()

    collection.corpus["p000"] = "w1 w2 w3"
    collection.change(encoder={"model": original})
    assert collection.night().published  # the encoder is that of the live snapshot


def test_an_encoder_that_cannot_be_compared_is_refused_where_it_has_to_be_better(
    tmp_path: Path, measured: tuple[Collection, dict[str, str]], first_nights: FirstNights
) -> None:
    collection = first_nights.copy(tmp_path / "unasked", random_texts(PASSAGES, min_words=6))
    gate = {**measured[0].recipe.gate.model_dump(), "new_encoder": "better"}
    collection.change(encoder={"model": str(shaken(tmp_path / "shaken", 0))}, gate=gate)
    with pytest.raises(GateError, match=r"nothing shows whether encoder .* name questions in gate\.questions"):
        collection.night()
