"""A process that watches a lease holder's heartbeats is stopped, while the holder lives: the simulator's seed 460."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dpr.errors import ConflictError
from dpr.store import LocalStore
from dpr.store import lease as lease_module
from dpr.store.lease import Lease
from dpr.store.lease_objects import Holder, LeaseState, create_beat, create_claim, read_state

TTL_SECONDS = 30.0


def test_a_watcher_that_was_stopped_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, seconds, looks = LocalStore(tmp_path), [0.0], [0]
    assert create_claim(store, 1, Holder("elsewhere", "another", 1, None, "a run", "today", TTL_SECONDS, "claim"))

    def read_and_be_stopped(store: LocalStore) -> LeaseState | None:
        """Look, and with the first look of the watch stand still for longer than the lease; the holder does not."""
        found = read_state(store)
        looks[0] += 1
        if looks[0] == 2:
            seconds[0] += 2 * TTL_SECONDS
            create_beat(store, 1, 2)
        return found

    def sleep(for_seconds: float) -> None:
        seconds[0] += for_seconds

    monkeypatch.setattr(lease_module, "read_state", read_and_be_stopped)
    monkeypatch.setattr(lease_module, "time", SimpleNamespace(monotonic=lambda: seconds[0], sleep=sleep))
    with pytest.raises(ConflictError, match="is held by a run"):
        Lease.acquire(store, "another run", TTL_SECONDS)
    assert looks[0] == 3
