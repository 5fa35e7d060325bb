"""The page on an evaluation: accuracy against k, all metrics with their intervals, and questions won and lost."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpr.errors import OutputError
from dpr.evaluate.metrics import Judged
from dpr.evaluate.pictures import THEMES, AccuracyLine, draw_accuracy
from dpr.evaluate.questions import QuestionSet
from dpr.evaluate.rankings import Comparison, Ranking, unanswered
from dpr.evaluate.report_page import Section, render
from dpr.evaluate.significance import Interval, mean_intervals
from dpr.store.reasons import reason_of

EXAMPLES = 10
"""How many questions of each kind are shown."""
TEXT_CHARS = 240


def write_page(
    folder: Path, title: str, facts: dict[str, object], questions: QuestionSet, rankings: Sequence[Ranking]
) -> Path:
    """Draw an evaluation into `folder`, as PNG files and one HTML page, whose path is returned.

    The first ranking is compared with each of the others.
    """
    comparisons = [Comparison(rankings[0], other) for other in rankings[1:]]
    sections = [_accuracy_section(rankings), _metrics_section(rankings)]
    sections += [_difference_section(comparison, number) for number, comparison in enumerate(comparisons)]
    for number, comparison in enumerate(comparisons):
        sections += [_examples_section(comparison, questions, f"{kind}-{number}", kind) for kind in ("lost", "won")]
    sections.append(_unanswered_section(rankings, questions))
    page = folder / "evaluation.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for theme, png in section.pictures.items():
                (folder / f"{section.name}{'' if theme == 'light' else '-dark'}.png").write_bytes(png)
        page.write_text(render(title, facts, sections), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"report {folder} cannot be written: {reason_of(error)}; name another folder") from error
    return page


def accuracy_lines(rankings: Sequence[Ranking]) -> list[AccuracyLine]:
    """Return the accuracy of each ranking at all requested ranks, with its interval."""
    lines = []
    for ranking in rankings:
        ks = np.arange(1, ranking.metrics.at[-1] + 1)
        ranks_Q = np.array([judged.rank or np.inf for judged in ranking.judged])
        intervals = mean_intervals((ranks_Q[:, np.newaxis] <= ks).astype(np.float64))
        lines.append(AccuracyLine(ranking.name, ks.tolist(), intervals))
    return lines


def _accuracy_section(rankings: Sequence[Ranking]) -> Section:
    lines = accuracy_lines(rankings)
    ks = [k for k in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000) if k <= lines[0].ks[-1]]
    return Section(
        name="accuracy",
        title="Accuracy against k",
        description=(
            "Share of questions with a right passage among the first k. Shaded: 95% intervals, from the bootstrap over "
            "questions."
        ),
        pictures={name: draw_accuracy(lines, theme) for name, theme in THEMES.items()},
        columns=("k", *(line.name for line in lines)),
        rows=[(k, *(_interval_cell(line.intervals[k - 1]) for line in lines)) for k in ks],
    )


def _metrics_section(rankings: Sequence[Ranking]) -> Section:
    names = rankings[0].metrics.names
    return Section(
        name="metrics",
        title="Metrics",
        description="Means over questions, with their 95% intervals.",
        columns=("metric", *(ranking.name for ranking in rankings)),
        rows=[(name, *(_interval_cell(ranking.intervals[name]) for ranking in rankings)) for name in names],
    )


def _difference_section(comparison: Comparison, number: int) -> Section:
    found = comparison.differences
    return Section(
        name=f"difference-{number}",
        title=f"{comparison.b.name} against {comparison.a.name}",
        description=(
            f"{comparison.b.name} minus {comparison.a.name}, over pairs of the same question: mean, 95% interval, p "
            "value of a randomisation test, and questions won, lost and tied."
        ),
        columns=("metric", "difference", "95% interval", "p", "won", "lost", "tied"),
        rows=[
            (name, f"{d.mean:+.4f}", f"{d.low:+.4f} to {d.high:+.4f}", f"{d.p_value:.4f}", d.won, d.lost, d.tied)
            for name, d in found.items()
        ],
    )


def _examples_section(comparison: Comparison, questions: QuestionSet, name: str, kind: str) -> Section:
    a, b = comparison.a, comparison.b
    places = comparison.most(EXAMPLES, won=kind == "won")
    rows = [
        (questions.questions[place].text, describe_hits(a.judged[place]), describe_hits(b.judged[place]))
        for place in places
    ]
    return Section(
        name=name,
        title=f"Questions that {b.name} has {kind} against {a.name}",
        description=(
            f"The {len(rows)} whose {a.metrics.chief} differs most, with the rank of the first right passage and the "
            "first hit of each."
            if rows
            else "None."
        ),
        columns=("question", a.name, b.name) if rows else (),
        rows=rows,
    )


def _unanswered_section(rankings: Sequence[Ranking], questions: QuestionSet) -> Section:
    places = unanswered(rankings)
    examples = [questions.questions[place] for place in places[:EXAMPLES]]
    return Section(
        name="unanswered",
        title="Questions without a right passage",
        description=(
            f"{len(places):,} of {len(questions.questions):,} have none among the first {rankings[0].metrics.depth} "
            f"hits of any search{'; the first of them:' if places else '.'}"
        ),
        columns=("question", "answers") if places else (),
        rows=[(question.text, _cut("; ".join(question.answers))) for question in examples],
    )


def describe_hits(judged: Judged) -> str:
    """State the rank of the first right passage, and the first hit."""
    rank = f"right at rank {judged.rank}" if judged.rank else f"no right passage among {len(judged.ids)}"
    if not judged.shown:
        return rank
    first = judged.shown[0]
    return (
        f"{rank}; first: {first.title or first.id}: {_cut(first.text)}" if first.text else f"{rank}; first: {first.id}"
    )


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARS else f"{text[:TEXT_CHARS]}…"


def _interval_cell(interval: Interval) -> str:
    return f"{interval.mean:.4f} ({interval.low:.4f} to {interval.high:.4f})"
