"""Check that a snapshot does not answer fewer questions than the live one, beyond what the recipe allows and chance."""

import json
from collections.abc import Sequence
from pathlib import Path

from dpr.errors import GateError
from dpr.formats import layout
from dpr.formats.manifest import Snapshot
from dpr.formats.objects import put_object
from dpr.recipe import Recipe
from dpr.run import Run
from dpr.stages.live_answers import Change
from dpr.store.temporary import temporary_folder

EXAMPLES = 3
"""Lost questions that the message quotes."""


def check_drop(run: Run, live: Snapshot, changes: Sequence[Change]) -> None:
    """Raise GateError if accuracy fell below that of the live snapshot; the questions lost are stored first."""
    allowed = run.recipe.gate.max_drop
    if allowed is None:
        return
    falls = [change for change in changes if change.difference.mean < 0 and not change.is_chance]
    drops = [change for change in falls if change.before - change.now > allowed]
    if drops:
        raise GateError(_sentence(run.recipe, live, drops, _put_lost(run, drops)))


def _put_lost(run: Run, drops: Sequence[Change]) -> str:
    """Store the questions that were lost, and return the object's name."""
    with temporary_folder() as folder:
        path = Path(folder, "lost.jsonl")
        rows = [{"question": question, "within": drop.rank} for drop in drops for question in drop.lost]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return put_object(run.store, layout.lost_questions(run.run_id), path).name


def _sentence(recipe: Recipe, live: Snapshot, drops: Sequence[Change], stored: str) -> str:
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
        "raise gate.max_drop, or publish anyway with --force REASON"
    )
