"""Answer matching and accuracy, by cases worked out by hand and by a plain search over word lists."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.errors import RecipeError
from dpr.evaluate.answers import accuracy, has_answer, names_passage, words
from dpr.evaluate.questions import Question, QuestionSet, load_questions
from dpr.search.hits import Hit
from dpr.recipe import GateConfig


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("New York", "in new york, 1999", True),
        ("New York", "a newyork minute", False),
        ("york new", "new york", False),
        ("Café", "the CAFÉ was full", True),  # composed and decomposed letters are the same
        ("7.9", "measured 7.9 Mw", True),
        ("7.9", "measured 17.9 Mw", False),
        ("U.S.", "the U.S. army", True),
        ("汶川", "also 汶川 earthquake", True),
        ("", "anything", False),
        ("...", "wait ... what", True),
    ],
)
def test_has_answer(answer: str, text: str, expected: bool) -> None:
    assert has_answer([answer], text) is expected


@given(
    st.lists(st.sampled_from(["ab", "cd", "abc", "d", "."]), max_size=8),
    st.lists(st.sampled_from(["ab", "cd", "d", "."]), min_size=1, max_size=3),
)
def test_has_answer_is_a_run_of_words(text: list[str], answer: list[str]) -> None:
    n = len(answer)
    expected = any(text[start : start + n] == answer for start in range(len(text) - n + 1))
    assert has_answer([" ".join(answer)], " ".join(text)) is expected


def test_words_splits_as_drqa_does() -> None:
    assert words("It's 3.5%, naïve_x") == ["it", "'", "s", "3", ".", "5", "%", ",", "nai\u0308ve", "_", "x"]


def test_ids_match_whole_passages_and_parts_of_documents() -> None:
    assert names_passage(["doc"], "doc#12")
    assert names_passage(["doc#1"], "doc#1")
    assert not names_passage(["doc#1"], "doc#12")
    assert not names_passage(["do"], "doc#1")


def test_accuracy_counts_questions_with_a_hit_within_k() -> None:
    def hits(*texts: str) -> list[Hit]:
        return [Hit(rank, 0.0, f"p{rank}", "", text) for rank, text in enumerate(texts, 1)]

    questions = QuestionSet((Question("a", ("x",)), Question("b", ("y", "z")), Question("c", ("q",))), "strings")
    found = [hits("x", "n"), hits("n", "n", "z"), hits("n")]
    assert accuracy(questions, found, [1, 2, 3]) == {1: 1 / 3, 2: 1 / 3, 3: 2 / 3}


def test_a_beir_folder_gives_ids_or_strings(tmp_path: Path) -> None:
    queries = [
        {"_id": "q1", "text": "who?", "metadata": {"answers": ["Ada"]}},
        {"_id": "q2", "text": "not judged", "metadata": {"answers": ["x"]}},
        {"_id": "q3", "text": "judged irrelevant"},
    ]
    with gzip.open(tmp_path / "queries.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(query) + "\n" for query in queries)
    qrels = tmp_path / "qrels.dev.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\nq1\tp1\t1\nq1\tp2\t2\nq3\tp9\t0\n")
    gate = GateConfig(questions=str(tmp_path), qrels=str(qrels))
    assert load_questions(gate, 0).questions == (Question("who?", ("p1", "p2")),)
    assert load_questions(gate.model_copy(update={"answers": "strings"}), 0).questions == (Question("who?", ("Ada",)),)


def test_sampling_is_seeded_and_keeps_order(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n:03d}", "answers": [str(n)]}) + "\n" for n in range(100)))
    gate = GateConfig(questions=str(path), max_questions=10)
    first, again, other = (load_questions(gate, seed).texts for seed in (1, 1, 2))
    assert first == again == sorted(first)
    assert first != other
    assert len(set(first)) == 10


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "a"}', "line 1"),
        ("nonsense", "line 1 is not JSON"),
        ("[1]", "not a JSON object"),
        ("", "no question"),
    ],
)
def test_bad_question_files_are_one_sentence(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(line)
    with pytest.raises(RecipeError, match=said):
        load_questions(GateConfig(questions=str(path)), 0)
