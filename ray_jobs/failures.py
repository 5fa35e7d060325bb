"""Turn errors of stages and services on Ray into the project's own, which Ray wraps, or quotes in its messages."""

import re
from collections.abc import Collection, Iterator

from ray import exceptions

from dpr import errors
from dpr.errors import DprError, UnitError
from ray_jobs.heartbeats import LostTooOftenError

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
_ADVICE = "\nFailed to apply UDF transform after"
"""Start of what Ray Data adds to the first argument of an error that it passes on, if that is a string."""


def quoted_error(message: str) -> DprError | None:
    """Return the last error of `dpr.errors` that a message of Ray quotes, as it was raised; None if there is none."""
    quoted = _QUOTED.findall(message)
    if not quoted:
        return None
    name, sentence = quoted[-1]
    kind = getattr(errors, name, DprError)
    return kind(sentence) if isinstance(kind, type) and issubclass(kind, DprError) else DprError(sentence)


def stage_error(stage: str, missing: Collection[str], error: Exception, given_up: Collection[str] = ()) -> DprError:
    """Return the project's own error inside one of Ray's, or a UnitError in one sentence.

    `missing` are the records of the units that have no result; the workers of those `given_up` were ended because they
    did nothing.
    """
    from ray.data.exceptions import SystemException  # Ray Data takes a second to import

    # an error that is no user's has an empty one of this kind as its cause
    causes = [cause for cause in _causes(error) if not isinstance(cause, SystemException)] or [error]
    # Ray's own error for one of ours is of both kinds, and says where in the worker it was raised
    raised = [cause for cause in causes if not isinstance(cause, exceptions.RayTaskError)]
    for cause in raised:
        if isinstance(cause, DprError):
            cause.args = (_without_advice(str(cause)),)
            return cause
    if (own := quoted_error(str(error))) is not None:  # an actor that could not be made quotes it as text
        return own
    if any(isinstance(cause, (*_LOST, LostTooOftenError)) for cause in causes):
        records = [record for cause in raised if isinstance(cause, LostTooOftenError) for record in cause.args]
        lost = {_without_advice(record) for record in records}
        suspects = lost & set(missing) or set(missing)
        hung = sorted(suspects & set(given_up))
        return _hung_workers(stage, hung) if hung else _lost_workers(stage, sorted(suspects))
    return UnitError(f"stage {stage} failed in a worker: {_reason(causes[-1])}; start the run again")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what caused it, and so on."""
    while error is not None:
        yield error
        error = getattr(error, "cause", None) or error.__cause__


def _reason(error: BaseException) -> str:
    """Return an error in one line: the last one of Ray's own errors, which hold tracebacks."""
    lines = [line.strip() for line in _without_advice(str(error)).splitlines() if line.strip()]
    if isinstance(error, exceptions.RayError):
        return lines[-1] if lines else type(error).__name__
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _without_advice(message: str) -> str:
    return message.partition(_ADVICE)[0]


def _hung_workers(stage: str, units: list[str]) -> UnitError:
    return UnitError(
        f"stage {stage}: the workers of {_names(units)} did nothing for longer than the recipe allows "
        "(resources.idle_seconds), repeatedly; find out in Ray's logs what they wait for, fix that or raise the "
        "setting, and start the run again"
    )


def _names(records: list[str]) -> str:
    return ", ".join(records[:_NAMED]) + (", …" if len(records) > _NAMED else "")


def _lost_workers(stage: str, missing: list[str]) -> UnitError:
    named = _names(missing)
    which = ""
    if missing:
        which = f" ({named})" if len(missing) == 1 else f" (one of {len(missing)} that are not done: {named})"
    return UnitError(
        f"stage {stage}: the workers of one unit died repeatedly{which}; find out in Ray's logs whether memory "
        "ran out or a passage crashes them, give them more memory or correct the passage, and start the run again"
    )
