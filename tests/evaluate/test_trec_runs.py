"""TREC runs: written and read again, read as trec_eval reads them, refused in a sentence."""

from pathlib import Path

import ir_measures
import pytest

from dpr.errors import OutputError, RecipeError
from dpr.evaluate.metrics import Metrics, judge
from dpr.evaluate.questions import Question, QuestionSet
from dpr.evaluate.rankings import read_ranking
from dpr.evaluate.trec_runs import read_run, write_run
from dpr.search.hits import Hit

QUESTIONS = QuestionSet((Question("a", ("p1", "p4"), "q1", (2, 1)), Question("b", ("p2",), "q2", (1,))), "ids")
HITS = [
    [Hit(1, 9.5, "p3", "", ""), Hit(2, 0.375, "p1", "", ""), Hit(3, 0.25, "p4", "", "")],
    [Hit(1, 2.0, "p2", "", "")],
]


@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_run_is_read_as_it_was_written_and_by_the_library(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    judged = list(judge(QUESTIONS, HITS))
    write_run(path, "dense", QUESTIONS.questions, judged)
    assert read_run(path) == dict(zip(["q1", "q2"], HITS, strict=True))
    metrics = Metrics((1, 5), "ids")
    ranking, notes = read_ranking(path, QUESTIONS, metrics)
    assert (ranking.judged, notes) == (tuple(judged), [])
    if name == "run.trec":
        qrels = {question.id: dict(question.relevance) for question in QUESTIONS.questions}
        theirs = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, ir_measures.read_trec_run(path))
        assert ranking.intervals["nDCG@10"].mean == pytest.approx(theirs[ir_measures.nDCG @ 10])


def test_equal_scores_are_written_so_that_the_order_stays(tmp_path: Path) -> None:
    path, tied = str(tmp_path / "run"), [Hit(rank, 2.5, f"p{rank}", "", "") for rank in range(1, 30)]
    questions = QuestionSet((Question("a", ("p1",), "q1"),), "ids")
    write_run(path, "bm25", questions.questions, list(judge(questions, [tied])))
    read = read_run(path)["q1"]
    assert [hit.id for hit in read] == [hit.id for hit in tied]
    assert [hit.score for hit in read] == pytest.approx([2.5] * 29, rel=1e-5)
    theirs = ir_measures.calc_aggregate([ir_measures.RR], {"q1": {"p1": 1}}, ir_measures.read_trec_run(path))
    assert theirs[ir_measures.RR] == 1.0


def test_the_score_decides_and_then_the_rank(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q1 Q0 b 3 1.0 t\nq1 Q0 c 1 0.5 t\nq1\tQ0\ta\t2\t1.0\tt\n")
    assert [hit.id for hit in read_run(str(tmp_path / "run"))["q1"]] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 Q0 p1 1 0.5\n", "line 1 is not one of a TREC run"),
        ("q1 0 p1 1\n", r"line 1 is not one of a TREC run, which has 6 columns .*: 'q1 0 p1 1'"),
        ("q1 Q0 p1 1 0.5 t\nq1 Q0 p2 first 0.4 t\n", "line 2 is not one of a TREC run"),
        ("q1 Q0 p1 1 0.5 t\nq1 Q0 p1 2 0.4 t\n", "has a passage twice for the question 'q1'"),
        ("other Q0 p1 1 0.5 t\n", "answers none of the 2 questions; its first is 'other'"),
        ("q1 Q0 p1 1 nan t\n", "line 1 is not one of a TREC run, .* a score is a number"),
        ("", "run .* is empty; name one that answers the questions"),
    ],
)
def test_other_files_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as refused:
        read_ranking(str(path), QUESTIONS, Metrics((1,), "ids"))
    assert "\n" not in str(refused.value)


def test_questions_of_one_side_alone_are_counted(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q1 Q0 p1 1 0.5 t\nq8 Q0 p1 1 0.5 t\nq9 Q0 p1 1 0.5 t\n")
    ranking, notes = read_ranking(str(tmp_path / "run"), QUESTIONS, Metrics((1,), "ids"))
    assert [judged.rank for judged in ranking.judged] == [1, None]
    assert [note.split(" have ")[0].split(" of run")[0] for note in notes] == ["1 of 2 questions", "2 questions"]
    texts = QuestionSet((Question("a", ("x",), "q1"),), "strings")
    with pytest.raises(RecipeError, match="has no texts, so answers cannot be strings"):
        read_ranking(str(tmp_path / "run"), texts, Metrics((1,), "strings"))


def test_what_a_run_cannot_hold_is_not_written(tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    spaced = QuestionSet((Question("a", ("x",), "q1"),), "ids")
    with pytest.raises(RecipeError, match="the id 'p 1' is empty or has white space"):
        write_run(path, "t", spaced.questions, list(judge(spaced, [[Hit(1, 1.0, "p 1", "", "")]])))
    Path(path).touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_run(
            str(tmp_path / "run" / "below"), "t", spaced.questions, list(judge(spaced, [[Hit(1, 1.0, "p", "", "")]]))
        )
