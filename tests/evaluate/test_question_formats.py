"""Questions in the formats of the field, as their makers write them: found by looking, refused in a sentence."""

import bz2
import csv
import gzip
import json
import uuid
from pathlib import Path

import fsspec
import pytest

from dpr.errors import RecipeError
from dpr.evaluate.questions import Question, QuestionSet, read_questions
from tests.services.endpoint import S3Endpoint

ANSWERED = [("who got the first nobel prize", ["Wilhelm Conrad Röntgen"]), ('who said "no"', ["it's", 'a "b"', "12"])]
QRELS = "7 0 p1 2\n7 0 p2 0\n9 0 p3 1\n8 0 p3 1\n"


def texts_and_answers(found: QuestionSet) -> list[tuple[str, list[str]]]:
    return [(question.text, list(question.answers)) for question in found.questions]


@pytest.mark.parametrize("name", ["nq-test.qa.csv", "nq-dev.csv.gz", "any-name.bz2"])
def test_dpr_qas_are_strings(tmp_path: Path, name: str) -> None:
    """Python's csv module wrote the released files, and `str` the lists in them."""
    plain = tmp_path / "plain"
    with plain.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows((text, str(answers)) for text, answers in ANSWERED)
    data = plain.read_bytes()
    packed = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(name).suffix, lambda data: data)(data)
    (tmp_path / name).write_bytes(packed)
    found = read_questions(str(tmp_path / name), None)
    assert found.answers == "strings"
    assert texts_and_answers(found) == ANSWERED
    assert [question.id for question in found.questions] == ["1", "2"]
    with pytest.raises(RecipeError, match=r"line 1: the answers are strings, .* or --answers strings"):
        read_questions(str(tmp_path / name), None, "ids")


@pytest.mark.parametrize("indent", [None, 2])
def test_dpr_training_files_have_strings_and_passages(tmp_path: Path, indent: int | None) -> None:
    values = [
        {"question": "a?", "answers": ["x"], "positive_ctxs": [{"title": "t", "passage_id": "12"}, {"psg_id": 13}]},
        {"question": "b?", "answers": ["y", "z"], "positive_ctxs": [], "hard_negative_ctxs": [{"passage_id": "1"}]},
    ]
    path = tmp_path / "biencoder-nq-dev.json"
    path.write_text(json.dumps(values, indent=indent))
    by_default = read_questions(str(path), None)
    assert (by_default.answers, texts_and_answers(by_default)) == ("strings", [("a?", ["x"]), ("b?", ["y", "z"])])
    by_id = read_questions(str(path), None, "ids")
    assert texts_and_answers(by_id) == [("a?", ["12", "13"])]
    assert by_id.notes == ("1 question without a passage left out, such as '2'",)


def test_objects_of_nq_open_and_others_have_ids_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "NQ-open.dev.jsonl"
    path.write_text('{"question": "a?", "answer": ["x"]}\n{"query": "b?", "answers": ["y"]}\n')
    assert texts_and_answers(read_questions(str(path), None, "strings")) == [("a?", ["x"]), ("b?", ["y"])]
    path.write_text(
        '{"id": "n1", "question": "a?", "answers": ["x"]}\n{"id": "n2", "question": "b?", "answers": ["y"]}'
    )
    assert [question.id for question in read_questions(str(path), None).questions] == ["n1", "n2"]
    path.write_text(path.read_text().replace("n2", "n1"))  # the id of something else
    assert [question.id for question in read_questions(str(path), None).questions] == ["1", "2"]


TOPICS_SGML = """<top>

<num> Number: 7
<title> International Organized Crime

<desc> Description:
Identify organizations.
</top>
<top>
<num> Number: 9 </num>
<title>
 foreign &amp; minorities
</top>
"""
TOPICS_XML = """<?xml version="1.0"?><topics task="covid">
<topic number="7"><query>International Organized Crime</query><question>why?</question></topic>
<topic number="9"><query>foreign &amp; minorities</query></topic></topics>"""
TWO_COLUMNS = "7\tInternational Organized Crime\n9\tforeign & minorities\n"


@pytest.mark.parametrize("text", [TOPICS_SGML, TOPICS_XML, TWO_COLUMNS])
def test_topics_are_judged_by_qrels(tmp_path: Path, text: str) -> None:
    (tmp_path / "topics").write_text(text)
    (tmp_path / "judged.txt").write_text(QRELS)
    found = read_questions(str(tmp_path / "topics"), str(tmp_path / "judged.txt"))
    assert found.questions == (
        Question("International Organized Crime", ("p1",), "7", (2,)),
        Question("foreign & minorities", ("p3",), "9", (1,)),
    )
    assert found.questions[0].relevance == {"p1": 2}
    assert found.notes == ("1 judged query id of qrels not among the questions, such as '8'",)
    with pytest.raises(RecipeError, match=r"has no qrels file .* or with --qrels"):
        read_questions(str(tmp_path / "topics"), None)


