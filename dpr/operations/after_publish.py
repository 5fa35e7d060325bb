"""Check a snapshot that was just published by a command of the recipe, and roll back if the command fails."""

import os
import subprocess

from dpr.errors import GateError
from dpr.formats.manifest import Snapshot
from dpr.operations.rollback import rollback
from dpr.store import Store

LAST_LINES = 3
"""Characters of the command's output that are quoted if it fails."""


def check_published(store: Store, snapshot: Snapshot, command: str) -> None:
    """Run a shell command on a new snapshot; raise GateError, after a rollback, if it fails.

    The command finds the store and the number in DPR_STORE and DPR_SNAPSHOT.
    """
    environment = os.environ | {"DPR_STORE": store.url, "DPR_SNAPSHOT": str(snapshot.number)}
    ended = subprocess.run(
        command, shell=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if ended.returncode == 0:
        return
    output = " / ".join(ended.stdout.decode("utf-8", "replace").strip().splitlines()[-LAST_LINES:]) or "no output"
    failed = f"gate.after_publish ended with code {ended.returncode} for snapshot {snapshot.number}: {output}"
    if snapshot.parent is None:
        raise GateError(f"{failed}; it is the first snapshot, so it stays live: fix what failed, and run again")
    new = rollback(store, snapshot.parent)
    raise GateError(f"{failed}; snapshot {new.number} is live, with the body of snapshot {snapshot.parent}")
