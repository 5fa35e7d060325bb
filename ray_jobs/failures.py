"""Errors of stages and services on Ray: Ray quotes the project's own errors in messages of its own."""

import re
from collections.abc import Collection

from ray import exceptions

from dpr import errors
from dpr.errors import DprError, UnitError

_QUOTED = re.compile(r"dpr\.errors\.(\w+): (.+)")
_LOST = (
    exceptions.WorkerCrashedError,
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
)
_NAMED = 3
"""Records that a message names, at most."""


def quoted_error(message: str) -> DprError | None:
    """Return the last error of `dpr.errors` that a message of Ray quotes, as it was raised; None if there is none."""
    quoted = _QUOTED.findall(message)
    if not quoted:
        return None
    name, sentence = quoted[-1]
    kind = getattr(errors, name, DprError)
    return kind(sentence) if isinstance(kind, type) and issubclass(kind, DprError) else DprError(sentence)


def stage_error(stage: str, missing: Collection[str], error: Exception) -> DprError:
    """Return the project's own error inside one of Ray's, or a UnitError in one sentence.

    `missing`: the records of the units that have not come out of the stage.
    """
    cause: BaseException | None = error
    lost = False
    while cause is not None:
        # Ray's own error for one of ours is of both kinds, and says where in the worker it was raised
        if isinstance(cause, DprError) and not isinstance(cause, exceptions.RayTaskError):
            return cause
        lost = lost or isinstance(cause, _LOST)
        cause = getattr(cause, "cause", None) or cause.__cause__
    if (own := quoted_error(str(error))) is not None:  # an actor that could not be made quotes it as text
        return own
    if lost:
        return _lost_workers(stage, sorted(missing))
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return UnitError(f"stage {stage} failed in a worker: {reason}; start the run again")


def _lost_workers(stage: str, missing: list[str]) -> UnitError:
    named = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
    which = ""
    if missing:
        which = f" ({named})" if len(missing) == 1 else f" (one of {len(missing)} that are not done: {named})"
    return UnitError(
        f"stage {stage}: the workers of one unit died again and again{which}; find out in Ray's logs whether memory "
        "ran out or a passage crashes them, give them more memory or mend the passage, and start the run again"
    )
