"""The commands of `dpr` that measure how well questions are answered: eval, compare."""

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dpr.evaluate.questions import AnswerKind, QuestionSet, draw, read_questions
from dpr.formats.snapshots import live_snapshot, read_snapshot
from dpr.plurals import counted
from dpr.store import open_store
from ray_jobs.cli_common import (
    Fields,
    Json,
    Model,
    Rerank,
    RerankLabel,
    RerankTop,
    SnapshotNumber,
    StoreArgument,
    check_effect,
    opened_reranker,
    reranker_fields,
    show,
)
from ray_jobs.evaluation_tables import (
    difference_fields,
    difference_table,
    example_fields,
    interval_fields,
    interval_table,
    print_examples,
    print_line,
    sentence,
)

if TYPE_CHECKING:
    from dpr.evaluate.rankings import Ranking

app = typer.Typer()


class Mode(enum.StrEnum):
    """A mode of search; typer takes lists of enumerations only."""

    DENSE = "dense"
    BM25 = "bm25"
    HYBRID = "hybrid"


Questions = Annotated[
    str,
    typer.Option(
        "--questions", help="File or BEIR folder, or its URL: JSONL, BEIR, DPR's csv or JSON, TREC topics, id TAB text."
    ),
]
QrelsFile = Annotated[
    str | None, typer.Option("--qrels", help="Qrels of BEIR or TREC, or a folder; default: those beside the questions.")
]
Answers = Annotated[
    AnswerKind | None,
    typer.Option("--answers", help="What the answers are; default: by qrels or format."),
]
Exact = Annotated[bool, typer.Option("--exact", help="Compare all vectors instead of using the index.")]
At = Annotated[list[int] | None, typer.Option("-k", min=1, max=1000, help="Ranks of accuracy; default: 1 5 20 100.")]
MaxQuestions = Annotated[
    int | None,
    typer.Option("--max-questions", min=1, help="How many questions to draw, always the same; default: all."),
]
Report = Annotated[Path | None, typer.Option("--report", help="Folder for a page (HTML) and pictures (PNG).")]


