"""Whether a snapshot answers fewer questions than the live one, by more than the recipe allows and chance explains.

The same questions are compared one by one, so a small loss is seen among many questions, and a difference that chance
explains does not stop a night.

Shapes: Q questions, M ranks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpr.errors import GateError
from dpr.evaluate.significance import MIN_QUESTIONS, Difference, paired_differences
from dpr.formats import layout
from dpr.formats.manifest import GateReport, Snapshot
from dpr.formats.objects import put_object
from dpr.recipe import Recipe
from dpr.run import Run
from dpr.stages.answer_ranks import read_ranks
from dpr.store.temporary import temporary_folder

SIGNIFICANCE = 0.05
"""A difference with a larger p value counts as chance. It is divided among the ranks that are compared."""
EXAMPLES = 3
"""Lost questions that the message quotes."""


@dataclass(frozen=True)
class Drop:
    """By how much accuracy at a rank fell below that of the live snapshot, and what was lost."""

    rank: int
    before: float
    now: float
    difference: Difference
    lost: tuple[str, ...]
    """Questions that the live snapshot answers within this rank, and the new one does not."""


def check_drop(run: Run, report: GateReport) -> None:
    """Raise GateError if accuracy fell below that of the live snapshot; the questions lost are stored first.

    Nothing is compared where one of both has no accuracy, or where they have fewer than 20 questions in common.
    """
    allowed = run.recipe.gate.max_drop
    if allowed is None or run.live is None:
        return
    drops = [drop for drop in find_drops(run, report, run.live) if drop.before - drop.now > allowed]
    if drops:
        raise GateError(_sentence(run.recipe, run.live, drops, _put_lost(run, drops)))


def find_drops(run: Run, report: GateReport, live: Snapshot) -> list[Drop]:
    """Return where accuracy is lower than that of the live snapshot, and chance does not explain it."""
    old = live.body.gate
    ranks = sorted({*map(int, report.accuracy_index)} & {*map(int, old.accuracy_index)})
    if report.ranks is None or old.ranks is None or not ranks:
        return []
    now, before = read_ranks(run.store, report.ranks), read_ranks(run.store, old.ranks)
    common = [asked for asked in now if asked in before]
    if len(common) < MIN_QUESTIONS:
        run.progress.message(
            "gate",
            f"accuracy is not compared with that of live snapshot {live.number}: they have {len(common)} questions "
            f"with the same answers in common, and fewer than {MIN_QUESTIONS} tell nothing",
        )
        return []
    now_QM, before_QM = (_within([found[asked] for asked in common], ranks) for found in (now, before))
    drops = []
    differences = paired_differences(now_QM, before_QM, run.recipe.index.seed)
    for place, (rank, difference) in enumerate(zip(ranks, differences, strict=True)):
        if difference.mean < 0 and difference.p_value < SIGNIFICANCE / len(ranks):
            rows = np.flatnonzero(now_QM[:, place] < before_QM[:, place])
            lost = tuple(common[row].question for row in rows.tolist())
            old_share, new_share = float(before_QM[:, place].mean()), float(now_QM[:, place].mean())
            drops.append(Drop(rank, old_share, new_share, difference, lost))
    return drops


def _within(found: Sequence[int | None], ranks: Sequence[int]) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Return (Q, M) whether each question was answered within each rank, 1 or 0."""
    places_Q1 = np.array([np.inf if rank is None else rank for rank in found])[:, np.newaxis]
    return (places_Q1 <= np.array(ranks)).astype(np.float64)


def _put_lost(run: Run, drops: Sequence[Drop]) -> str:
    """Store the questions that were lost, and return the object's name."""
    with temporary_folder() as folder:
        path = Path(folder, "lost.jsonl")
        rows = [{"question": question, "within": drop.rank} for drop in drops for question in drop.lost]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return put_object(run.store, layout.lost_questions(run.run_id), path).name


def _sentence(recipe: Recipe, live: Snapshot, drops: Sequence[Drop], stored: str) -> str:
    worst = min(drops, key=lambda drop: drop.difference.mean)
    found = worst.difference
    questions = found.won + found.lost + found.tied
    examples = ", ".join(repr(question) for question in worst.lost[:EXAMPLES])
    more = f" and {len(worst.lost) - EXAMPLES:,} more" if len(worst.lost) > EXAMPLES else ""
    return (
        f"top-{worst.rank} accuracy fell from {worst.before:.4f} to {worst.now:.4f} on {questions:,} questions that "
        f"live snapshot {live.number} was measured with, too ({found.lost:,} lost, {found.won:,} won, p "
        f"{found.p_value:.4f}), and gate.max_drop allows {recipe.gate.max_drop:g}; nothing was published. Lost were "
        f"{examples}{more}; {stored} in {recipe.store} lists all. Look at the encoder, and at what left the corpus; "
        "raise gate.max_drop, or publish all the same with --force REASON"
    )
