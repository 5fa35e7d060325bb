"""One run at a time: real processes that hold, die, stop and come back; on a folder and on S3."""

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dpr.errors import ConflictError, StoreError
from dpr.recipe import Limits
from dpr.store import LocalStore, Store
from dpr.store.lease import LEASE_SECONDS, Lease
from dpr.store.s3_failures import Patience
from tests.faulty_store import FailureMode, FaultyStore

HOLD = """
import sys, time
from dpr.errors import ConflictError
from dpr.store import open_store
from dpr.store.lease import LEASE_SECONDS, Lease
from dpr.store.s3_failures import Patience
try:
    ttl_seconds, deletes = float(sys.argv[3]), sys.argv[2] == "gc"
    with Lease.acquire(open_store(sys.argv[1]), sys.argv[2], ttl_seconds, deletes=deletes) as lease:
        print("held", lease.fencing_number, flush=True)
        for line in sys.stdin:
            lease.check()
            print("still held", flush=True)
except ConflictError as error:
    print("refused:", error, flush=True)
"""


class Process:
    """Another process that takes the lease of a store, and holds it until `end`."""

    def __init__(self, store: Store, owner: str, ttl_seconds: float = 60.0) -> None:
        self.popen = subprocess.Popen(
            (sys.executable, "-c", HOLD, store.url, owner, str(ttl_seconds)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def answer(self) -> str:
        assert self.popen.stdout
        return self.popen.stdout.readline().strip()

    def check(self) -> str:
        assert self.popen.stdin
        self.popen.stdin.write("check\n")
        self.popen.stdin.flush()
        return self.answer()

    def end(self) -> None:
        self.popen.communicate()

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self.close()

    def close(self) -> None:
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe
            pipe.close()


@pytest.fixture
def folder(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def claim_of_another_machine(store: Store, number: int, ttl_seconds: float) -> None:
    """What a holder on another machine would have written."""
    claim = {
        "owner": "run of elsewhere",
        "host": "elsewhere",
        "machine": "another boot",
        "pid": os.getpid(),
        "process_start": "1",
        "since": "2026-01-01T00:00:00+00:00",
        "ttl_seconds": ttl_seconds,
        "claim_id": "1",
    }
    assert store.put_if_absent(f"lease/{number:08d}/00000001.json", json.dumps(claim).encode())


def test_one_holds_and_the_other_learns_who(any_store: Store) -> None:
    first = Process(any_store, "run 1")
    assert first.answer() == "held 1"
    with pytest.raises(ConflictError) as caught:
        Lease.acquire(any_store, "run 2")
    message = str(caught.value)
    assert f"store {any_store.url} is held by run 1 (host " in message
    assert f"pid {first.pid}, since 20" in message
    assert "\n" not in message
    assert first.check() == "still held"
    first.end()
    with Lease.acquire(any_store, "run 2") as lease:  # released: at once
        assert lease.fencing_number == 2
        lease.check()


def test_a_killed_holder_is_succeeded_at_once(any_store: Store) -> None:
    first = Process(any_store, "run 1")
    assert first.answer() == "held 1"
    first.kill()
    with Lease.acquire(any_store, "run 1") as lease:
        assert lease.fencing_number == 2
        lease.check()


def test_a_killed_holder_that_nobody_waited_for_is_dead_too(folder: LocalStore) -> None:
    first = Process(folder, "run 1")
    assert first.answer() == "held 1"
    first.popen.kill()
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # dead, and its parent has not read its exit status
    Lease.acquire(folder, "run 2").release()
    first.kill()


@pytest.mark.parametrize("any_store", ["local", "ceph"], indirect=True)  # moto's put-if-absent can race
def test_of_many_at_once_one_gets_it(any_store: Store) -> None:
    gate = threading.Barrier(6)

    def try_it(number: int) -> Lease | str:
        gate.wait(60)
        try:
            return Lease.acquire(any_store, f"run {number}")
        except ConflictError as error:
            return str(error)

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(try_it, range(6)))
    leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    for lease in leases:
        lease.release()
    assert len(leases) == 1
    holder = f"run {outcomes.index(leases[0])} "
    assert all(holder in outcome for outcome in outcomes if isinstance(outcome, str))


def test_a_stopped_holder_loses_the_lease_and_finds_out(folder: LocalStore) -> None:
    first = Process(folder, "run 1", ttl_seconds=0.3)
    assert first.answer() == "held 1"
    assert first.check() == "still held"
    first.popen.send_signal(signal.SIGSTOP)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                lease = Lease.acquire(folder, "run 2")
                break
            except ConflictError:  # alive as far as one can see
                assert time.monotonic() < until
                time.sleep(0.05)
        assert lease.fencing_number == 2
    finally:
        first.popen.send_signal(signal.SIGCONT)
    message = first.check()
    assert message.startswith(f"refused: the lease of store {folder.url} was lost (fencing number 1) to run 2 (host ")
    first.end()
    lease.check()  # what the loser did afterwards, its release too, changes nothing
    with pytest.raises(ConflictError, match="held by run 2"):
        Lease.acquire(folder, "run 3")
    lease.release()


def test_a_silent_holder_elsewhere_is_succeeded_after_its_ttl(any_store: Store) -> None:
    claim_of_another_machine(any_store, 1, ttl_seconds=0.5)
    with Lease.acquire(any_store, "run 2") as lease:
        assert lease.fencing_number == 2


def test_a_holder_elsewhere_with_heartbeats_keeps_it(folder: LocalStore) -> None:
    claim_of_another_machine(folder, 1, ttl_seconds=600.0)
    beat = threading.Timer(0.2, lambda: folder.put("lease/00000001/00000002.json", b"{}"))
    beat.start()
    with pytest.raises(ConflictError, match=r"held by run of elsewhere \(host elsewhere, pid \d+, since 2026-01-01"):
        Lease.acquire(folder, "run 2")
    beat.join()


def test_a_holder_elsewhere_that_is_long_silent_is_succeeded_at_once(folder: LocalStore) -> None:
    claim_of_another_machine(folder, 1, ttl_seconds=600.0)
    long_ago = time.time() - 3 * 600 - 60
    os.utime(Path(folder.url, "lease/00000001/00000001.json"), (long_ago, long_ago))
    with Lease.acquire(folder, "run 2") as lease:  # watching would take ten minutes
        assert lease.fencing_number == 2


def test_heartbeats_appear_and_few_objects_stay(folder: LocalStore) -> None:
    for _ in range(3):
        Lease.acquire(folder, "earlier").release()
    with Lease.acquire(folder, "run 1", ttl_seconds=0.1):
        until = time.monotonic() + 60
        while "lease/00000004/00000008.json" not in (names := [info.name for info in folder.list()]):
            assert time.monotonic() < until
            time.sleep(0.01)
    assert "lease/00000004/00000001.json" in names
    assert len(names) <= 5
    assert all(name.startswith("lease/00000004/") for name in names)
    assert [info.name for info in folder.list("probes/")] == []


def test_a_claim_under_a_number_that_was_tidied_away_counts_for_nothing(folder: LocalStore) -> None:
    with Lease.acquire(folder, "run 1"):
        pass
    with Lease.acquire(folder, "run 2") as lease:
        # a process that read the names before run 2 came now claims a number that is free again
        claim_of_another_machine(folder, 1, ttl_seconds=60.0)
        lease.check()
        with pytest.raises(ConflictError, match="held by run 2"):
            Lease.acquire(folder, "run 3")


def test_it_is_released_when_the_work_fails(folder: LocalStore) -> None:
    with pytest.raises(ZeroDivisionError), Lease.acquire(folder, "run 1"):
        raise ZeroDivisionError
    Lease.acquire(folder, "run 2").release()


@pytest.mark.parametrize("mode", ["before", "after"])
def test_acquiring_that_failed_half_way_leaves_no_holder(folder: LocalStore, mode: FailureMode) -> None:
    Lease.acquire(folder, "run 1").release()
    calls = FaultyStore(folder, fail_at=1_000)
    Lease.acquire(calls, "run 2").release()
    for fail_at in range(1, calls.calls):  # the last one is the release
        with pytest.raises(StoreError, match="on purpose"):
            Lease.acquire(FaultyStore(folder, fail_at, mode), "run 3")
        with Lease.acquire(folder, "run 3") as lease:  # in the same process, which is alive
            lease.check()


def test_missed_heartbeats_do_not_end_the_holder(folder: LocalStore) -> None:
    hidden = Path(folder.url + "-hidden")
    with Lease.acquire(folder, "run 1", ttl_seconds=0.1) as lease:
        Path(folder.url).rename(hidden)
        Path(folder.url).write_bytes(b"")  # no folder: every write fails
        time.sleep(0.3)
        Path(folder.url).unlink()
        hidden.rename(folder.url)
        lease.check()
        seen = {info.name for info in folder.list()}
        until = time.monotonic() + 60
        while seen == {info.name for info in folder.list()}:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_claims_that_make_no_sense_are_refused(folder: LocalStore) -> None:
    folder.put("lease/00000001/00000001.json", b"not JSON")
    with pytest.raises(StoreError, match="not a claim of this version"):
        Lease.acquire(folder, "run 1")


@pytest.mark.parametrize("change", [{"pid": "7"}, {"pid": 0}, {"ttl_seconds": 0.0}, {"ttl_seconds": float("inf")}])
def test_claims_with_impossible_values_are_refused(folder: LocalStore, change: dict[str, object]) -> None:
    claim_of_another_machine(folder, 1, ttl_seconds=0.1)
    path = Path(folder.url, "lease/00000001/00000001.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StoreError, match="not a claim of this version"):
        Lease.acquire(folder, "run 1")


def test_the_default_outlives_every_request_to_s3() -> None:
    patience = Patience()
    # the last attempt starts at the latest when the time for repeating is over
    longest_call_seconds = max(patience.total_seconds, patience.unreachable_seconds) + patience.attempt_seconds
    assert longest_call_seconds < LEASE_SECONDS
    assert longest_call_seconds < Limits().lease_seconds  # which a run takes
    assert inspect.signature(Lease.acquire).parameters["ttl_seconds"].default == LEASE_SECONDS


@pytest.mark.parametrize(("ttl_seconds", "look_seconds"), [(0.3, 0.1), (60.0, 5.0), (LEASE_SECONDS, 5.0)])
def test_whether_a_heartbeat_is_due_is_looked_at_often(
    folder: LocalStore, monkeypatch: pytest.MonkeyPatch, ttl_seconds: float, look_seconds: float
) -> None:
    waits: list[float | None] = []
    wait = threading.Event.wait

    def note(event: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread().name == "lease":
            waits.append(timeout)
        return wait(event, timeout)

    monkeypatch.setattr(threading.Event, "wait", note)
    Lease.acquire(folder, "run 1", ttl_seconds).release()
    assert waits[0] == pytest.approx(look_seconds)


class Broken(LocalStore):
    """A store that fails in ways of its own once it is `broken`."""

    broken: Exception | None = None
    undeletable = False

    def put_if_absent(self, name: str, data: bytes) -> bool:
        if self.broken:
            raise self.broken
        return super().put_if_absent(name, data)

    def delete(self, name: str) -> None:
        if self.undeletable:
            raise StoreError(f"{name} may not be deleted")
        super().delete(name)


def test_an_unexpected_error_of_the_heart_is_not_silent(tmp_path: Path) -> None:
    store = Broken(tmp_path / "store")
    lease = Lease.acquire(store, "run 1", ttl_seconds=0.1)
    lease.check()
    store.broken = TypeError("of a bug")
    lease._heart.join(60)
    with pytest.raises(StoreError, match=r"has no heartbeats any more, .* \(TypeError: of a bug\)") as caught:
        lease.check()
    assert caught.value.__cause__ is store.broken
    assert "\n" not in str(caught.value)
    store.broken = None
    lease.release()


def test_heartbeats_go_on_where_old_ones_cannot_be_removed(tmp_path: Path) -> None:
    store = Broken(tmp_path / "store")
    with Lease.acquire(store, "run 1", ttl_seconds=0.1) as lease:
        store.undeletable = True
        until = time.monotonic() + 60
        while not store.exists("lease/00000001/00000012.json"):
            assert time.monotonic() < until
            time.sleep(0.01)
        lease.check()


def test_the_first_error_is_the_one_that_is_seen(tmp_path: Path) -> None:
    store = Broken(tmp_path / "store")
    lease = Lease.acquire(store, "run 1")
    store.broken = StoreError("the store fails as well")
    with pytest.raises(ZeroDivisionError), lease:
        raise ZeroDivisionError


def test_heartbeats_and_the_release_say_what_the_holder_does(any_store: Store) -> None:
    with Lease.acquire(any_store, "run 1", ttl_seconds=0.3) as lease:
        assert lease.predecessor is None
        lease.account = lambda: b"at work"
        last = time.monotonic() + 60
        while b"at work" not in {any_store.get(info.name) for info in any_store.list("lease/00000001/")}:
            assert time.monotonic() < last
            time.sleep(0.05)
        lease.account = lambda: b"done"
    with Lease.acquire(any_store, "run 2") as lease:
        assert lease.predecessor == b"done"


def test_news_is_told_soon_and_nothing_else_more_often(folder: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr.store.lease._SOON_SECONDS", 0.05)
    with Lease.acquire(folder, "run 1") as lease:  # whose heartbeats are 20 seconds apart
        time.sleep(0.5)
        assert len(list(folder.list("lease/"))) == 1  # the claim
        lease.beat_soon()
        last = time.monotonic() + 60
        while len(list(folder.list("lease/"))) == 1:
            assert time.monotonic() < last
            time.sleep(0.05)


def test_the_last_words_of_a_killed_holder_are_handed_on(folder: LocalStore) -> None:
    claim_of_another_machine(folder, 1, ttl_seconds=0.2)
    folder.put_if_absent("lease/00000001/00000007.json", b"in the seventh hour")
    with Lease.acquire(folder, "run 2") as lease:
        assert lease.predecessor == b"in the seventh hour"
    assert {info.name for info in folder.list("lease/00000001/")} == set()


def test_one_that_deletes_and_is_killed_is_watched_until_no_request_is_on_its_way(folder: LocalStore) -> None:
    first = Process(folder, "gc", 1.0)
    assert first.answer() == "held 1"
    first.kill()
    killed_at = time.monotonic()
    with Lease.acquire(folder, "run 1") as lease:
        assert lease.fencing_number == 2
        assert time.monotonic() - killed_at >= 1.0


@pytest.mark.parametrize("mode", ["before", "after"])
def test_after_a_deletion_of_unknown_outcome_the_lease_ends_by_itself(folder: LocalStore, mode: FailureMode) -> None:
    folder.put("object", b"")
    with Lease.acquire(folder, "gc", 0.5, deletes=True) as lease, pytest.raises(StoreError), lease.deletion():
        FaultyStore(folder, 1, mode).delete("object")
    failed_at = time.monotonic()
    assert not folder.exists("lease/00000001/released.json")
    with Lease.acquire(folder, "run 1") as lease:
        assert lease.fencing_number == 2
        assert time.monotonic() - failed_at >= 0.5
    with Lease.acquire(folder, "gc", deletes=True) as lease, lease.deletion():
        folder.delete("object")
    assert folder.exists("lease/00000003/released.json")
