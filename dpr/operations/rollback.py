"""Rolling back: an old snapshot's body becomes live again under a new number."""

from dpr.errors import RecipeError
from dpr.formats.manifest import Snapshot
from dpr.formats.snapshots import live_snapshot, open_snapshot, publish_body
from dpr.store import Store
from dpr.store.proof import prove_put_if_absent


def rollback(store: Store, number: int) -> Snapshot:
    """Publish the body of snapshot `number` again under the next number; nothing is deleted.

    Raises RecipeError if it is live already, and StoreError for a store that does not support put-if-absent.
    """
    live = live_snapshot(store)
    if number == live.number:
        raise RecipeError(f"snapshot {number} of {store.url} is live already; name an older one (see `dpr history`)")
    old, marker = open_snapshot(store, number)
    with marker:
        prove_put_if_absent(store)
        return publish_body(store, old.body, live.number, run_id=old.run_id, inputs=None, note=f"rollback to {number}")
