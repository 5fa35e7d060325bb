"""The commands of `dpr` that measure how well questions are answered: eval, compare."""

import enum
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from dpr.evaluate.questions import AnswerKind, QuestionSet, draw, read_questions
from dpr.formats.snapshots import live_snapshot, read_snapshot
from dpr.store import open_store
from ray_jobs.cli_common import Fields, Json, Model, SnapshotNumber, StoreArgument, show

if TYPE_CHECKING:
    from dpr.evaluate.rankings import Comparison, Ranking

app = typer.Typer()


class Mode(enum.StrEnum):
    """A mode of search; typer takes lists of enumerations only."""

    DENSE = "dense"
    BM25 = "bm25"
    HYBRID = "hybrid"


EXAMPLES = 5
"""Questions won and lost that are printed."""
SHOWN_CHARS = 160

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
    AnswerKind | None, typer.Option("--answers", help="What the answers are; default: as qrels or the format say.")
]
Exact = Annotated[bool, typer.Option("--exact", help="Compare all vectors instead of using the index.")]
At = Annotated[list[int] | None, typer.Option("-k", min=1, max=1000, help="Ranks of accuracy; default: 1 5 20 100.")]
MaxQuestions = Annotated[
    int | None, typer.Option("--max-questions", min=1, help="Draw so many questions, always the same; default: all.")
]
Report = Annotated[Path | None, typer.Option("--report", help="Folder for a page (HTML) and pictures (PNG).")]


@app.command(name="eval")
def evaluate(
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
        str | None, typer.Option("--run-out", help="TREC run to write; of several modes, each to a file named by it.")
    ] = None,
    report: Report = None,
    model: Model = None,
    json_: Json = False,
) -> None:
    """Measure how well a snapshot answers questions, in each mode, with 95% intervals."""
    from dpr.evaluate.evaluation_report import write_page
    from dpr.evaluate.metrics import Metrics
    from dpr.evaluate.rankings import Comparison, unanswered
    from dpr.evaluate.trec_runs import write_run
    from dpr.operations.evaluation import Contender, Evaluator, modes_of

    asked = _questions(questions, qrels, answers, max_questions)
    opened = open_store(store)
    body = (live_snapshot(opened) if snapshot is None else read_snapshot(opened, snapshot)).body
    evaluator = Evaluator(asked, Metrics(_ranks(at), asked.answers), exact, model)
    measured = evaluator.measure(Contender(store, snapshot, modes_of(body, [each.value for each in mode or []])))
    rankings, notes = measured.rankings, [*asked.notes, *measured.notes]
    comparisons = [Comparison(rankings[0], other) for other in rankings[1:]]
    if run_out is not None:
        for ranking in rankings:
            path = run_out if len(rankings) == 1 else _beside(run_out, ranking.name)
            write_run(path, ranking.name, asked.questions, ranking.judged)
    without = [asked.questions[place].id for place in unanswered(rankings)]
    document: Fields = {
        "snapshot": measured.snapshot,
        "questions": len(asked.questions),
        "answers": asked.answers,
        "exact": exact,
        "modes": {ranking.name: _interval_fields(ranking) for ranking in rankings},
        "differences": {f"{c.b.name} - {c.a.name}": _difference_fields(c) for c in comparisons},
        "unanswered": without,
        "absent_passages": list(measured.absent),
        "notes": notes,
    }
    if report is not None:
        facts = {
            "store": opened.url,
            **{name: document[name] for name in ("snapshot", "questions", "answers", "exact")},
        }
        facts |= {f"note {number}": note for number, note in enumerate(notes, 1)}
        page = write_page(report, f"Evaluation of snapshot {measured.snapshot}", facts, asked, rankings)
        document["page"] = str(page)

    def draw_all(console: Console) -> None:
        console.print(_interval_table(f"{len(asked.questions):,} questions, snapshot {measured.snapshot}", rankings))
        for comparison in comparisons:
            _print_line(console, _sentence(comparison))
        for note in notes:
            _print_line(console, note)
        some = f", such as {without[0]!r}" if without else ""
        depth = evaluator.metrics.depth
        _print_line(console, f"{len(without):,} questions have no right passage among {depth} hits of any mode{some}")
        if report is not None:
            _print_line(console, str(page))

    show(json_, document, draw_all)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="STORE[@SNAPSHOT][:MODE], or a TREC run.")],
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

    asked = _questions(questions, qrels, answers, max_questions)
    evaluator = Evaluator(asked, Metrics(_ranks(at), asked.answers), exact)
    first, second, notes = evaluator.measure_both(Contender.parse(a), Contender.parse(b))
    found = Comparison(first, second)
    document: Fields = {
        "a": first.name,
        "b": second.name,
        "questions": len(asked.questions),
        "answers": asked.answers,
        "means": {ranking.name: _interval_fields(ranking) for ranking in (first, second)},
        "differences": _difference_fields(found),
        "lost": _example_fields(found, asked, won=False),
        "won": _example_fields(found, asked, won=True),
        "notes": [*asked.notes, *notes],
    }
    if report is not None:
        facts: dict[str, object] = {"A": first.name, "B": second.name, "questions": len(asked.questions)}
        document["page"] = str(write_page(report, "Comparison", facts, asked, (first, second)))

    def draw_all(console: Console) -> None:
        console.print(_difference_table(found))
        for kind in ("lost", "won"):
            _print_examples(console, found, asked, won=kind == "won")
        for note in (*asked.notes, *notes):
            _print_line(console, note)
        _print_line(console, _sentence(found))

    show(json_, document, draw_all)


