"""The gate tunes the fusion on one half of the questions, measures on the other, and decides the default mode."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dpr.formats.lexical_entry import FusionSettings, ModesReport, SearchMode
from dpr.formats.manifest import SnapshotBody
from dpr.search.retrieve import Retriever
from dpr.stages.question_halves import split_questions
from tests.collection import Collection, FirstNights
from tests.tiny import WORDS, Quiet, random_texts

pytestmark = pytest.mark.slow
QUESTIONS = 120
MODES: tuple[SearchMode, ...] = ("dense", "bm25", "hybrid")


def rare_words(rows: int) -> dict[str, str]:
    """Return passages each of which has a word of its own, which the encoder does not know."""
    rng = np.random.default_rng(2)
    return {f"p{n:03d}": " ".join([*rng.choice(WORDS, 12), f"rare{n:03d}"]) for n in range(rows)}


def write_questions(folder: Path, questions: list[tuple[str, list[str]]]) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": text, "answers": answers}) + "\n" for text, answers in questions))
    return str(path)


def collection_of(
    first_nights: FirstNights, tmp_path: Path, questions: list[tuple[str, list[str]]], **fields: object
) -> Collection:
    """Return a collection whose second night had these questions."""
    collection = first_nights.copy(tmp_path / "collection", rare_words(QUESTIONS))
    gate = {"questions": write_questions(tmp_path, questions), "min_recall": 0, **fields}
    collection.change(gate=gate)
    collection.night()
    return collection


def modes_of(body: SnapshotBody) -> ModesReport:
    assert body.gate.modes is not None
    return body.gate.modes


def by_word(n: int) -> tuple[str, list[str]]:
    """A question that only words answer."""
    return f"w{n % 7} rare{n:03d}", [f"p{n:03d}"]


def test_hybrid_becomes_the_default_where_it_is_better(first_nights: FirstNights, tmp_path: Path) -> None:
    questions = [by_word(n) for n in range(QUESTIONS)]
    collection = collection_of(first_nights, tmp_path, questions)
    body = collection.body(2)
    modes = modes_of(body)
    assert body.lexical is not None
    assert body.lexical.mode == "hybrid"
    assert (modes.tuned_on, modes.measured_on) == (60, 60)
    assert modes.difference_low > 0
    check_figures(collection, modes, questions)
    with Retriever.open(collection.store) as retriever:
        texts = [questions[0][0]]
        by_default = retriever.search(texts, 3).hits
        assert by_default == retriever.search(texts, 3, mode="hybrid").hits


@pytest.mark.parametrize(("long", "modes"), [({}, MODES), ({"long": "split"}, MODES[:2])], ids=["whole", "windows"])
def test_figures_are_those_of_answers(
    long: dict[str, str], modes: Sequence[SearchMode], tmp_path: Path, encoder: Path
) -> None:
    rng = np.random.default_rng(5)
    passages = {id_: f"{text} {text[:60]}" for id_, text in random_texts(QUESTIONS, max_words=60).items()}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"id": id_, "text": text}) + "\n" for id_, text in passages.items()))
    pairs = [rng.choice(text.split(), 2) for text in passages.values()]
    questions = [(" ".join(pair), [id_]) for pair, id_ in zip(pairs, passages, strict=True)]
    collection = Collection(
        tmp_path / "collection",
        encoder,
        corpus={"path": str(path), "columns": {"title": None}} | long,
        encoder={"max_tokens": 16},
        index={"factory": "IVF4,SQ8", "nprobe": 4, "rescore": 500},
        gate={"questions": write_questions(tmp_path, questions), "answers": "ids", "min_recall": 0},
    )
    collection.night()
    # a passage of several windows has in hybrid search the best scores of those that are candidates; the gate has more
    check_figures(collection, modes_of(collection.body(1)), questions, modes)


def check_figures(
    collection: Collection,
    report: ModesReport,
    questions: list[tuple[str, list[str]]],
    modes: Sequence[SearchMode] = MODES,
) -> None:
    """Compare with answers to the questions that were not tuned on."""
    _, held_out = split_questions(len(questions), 7)
    texts, answers = [questions[n][0] for n in held_out], [questions[n][1] for n in held_out]
    with Retriever.open(collection.store) as retriever:
        for mode in modes:
            found = retriever.search(texts, 20, mode=mode).hits
            ranks = [
                next((hit.rank for hit in hits if hit.id in right), None)
                for hits, right in zip(found, answers, strict=True)
            ]
            assert report.accuracy[mode]["20"] == pytest.approx(np.mean([rank is not None for rank in ranks]))
            gains = [1 / np.log2(1 + rank) if rank and rank <= 10 else 0 for rank in ranks]
            assert report.ndcg[mode] == pytest.approx(np.mean(gains))


def test_dense_stays_the_default_where_words_tell_nothing(first_nights: FirstNights, tmp_path: Path) -> None:
    ids = [f"p{n:03d}" for n in range(QUESTIONS)]
    drawn = np.random.default_rng(1).permutation(ids)
    questions = [(f"w{n % 7} rare{n:03d}", [str(drawn[n])]) for n in range(QUESTIONS)]
    body = collection_of(first_nights, tmp_path, questions).body(2)
    assert body.lexical is not None
    assert body.lexical.mode == "dense"
    assert modes_of(body).difference_low <= 0


def test_few_questions_measure_and_do_not_tune(first_nights: FirstNights, tmp_path: Path) -> None:
    questions = [(f"rare{n:03d}", [f"rare{n:03d}"]) for n in range(40)]
    body = collection_of(first_nights, tmp_path, questions, answers="strings").body(2)
    modes = modes_of(body)
    assert body.lexical is not None
    assert (modes.tuned_on, modes.measured_on) == (0, 40)
    assert body.lexical.hybrid == FusionSettings(
        fusion="scaled", weight=14.0, candidates=20, floor=0.15, k1=0.3, pairs=0.6
    )
    assert body.lexical.mode == "hybrid"
    assert modes.ndcg["bm25"] == 1.0


def test_the_same_questions_are_not_measured_again(first_nights: FirstNights, tmp_path: Path) -> None:
    questions = [by_word(n) for n in range(QUESTIONS)]
    collection = collection_of(first_nights, tmp_path, questions)
    collection.change(resources={"compact_below": 0.4})  # so that there is something to do
    progress = Quiet()
    assert collection.night(progress=progress).snapshot.body == collection.body(2)
    assert progress.rows["modes"] == 0
