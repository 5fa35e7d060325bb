"""The estimate of `dpr plan`, kept in this machine's cache under the id of the run, to be compared with its outcome.

`dpr plan` writes nothing to the store. A run's id follows from its inputs, so an estimate of other inputs is not found.
"""

from pathlib import Path

from pydantic import ValidationError

from dpr.operations.estimate import Cost
from dpr.store.cache import local_cache


def remember_estimate(run_id: str, cost: Cost) -> None:
    """Keep an estimate for the run with this id, in place of an earlier one."""
    cache, key = local_cache(), _key(run_id)
    cache.remove(key)
    cache.fetch(key, lambda path: _write(path, cost))


def remembered_estimate(run_id: str) -> Cost | None:
    """Return the estimate for a run; None if there is none that this version can read."""
    path = local_cache().find(_key(run_id))
    if path is None:
        return None
    try:
        return Cost.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):  # removed since, or of another version
        return None


def _write(path: Path, cost: Cost) -> None:
    path.write_bytes(cost.to_bytes())


def _key(run_id: str) -> str:
    return f"estimates/{run_id}.json"
