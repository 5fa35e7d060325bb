"""Questions with known answers: read from JSONL and from BEIR folders, sampled by seed, refused in a sentence."""

import gzip
import json
from pathlib import Path

import pytest

from dpr.errors import RecipeError
from dpr.evaluate.questions import Question, QuestionSet, load_questions
from dpr.recipe import GateConfig


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
    found = load_questions(gate, 0)
    assert found.questions == (Question("who?", ("p1", "p2"), "q1", (1, 2)),)
    assert found.notes == ("1 question left out, since qrels judge no passage relevant (score above 0), such as 'q3'",)
    assert load_questions(gate.model_copy(update={"answers": "strings"}), 0).questions == (
        Question("who?", ("Ada",), "q1"),
    )


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("qrels/test.tsv", None),
        ("qrels/test.tsv.gz", None),
        ("qrels.test.tsv.gz", None),
        ("qrels/dev.tsv", None),
        ("qrels.tsv", None),
        ("qrels/test.tsv", "qrels"),
        ("elsewhere/train.tsv.gz", "elsewhere"),
    ],
)
def test_qrels_are_found_where_beir_has_them(tmp_path: Path, file: str, named: str | None) -> None:
    """The recipe need only name the folder, or its file of queries."""
    text = "query-id\tcorpus-id\tscore\nq1\tp1\t1\n"
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if file.endswith(".gz") else text.encode())
    (tmp_path / "queries.jsonl").write_text("\n" + GOOD_QUERY + "\n")
    qrels = named and str(tmp_path / named)
    for questions in (tmp_path, tmp_path / "queries.jsonl"):
        found = load_questions(GateConfig(questions=str(questions), qrels=qrels), 0)
        assert found is not None
        assert found.questions == (Question("who?", ("p1",), "q1", (1,)),)


def test_trec_qrels_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "qrels.tsv").write_text("1 0 p1 2\n1 0 p2 0\n1 0 p3 1\n")
    (tmp_path / "queries.jsonl").write_text('{"_id": 1, "text": "who?"}\n', encoding="utf-8-sig")
    found = load_questions(GateConfig(questions=str(tmp_path)), 0)
    assert found is not None
    assert found.questions == (Question("who?", ("p1", "p3"), "1", (2, 1)),)


def test_a_folder_without_qrels_says_where_they_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text(GOOD_QUERY)
    (tmp_path / "elsewhere").mkdir()
    for qrels in (None, str(tmp_path / "elsewhere")):
        with pytest.raises(RecipeError, match=r"has no qrels file \((qrels/)?test\.tsv, .* name it as gate\.qrels"):
            load_questions(GateConfig(questions=str(tmp_path), qrels=qrels), 0)


def test_sampling_is_seeded_and_keeps_order(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"{n:03d}", "answers": [str(n)]}) + "\n" for n in range(100)))
    gate = GateConfig(questions=str(path), max_questions=10)
    first, again, other = (load_questions(gate, seed).texts for seed in (1, 1, 2))
    assert first == again == sorted(first)
    assert first != other
    assert len(set(first)) == 10


def test_a_gate_without_questions_has_none() -> None:
    assert load_questions(GateConfig(), 0) is None


def test_what_is_kept_of_questions_depends_on_their_texts_alone() -> None:
    """Exact neighbours are cached under this id, and answers do not change them."""
    one = QuestionSet((Question("a", ("x",)), Question("b", ("y",))), "ids")
    other_answers = QuestionSet((Question("a", ("z",)), Question("b", ("y",))), "strings")
    assert one.gate_id == other_answers.gate_id
    assert one.gate_id != QuestionSet((Question("b", ("y",)), Question("a", ("x",))), "ids").gate_id
    assert one.texts == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a"}', "line 1: a question is"),
        ('{"question": "a", "answers": []}', "line 1: a question is"),
        ('{"question": "a", "answers": "b"}', "line 1: a question is"),
        ('{"question": 7, "answers": ["b"]}', "line 1: a question is"),
        ("nonsense", "line 1 is not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 5000, "value 1 is not JSON"),
        ('{"question": " ", "answers": ["b"]}', "line 1: a question is"),
        ('{"question": "\\ud83d", "answers": ["b"]}', "line 1: a question is"),
        ("", "no question"),
        ("\udcff", "cannot be read"),
    ],
)
def test_bad_question_files_are_one_sentence(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(line.encode(errors="surrogateescape"))
    with pytest.raises(RecipeError, match=message) as refused:
        load_questions(GateConfig(questions=str(path)), 0)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_or_cut_short_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl.gz"
    with pytest.raises(RecipeError, match=r"questions\.jsonl\.gz is not there"):
        load_questions(GateConfig(questions=str(path)), 0)
    path.write_bytes(gzip.compress(b'{"question": "a", "answers": ["b"]}\n' * 100)[:-10])
    with pytest.raises(RecipeError, match=r"questions\.jsonl\.gz cannot be read"):
        load_questions(GateConfig(questions=str(path)), 0)


GOOD_QUERY = '{"_id": "q1", "text": "who?", "metadata": {"answers": ["Ada"]}}'


@pytest.mark.parametrize(
    ("qrels", "query", "message"),
    [
        ("query\tdocument\nq1\tp1\n", GOOD_QUERY, "is not one of a BEIR qrels file"),
        ("query-id\tcorpus-id\tscore\nq1\tp1\tmuch\n", GOOD_QUERY, "is not one of a BEIR qrels file"),
        ("q1\t0\tp1\t0.5\n", GOOD_QUERY, "score is a whole number"),
        ("q1 Q0 p1 1 12.5 bm25\n", GOOD_QUERY, "or a TREC one"),
        ("query-id\tcorpus-id\tscore\nq1\tp1\t1\n", None, "has no queries.jsonl"),
        ("query-id\tcorpus-id\tscore\nq1\tp1\t1\n", "{", "value 1 is not JSON"),
        ("query-id\tcorpus-id\tscore\nq1\tp1\t1\n", '{"_id": "q1"}', "line 1: a question is"),
        ("query-id\tcorpus-id\tscore\nq2\tp1\t1\n", GOOD_QUERY, "hold no question with an answer"),
    ],
)
def test_bad_beir_folders_are_one_sentence(tmp_path: Path, qrels: str, query: str | None, message: str) -> None:
    (tmp_path / "qrels.tsv").write_text(qrels)
    if query is not None:
        (tmp_path / "queries.jsonl").write_text(query + "\n")
    with pytest.raises(RecipeError, match=message) as refused:
        load_questions(GateConfig(questions=str(tmp_path), qrels=str(tmp_path / "qrels.tsv")), 0)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_answers_that_are_not_a_list_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tp1\t1\n")
    (tmp_path / "queries.jsonl").write_text(GOOD_QUERY.replace('["Ada"]', '"Ada"') + "\n")
    gate = GateConfig(questions=str(tmp_path), qrels=str(tmp_path / "qrels.tsv"), answers="strings")
    with pytest.raises(RecipeError, match="line 1: a question is"):
        load_questions(gate, 0)
