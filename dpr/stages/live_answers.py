"""The answers of a new snapshot beside those of the live one: the same questions are compared one by one.

Pairing the answers question by question shows small differences, and allows a test of whether they are due to chance.

Shapes: Q questions, M ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpr.evaluate.significance import MIN_QUESTIONS, Difference, paired_differences
from dpr.formats.gate_report import GateReport
from dpr.formats.manifest import Snapshot
from dpr.plurals import counted
from dpr.run import Run
from dpr.stages.answer_ranks import read_ranks

SIGNIFICANCE = 0.05
"""A difference with a larger p value counts as chance. It is divided among the ranks that are compared."""


@dataclass(frozen=True)
class Change:
    """How the share of questions that are answered within a rank differs from that of the live snapshot."""

    rank: int
    before: float
    now: float
    difference: Difference
    is_chance: bool
    """Whether chance explains the difference."""
    lost: tuple[str, ...]
    """Questions that the live snapshot answers within this rank, and the new one does not."""

    def describe(self) -> str:
        """Return the figures as part of a sentence."""
        found = self.difference
        return (
            f"top-{self.rank} accuracy {self.before:.4f} before and {self.now:.4f} now ({found.won:,} won, "
            f"{found.lost:,} lost, p {found.p_value:.4f})"
        )


def compare_with_live(run: Run, report: GateReport, live: Snapshot) -> list[Change]:
    """Return the difference at each rank of both; none if one has no accuracy, or if too few questions are common."""
    old = live.body.gate
    ranks = sorted({*map(int, report.accuracy_index)} & {*map(int, old.accuracy_index)})
    if report.ranks is None or old.ranks is None or not ranks:
        return []
    now, before = read_ranks(run.store, report.ranks), read_ranks(run.store, old.ranks)
    common = [question for question in now if question in before]
    if len(common) < MIN_QUESTIONS:
        run.progress.message(
            "gate",
            f"accuracy is not compared with that of live snapshot {live.number}: they have "
            f"{counted(len(common), 'question')} with the same answers in common, too few to compare (minimum "
            f"{MIN_QUESTIONS})",
        )
        return []
    now_QM, before_QM = (_within([found[question] for question in common], ranks) for found in (now, before))
    changes = []
    differences = paired_differences(now_QM, before_QM, run.recipe.index.seed)
    for place, (rank, difference) in enumerate(zip(ranks, differences, strict=True)):
        rows = np.flatnonzero(now_QM[:, place] < before_QM[:, place])
        lost = tuple(common[row].question for row in rows.tolist())
        shares = float(before_QM[:, place].mean()), float(now_QM[:, place].mean())
        is_chance = difference.p_value >= SIGNIFICANCE / len(ranks)
        changes.append(Change(rank, *shares, difference, is_chance, lost))
    return changes


def _within(found: Sequence[int | None], ranks: Sequence[int]) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Return (Q, M) whether each question was answered within each rank, 1 or 0."""
    places_Q1 = np.array([np.inf if rank is None else rank for rank in found])[:, np.newaxis]
    return (places_Q1 <= np.array(ranks)).astype(np.float64)
