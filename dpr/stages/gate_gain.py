"""Check whether a snapshot of another encoder answers more questions than the live one, if the recipe demands that.

Another encoder costs an embedding of the whole corpus, and changes every answer. A trained one need not be better.
"""

from collections.abc import Sequence

from dpr.errors import GateError
from dpr.formats.manifest import Snapshot
from dpr.run import Run
from dpr.stages.live_answers import Change


def demands_gain(run: Run, live: Snapshot) -> bool:
    """Return whether the recipe demands that this run answers more questions than the live snapshot."""
    return run.recipe.gate.new_encoder == "better" and live.body.encoder_id != run.spec.encoder_id


def check_gain(run: Run, live: Snapshot, changes: Sequence[Change]) -> None:
    """Raise GateError unless more questions are answered within some rank, and chance does not explain it.

    `max_drop` says by how much fewer may be answered within other ranks.
    """
    gains = [change for change in changes if change.difference.mean > 0 and not change.is_chance]
    if gains:
        found = "; ".join(gain.describe() for gain in gains)
        run.progress.message("gate", f"better than live snapshot {live.number}: {found}")
        return
    where = f"encoder {run.spec.encoder_id} is not better than {live.body.encoder_id} of live snapshot {live.number}"
    demand = "and gate.new_encoder demands better; nothing was published"
    if not changes:
        raise GateError(
            f"nothing shows whether encoder {run.spec.encoder_id} is better than {live.body.encoder_id} of live "
            f"snapshot {live.number}, since they were not measured on common questions, {demand}: name questions in "
            "gate.questions, and publish a snapshot of the encoder as it was with them first"
        )
    found = "; ".join(change.describe() for change in changes)
    raise GateError(
        f"{where} beyond what chance explains ({found}), {demand}: train with more questions or hard negatives, ask "
        "more questions in the gate, or set gate.new_encoder to any"
    )