def test_quotation_marks_of_two_columns_quote_nothing(tmp_path: Path) -> None:
    (tmp_path / "queries.tsv").write_text('7\t"define: the\n9\t5" pipe\n')
    (tmp_path / "qrels.tsv").write_text(QRELS)
    found = read_questions(str(tmp_path / "queries.tsv"), None)
    assert [question.text for question in found.questions] == ['"define: the', '5" pipe']


def test_a_pair_that_is_judged_twice_has_its_higher_score(tmp_path: Path) -> None:
    (tmp_path / "queries.tsv").write_text("7\ta\n")
    (tmp_path / "qrels.tsv").write_text("7 0 p1 1\n7 0 p1 3\n7 0 p1 2\n")
    assert read_questions(str(tmp_path / "queries.tsv"), None).questions[0].relevance == {"p1": 3}


def test_urls_are_read_as_files_are() -> None:
    files = {"queries.jsonl": b'{"_id": "7", "text": "a?"}\n', "qrels/test.tsv.gz": gzip.compress(QRELS.encode())}
    for name, data in files.items():
        with fsspec.open(f"memory://questions/beir/{name}", "wb") as file:
            file.write(data)
    expected = (Question("a?", ("p1",), "7", (2,)),)
    assert read_questions("memory://questions/beir", None).questions == expected
    assert (
        read_questions("memory://questions/beir/queries.jsonl", "memory://questions/beir/qrels").questions == expected
    )
    with pytest.raises(RecipeError, match=r"file nowhere://x cannot be read: "):
        read_questions("nowhere://x", None)


def test_questions_lie_on_s3(moto_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    moto_endpoint.use(monkeypatch)
    client, bucket = moto_endpoint.client(), f"questions-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key="beir/queries.jsonl.gz", Body=gzip.compress(b'{"_id": "7", "text": "a?"}\n'))
    client.put_object(Bucket=bucket, Key="beir/qrels/test.tsv", Body=QRELS.encode())
    assert read_questions(f"s3://{bucket}/beir/", None).questions == (Question("a?", ("p1",), "7", (2,)),)
    with pytest.raises(RecipeError, match=r"file s3://.*/none.jsonl is not there; "):
        read_questions(f"s3://{bucket}/none.jsonl", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "a?", "answers": ["x"]}\n{"question": "b?", "answers": [""]}', "line 2: an answer is a text"),
        (
            '{"question": "b?", "answers": ["x", null]}',
            'line 1: an answer is .* or a number; got .*"x", null',
        ),
        ("a\t['x', ' ']\n", "line 1: the answers are not a list of texts like .*, none of which is blank"),
        ("just a sentence\n", "line 1 is not JSON, nor another format"),
        ("a\t['x']\nb\tc\td\n", "line 2: a line is `question TAB list of answers`"),
        ("a\t['x'\n", r"line 1: the answers are not a list like"),
        ("a\t['x', f()]\n", r"line 1: the answers are not a list like"),
        ("a\t[['x']]\n", r"line 1: the answers are not a list of texts"),
        ("a\t[]\n", r"line 1: a question is .* got 'a' without any"),
        ("<top>\n<num> 1\n</top>", "topic 1: a topic has a number and a title"),
        ("<html>", "has no <top> or <topic>"),
        ('[{"question": "a", "answers": ["b"]}, {"question": 5}]', "value 2: a question is"),
        ('[{"question": "a", "answers": ["b"], "positive_ctxs": ["c"]}]', "value 1: positive_ctxs is a list"),
    ],
)
def test_other_files_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "questions"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as refused:
        read_questions(str(path), None)
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_id_that_stands_twice_is_refused_where_qrels_judge(tmp_path: Path) -> None:
    (tmp_path / "queries.tsv").write_text("7\ta\n7\tb\n")
    (tmp_path / "qrels.tsv").write_text(QRELS)
    with pytest.raises(RecipeError, match=r"line 2: an earlier question has the id '7', too"):
        read_questions(str(tmp_path / "queries.tsv"), None)


def test_patterns_are_compiled_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "curatedtrec.csv"
    path.write_text("when?\t['19\\\\d\\\\d']\n")
    assert read_questions(str(path), None, "regex").questions[0].answers == ("19\\d\\d",)
    path.write_text("when?\t['19(']\n")
    with pytest.raises(RecipeError, match=r"question 1: the answer '19\(' is not a regular expression"):
        read_questions(str(path), None, "regex")
