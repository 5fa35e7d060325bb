"""Print evaluations and comparisons for people, as tables and sentences, and give them the form of JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from dpr.evaluate.questions import QuestionSet
from dpr.plurals import counted
from ray_jobs.cli_common import Fields

if TYPE_CHECKING:
    from dpr.evaluate.rankings import Comparison, Ranking

EXAMPLES = 5
"""Questions won and lost that are printed."""
SHOWN_CHARS = 160


def interval_fields(ranking: "Ranking") -> Fields:
    """Return mean and interval of each metric, for JSON."""
    return {name: asdict(interval) for name, interval in ranking.intervals.items()}


def difference_fields(comparison: "Comparison") -> Fields:
    """Return the difference of each metric, for JSON."""
    return {name: asdict(difference) for name, difference in comparison.differences.items()}


def example_fields(comparison: "Comparison", questions: QuestionSet, *, won: bool) -> list[Fields]:
    """Return the questions that were won or lost most, for JSON."""
    rows: list[Fields] = []
    for place in comparison.most(EXAMPLES, won=won):
        question = questions.questions[place]
        row: Fields = {"id": question.id, "question": question.text}
        for side, ranking in (("a", comparison.a), ("b", comparison.b)):
            judged = ranking.judged[place]
            row[side] = {"rank": judged.rank, "hits": [{"id": hit.id, "title": hit.title} for hit in judged.shown]}
        rows.append(row)
    return rows


def interval_table(title: str, rankings: Sequence["Ranking"]) -> Table:
    """Draw metrics against rankings, with intervals."""
    drawn = Table(title=title, title_justify="left")
    drawn.add_column("metric")
    for ranking in rankings:
        drawn.add_column(ranking.name, justify="right")
    for name in rankings[0].metrics.names:
        intervals = [ranking.intervals[name] for ranking in rankings]
        drawn.add_row(name, *(f"{each.mean:.4f}\n{each.low:.4f} to {each.high:.4f}" for each in intervals))
    return drawn


def difference_table(comparison: "Comparison") -> Table:
    """Draw what differs between two sides, a row for each metric."""
    drawn = Table(title=f"A: {comparison.a.name}\nB: {comparison.b.name}", title_justify="left")
    for column in ("metric", "A", "B", "B minus A", "p", "won/lost"):
        drawn.add_column(column, justify="left" if column == "metric" else "right")
    for name, found in comparison.differences.items():
        means = (f"{ranking.intervals[name].mean:.4f}" for ranking in (comparison.a, comparison.b))
        difference = f"{found.mean:+.4f}\n{found.low:+.4f} to {found.high:+.4f}"
        drawn.add_row(name, *means, difference, f"{found.p_value:.4f}", f"{found.won:,}/{found.lost:,}")
    return drawn


def print_examples(console: Console, comparison: "Comparison", questions: QuestionSet, *, won: bool) -> None:
    """Print the questions that were won or lost most, with what each side returned."""
    from dpr.evaluate.evaluation_report import describe_hits

    places = comparison.most(EXAMPLES, won=won)
    if places:
        print_line(console, f"{'won' if won else 'lost'} most, by {comparison.a.metrics.chief}:")
    for place in places:
        question = questions.questions[place]
        print_line(console, f"  {question.id}  {question.text}")
        for side, ranking in (("A", comparison.a), ("B", comparison.b)):
            print_line(console, f"     {side}: {describe_hits(ranking.judged[place])[:SHOWN_CHARS]}")


def sentence(comparison: "Comparison") -> str:
    """Say of the chief metric whether one side is better."""
    chief = comparison.a.metrics.chief
    found = comparison.differences[chief]
    sure = found.low > 0 or found.high < 0
    verdict = f"{'better' if found.mean > 0 else 'worse'} than" if sure else "neither clearly better nor worse than"
    return (
        f"{comparison.b.name} is {verdict} {comparison.a.name}: {chief} {found.mean:+.4f}, 95% interval "
        f"{found.low:+.4f} to {found.high:+.4f}, p {found.p_value:.4f}; {counted(found.won, 'question')} won, "
        f"{found.lost:,} lost, {found.tied:,} tied"
    )


def print_line(console: Console, line: str) -> None:
    """Print a line as it is, however long."""
    console.print(line, highlight=False)
