"""Mined hard negatives are found by the search and answer nothing; the file is training data as it is."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dpr.errors import RecipeError
from dpr.formats.quarantine import QuarantinedRow
from dpr.search.hits import Hit
from dpr.train.examples import TrainingExample, TrainingPassage
from dpr.train.json_examples import read_json_examples
from dpr.train.mine import Mined, Mining, mine

EXAMPLE = TrainingExample("q one", (TrainingPassage("right", "t", "p0"),), answers=("Nile",))
HITS = [
    Hit(1, 9.0, "p1", "", "near"),
    Hit(2, 8.0, "p0", "t", "right"),
    Hit(3, 7.0, "p2", "", "the river nile, too"),
    Hit(4, 6.5, "p3", "t", "right"),  # the same text under another id
    Hit(5, 6.0, "p4", "", "far"),
    Hit(6, 5.0, "p5", "", "q  one"),
    Hit(7, 4.0, "p6", "", "farther"),
]


def mined(*examples: TrainingExample, **settings: Any) -> tuple[list[dict[str, Any]], Mined]:
    def search(questions: Sequence[str], k: int) -> list[list[Hit]]:
        return [HITS[:k] for _ in questions]

    out = io.StringIO()
    counts = mine(examples, search, Mining(**settings), out)
    return json.loads(out.getvalue()), counts


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({}, ["p1", "p4", "p6"]),
        ({"most": 1}, ["p1"]),
        ({"depth": 3}, ["p1"]),
        ({"margin": 0.0}, ["p4", "p6"]),  # p1 scores higher than the right passage
        ({"margin": 3.0}, ["p6"]),
        ({"margin": 0.0, "depth": 1}, []),  # the right passage is not found, so it scores lower still
    ],
)
def test_what_answers_or_scores_too_high_is_left_out(settings: dict[str, Any], ids: list[str]) -> None:
    (document,), counts = mined(EXAMPLE, **settings)
    assert [each["passage_id"] for each in document["hard_negative_ctxs"]] == ids
    assert (counts.questions, counts.negatives, counts.without) == (1, len(ids), int(not ids))


def test_a_passage_of_a_document_that_answers_is_no_negative() -> None:
    """Documents are split into passages, whose ids are the document's with a number; judgements name either."""
    document = TrainingExample("q one", (TrainingPassage("near far farther", "", "doc"),))
    hits = [Hit(1, 9.0, "doc#0", "", "near"), Hit(2, 8.0, "other#0", "", "far"), Hit(3, 7.0, "doc#1", "", "farther")]
    out = io.StringIO()
    counts = mine([document], lambda questions, k: [hits[:k] for _ in questions], Mining(), out)
    (written,) = json.loads(out.getvalue())
    assert [each["passage_id"] for each in written["hard_negative_ctxs"]] == ["other#0"]
    assert counts.left_out == {"known to answer": 2}


def test_answers_and_ids_of_all_examples_of_a_question_count() -> None:
    other = TrainingExample("q one", (TrainingPassage("a longer text of it", "", "p4"),))
    documents, _ = mined(EXAMPLE, other)
    assert [[each["text"] for each in d["hard_negative_ctxs"]] for d in documents] == [["near", "farther"]] * 2


def test_all_examples_of_a_question_say_what_answers_it() -> None:
    other = TrainingExample("q one", (TrainingPassage("far", "", None),), answers=("Nile",))
    documents, counts = mined(EXAMPLE, other)
    assert [[each["text"] for each in d["hard_negative_ctxs"]] for d in documents] == [["near", "farther"]] * 2
    assert counts.left_out == {"known to answer": 6, "with an answer in them": 2, "that are the question": 2}
    assert "4 hard negatives for 2 questions" in counts.describe()


def test_the_file_is_read_as_training_data(tmp_path: Path) -> None:
    documents, _ = mined(EXAMPLE, TrainingExample("q two", (TrainingPassage("w"),)))
    (tmp_path / "train.json").write_text(json.dumps(documents))
    first, second = read_json_examples(str(tmp_path / "train.json"))
    assert isinstance(first, TrainingExample)
    assert isinstance(second, TrainingExample)
    assert (first.question, first.positives, first.answers) == (EXAMPLE.question, EXAMPLE.positives, EXAMPLE.answers)
    assert [each.id for each in first.negatives] == ["p1", "p4", "p6"]


def test_data_without_an_example_are_refused() -> None:
    rows = [QuarantinedRow("pairs.jsonl", place, "no question", b"{}") for place in (0, 3)]
    out = io.StringIO()
    with pytest.raises(RecipeError, match=r"no usable example \(2 rows: 2 for 'no question'\)"):
        mine(rows, lambda _questions, _k: [], Mining(), out)
    assert out.getvalue() == ""