@app.command(name="eval")
def evaluate(
    context: typer.Context,
    store: StoreArgument,
    questions: Questions,
    qrels: QrelsFile = None,
    answers: Answers = None,
    mode: Annotated[list[Mode] | None, typer.Option(help="Modes to measure; default: all there are.")] = None,
    exact: Exact = False,
    snapshot: SnapshotNumber = None,
    at: At = None,
    max_questions: MaxQuestions = None,
    run_out: Annotated[
        str | None,
        typer.Option("--run-out", help="TREC run to write; with several modes, one file each, named by mode."),
    ] = None,
    report: Report = None,
    model: Model = None,
    rerank: Rerank = None,
    rerank_top: RerankTop = 50,
    rerank_label: RerankLabel = None,
    json_: Json = False,
) -> None:
    """Measure how well a snapshot answers questions, in each mode, with 95% intervals."""
    if rerank is None:
        check_effect(context, ("rerank_top", "rerank_label"), "--rerank")
    from dpr.evaluate.evaluation_report import write_page
    from dpr.evaluate.metrics import Metrics
    from dpr.evaluate.rankings import Comparison, unanswered
    from dpr.operations.evaluation import Contender, Evaluator, modes_of

    chosen = _questions(questions, qrels, answers, max_questions)
    opened = open_store(store)
    body = (live_snapshot(opened) if snapshot is None else read_snapshot(opened, snapshot)).body
    metrics = Metrics(_ranks(at), chosen.answers)
    reranker = None if rerank is None else opened_reranker(rerank, rerank_top, rerank_label, metrics.depth)
    evaluator = Evaluator(chosen, metrics, exact, model, reranker)
    measured = evaluator.measure(Contender(store, snapshot, modes_of(body, [each.value for each in mode or []])))
    rankings, notes = measured.rankings, [*chosen.notes, *measured.notes]
    comparisons = [Comparison(rankings[0], other) for other in rankings[1:]]
    if run_out is not None:
        _write_runs(run_out, chosen, rankings)
    without = [chosen.questions[place] for place in unanswered(rankings)]
    document: Fields = {
        "snapshot": measured.snapshot,
        "questions": len(chosen.questions),
        "answers": chosen.answers,
        "exact": exact,
        "rerank": None if reranker is None else reranker_fields(reranker),
        "modes": {ranking.name: interval_fields(ranking) for ranking in rankings},
        "differences": {f"{c.b.name} - {c.a.name}": difference_fields(c) for c in comparisons},
        "unanswered": [question.id for question in without],
        "absent_passages": list(measured.absent),
        "notes": notes,
    }
    if report is not None:
        facts = {
            "store": opened.url,
            **{name: document[name] for name in ("snapshot", "questions", "answers", "exact")},
        }
        facts |= {f"note {number}": note for number, note in enumerate(notes, 1)}
        page = write_page(report, f"Evaluation of snapshot {measured.snapshot}", facts, chosen, rankings)
        document["page"] = str(page)

    def draw_all(console: Console) -> None:
        console.print(
            interval_table(f"{counted(len(chosen.questions), 'question')}, snapshot {measured.snapshot}", rankings)
        )
        for comparison in comparisons:
            print_line(console, sentence(comparison))
        for note in notes:
            print_line(console, note)
        some = f", such as {without[0].id}, {without[0].text!r}" if without else ""
        depth = evaluator.metrics.depth
        print_line(
            console, f"{counted(len(without), 'question')} without a right passage among {depth} hits of any mode{some}"
        )
        if report is not None:
            print_line(console, str(page))

    show(json_, document, draw_all)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=r"STORE\[@SNAPSHOT][:MODE], or a TREC run.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same; B minus A is shown.")],
    questions: Questions,
    qrels: QrelsFile = None,
    answers: Answers = None,
    exact: Exact = False,
    at: At = None,
    max_questions: MaxQuestions = None,
    report: Report = None,
    json_: Json = False,
) -> None:
    """Tell whether B answers questions better than A: paired differences, and the questions won and lost."""
    from dpr.evaluate.evaluation_report import write_page
    from dpr.evaluate.metrics import Metrics
    from dpr.evaluate.rankings import Comparison
    from dpr.operations.evaluation import Contender, Evaluator

    chosen = _questions(questions, qrels, answers, max_questions)
    evaluator = Evaluator(chosen, Metrics(_ranks(at), chosen.answers), exact)
    first, second, notes = evaluator.measure_both(Contender.parse(a), Contender.parse(b))
    found = Comparison(first, second)
    document: Fields = {
        "a": first.name,
        "b": second.name,
        "questions": len(chosen.questions),
        "answers": chosen.answers,
        "means": {ranking.name: interval_fields(ranking) for ranking in (first, second)},
        "differences": difference_fields(found),
        "lost": example_fields(found, chosen, won=False),
        "won": example_fields(found, chosen, won=True),
        "notes": [*chosen.notes, *notes],
    }
    if report is not None:
        facts: dict[str, object] = {"A": first.name, "B": second.name, "questions": len(chosen.questions)}
        document["page"] = str(write_page(report, "Comparison", facts, chosen, (first, second)))

    def draw_all(console: Console) -> None:
        console.print(difference_table(found))
        for kind in ("lost", "won"):
            print_examples(console, found, chosen, won=kind == "won")
        for note in (*chosen.notes, *notes):
            print_line(console, note)
        print_line(console, sentence(found))

    show(json_, document, draw_all)


def _questions(path: str, qrels: str | None, answers: AnswerKind | None, most: int | None) -> QuestionSet:
    found = read_questions(path, qrels, answers)
    return found if most is None else draw(found, most, seed=0)


def _ranks(at: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(sorted(set(at or (1, 5, 20, 100))))


def _write_runs(path: str, questions: QuestionSet, rankings: Sequence["Ranking"]) -> None:
    from dpr.evaluate.trec_runs import write_run

    for ranking in rankings:
        named = path if len(rankings) == 1 else _beside(path, ranking.name)
        write_run(named, ranking.name, questions.questions, ranking.judged)


def _beside(path: str, mode: str) -> str:
    """Return the path with the mode before its endings: `runs/dev.trec.gz` → `runs/dev-dense.trec.gz`."""
    folder, slash, name = path.rpartition("/")
    stem, dot, endings = name.partition(".")
    return f"{folder}{slash}{stem}-{mode}{dot}{endings}"