def _questions(path: str, qrels: str | None, answers: AnswerKind | None, most: int | None) -> QuestionSet:
    found = read_questions(path, qrels, answers)
    return found if most is None else draw(found, most, seed=0)


def _ranks(at: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(sorted(set(at or (1, 5, 20, 100))))


def _beside(path: str, mode: str) -> str:
    """Return the path with the mode before its endings: `runs/dev.trec.gz` → `runs/dev-dense.trec.gz`."""
    folder, slash, name = path.rpartition("/")
    stem, dot, endings = name.partition(".")
    return f"{folder}{slash}{stem}-{mode}{dot}{endings}"


def _interval_fields(ranking: "Ranking") -> Fields:
    return {name: asdict(interval) for name, interval in ranking.intervals.items()}


def _difference_fields(comparison: "Comparison") -> Fields:
    return {name: asdict(difference) for name, difference in comparison.differences.items()}


def _example_fields(comparison: "Comparison", questions: QuestionSet, *, won: bool) -> list[Fields]:
    rows: list[Fields] = []
    for place in comparison.most(EXAMPLES, won=won):
        question = questions.questions[place]
        row: Fields = {"id": question.id, "question": question.text}
        for side, ranking in (("a", comparison.a), ("b", comparison.b)):
            judged = ranking.judged[place]
            row[side] = {"rank": judged.rank, "hits": [{"id": hit.id, "title": hit.title} for hit in judged.shown]}
        rows.append(row)
    return rows


def _interval_table(title: str, rankings: Sequence["Ranking"]) -> Table:
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("metric")
    for ranking in rankings:
        drawn.add_column(ranking.name, justify="right")
    for name in rankings[0].metrics.names:
        intervals = [ranking.intervals[name] for ranking in rankings]
        drawn.add_row(name, *(f"{each.mean:.4f}\n{each.low:.4f} to {each.high:.4f}" for each in intervals))
    return drawn


def _difference_table(comparison: "Comparison") -> Table:
    drawn = Table(title=f"A: {comparison.a.name}\nB: {comparison.b.name}", title_justify="left")
    for column in ("metric", "A", "B", "B minus A", "p", "won/lost"):
        drawn.add_column(column, justify="left" if column == "metric" else "right")
    for name, found in comparison.differences.items():
        means = (f"{ranking.intervals[name].mean:.4f}" for ranking in (comparison.a, comparison.b))
        difference = f"{found.mean:+.4f}\n{found.low:+.4f} to {found.high:+.4f}"
        drawn.add_row(name, *means, difference, f"{found.p_value:.4f}", f"{found.won:,}/{found.lost:,}")
    return drawn


def _print_examples(console: Console, comparison: "Comparison", questions: QuestionSet, *, won: bool) -> None:
    from dpr.evaluate.evaluation_report import describe_hits

    places = comparison.most(EXAMPLES, won=won)
    if places:
        _print_line(console, f"{'won' if won else 'lost'} most, by {comparison.a.metrics.chief}:")
    for place in places:
        question = questions.questions[place]
        _print_line(console, f"  {question.id}  {question.text}")
        for side, ranking in (("A", comparison.a), ("B", comparison.b)):
            _print_line(console, f"     {side}: {describe_hits(ranking.judged[place])[:SHOWN_CHARS]}")


def _sentence(comparison: "Comparison") -> str:
    """Say of the chief metric whether one side is better."""
    chief = comparison.a.metrics.chief
    found = comparison.differences[chief]
    sure = found.low > 0 or found.high < 0
    verdict = f"{'better' if found.mean > 0 else 'worse'} than" if sure else "neither clearly better nor worse than"
    return (
        f"{comparison.b.name} is {verdict} {comparison.a.name}: {chief} {found.mean:+.4f}, 95% interval "
        f"{found.low:+.4f} to {found.high:+.4f}, p {found.p_value:.4f}; {found.won:,} questions won, "
        f"{found.lost:,} lost, {found.tied:,} tied"
    )


def _print_line(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
