"""Following a run by reading its store: what a watcher sees when the run works, ends, fails, dies or falls silent."""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpr.engine.executor import LocalExecutor
from dpr.engine.run_state import StageReport
from dpr.engine.stage import Work
from dpr.errors import UnitError
from dpr.operations.gc import collect
from dpr.operations.watch import Sight, Watcher, describe_stage, follow, left_seconds
from dpr.run import Plan
from dpr.run_recipe import run_plan
from dpr.store import LocalStore, Store, open_store
from dpr.store.base import ObjectInfo
from dpr.store.lease import Lease
from dpr.store.lease_objects import PREFIX
from tests.collection import Collection
from tests.services.fault_proxy import FaultProxy
from tests.store.test_lease import Process, claim_of_another_machine
from tests.tiny import Quiet, random_texts

PATIENCE_SECONDS = 60.0


class Waits(LocalExecutor):
    """Waits in the embed stage, once a unit is done, until it is released; then continues or raises an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.arrived, self.go_on = threading.Event(), threading.Event()
        self._error = error

    def run(self, stage: str, work: Work[Any, Any], units: Sequence[Any]) -> Iterator[Any]:
        for result in super().run(stage, work, units):
            yield result
            if stage == "embed" and not self.arrived.is_set():
                self.arrived.set()
                assert self.go_on.wait(PATIENCE_SECONDS)
                if self._error is not None:
                    raise self._error


def start(collection: Collection, executor: Waits) -> threading.Thread:
    """Run a night in a thread."""
    collection.write_corpus()
    plan = Plan.of(collection.recipe)

    def run() -> None:
        with contextlib.suppress(UnitError):
            run_plan(plan, executor, Quiet())

    thread = threading.Thread(target=run)
    thread.start()
    assert executor.arrived.wait(PATIENCE_SECONDS)
    return thread


def wait_for(watcher: Watcher, wanted: Callable[[Sight], bool]) -> Sight:
    for _ in range(int(PATIENCE_SECONDS / 0.05)):
        sight = watcher.look()
        if sight is not None and wanted(sight):
            return sight
        threading.Event().wait(0.05)
    raise AssertionError(f"this was never seen; the last is {sight}")


class HandsOver(LocalStore):
    """Lets another process take the lease while its objects are listed, and so finds those of neither."""

    taken: Lease | None = None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        found = list(super().list(prefix))
        if self.taken is None and prefix == PREFIX:
            self.taken = Lease.acquire(LocalStore(self.url), "gc")
            gone = {info.name for info in found} - {info.name for info in super().list(prefix)}
            found = [info for info in found if info.name not in gone]
        return iter(found)


def test_a_lease_that_is_taken_while_it_is_looked_at_is_not_nobody_s(tmp_path: Path) -> None:
    with Lease.acquire(LocalStore(tmp_path), "run 1"):
        pass
    store = HandsOver(tmp_path)
    with contextlib.ExitStack() as stack:
        sight = next(follow(store, 0.0), None)
        assert store.taken is not None
        stack.enter_context(store.taken)
        assert sight is not None
        assert "gc (host" in sight.describe()


def test_garbage_collection_after_the_run_that_is_watched_is_told(collection: Collection) -> None:
    assert collection.night().published
    sights = follow(collection.store, 0.0)
    assert next(sights).describe() == "published snapshot 1 with 50 passages"
    with Lease.acquire(collection.store, "gc") as lease:
        collect(collection.store, 1, lease)
        assert "gc (host" in next(follow(collection.store, 0.0)).describe()
    (over,) = follow(collection.store, 0.0)
    assert over.is_over
    assert re.fullmatch(r"gc \(host .*\) has ended, and did not say how", over.describe())


def in_embed(sight: Sight) -> bool:
    stages = sight.run.stages if sight.run is not None else []
    return bool(stages) and stages[-1].stage == "embed" and stages[-1].rows > 0


@pytest.fixture
def collection(tmp_path: Path, static_encoder: Path, monkeypatch: pytest.MonkeyPatch) -> Collection:
    """A collection whose runs send a heartbeat every tenth of a second, with the usual limit of silence."""
    monkeypatch.setattr("dpr.store.lease._BEATS_PER_TTL", 3_600)
    return Collection(tmp_path, static_encoder, random_texts(50), encoder={"pooling": None, "normalize": None})


def test_a_run_is_followed_to_its_end(collection: Collection) -> None:
    executor = Waits()
    thread = start(collection, executor)
    sight = wait_for(Watcher(collection.store), in_embed)
    assert sight.run
    assert (sight.is_over, sight.ending, sight.run.is_reported) == (False, None, False)
    text = sight.describe()
    assert text.startswith("embed: 1 of 3 units, ")
    assert " of 50 rows, " in text
    assert f"; run of {collection.recipe.store} (host " in text.replace("since the start; ", "; ").split("; ", 1)[1]
    executor.go_on.set()
    seen = list(follow(collection.store, 0.05))
    thread.join()
    assert [each.is_over for each in seen] == [False] * (len(seen) - 1) + [True]
    ending = seen[-1].ending
    assert ending
    assert (ending.kind, ending.exit_code, ending.snapshot) == ("published", 0, 1)
    assert seen[-1].run
    assert seen[-1].run.is_reported
    assert seen[-1].describe() == "published snapshot 1 with 50 passages"


def test_a_run_that_fails_says_how(collection: Collection) -> None:
    executor = Waits(UnitError("its workers died"))
    thread = start(collection, executor)
    executor.go_on.set()
    (*_, last) = follow(collection.store, 0.05)
    thread.join()
    assert last.ending
    assert (last.ending.exit_code, last.describe()) == (11, "its workers died")


def test_a_run_that_was_killed_here_is_known_to_be_dead(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    process = Process(store, "run 1")
    assert process.answer() == "held 1"
    watcher = Watcher(store)
    sight = watcher.look()
    assert sight
    assert (sight.is_over, sight.run) == (False, None)
    assert sight.describe().startswith(f"no stage has begun; run 1 (host {sight.holder.host if sight.holder else ''}")
    process.kill()
    sight = watcher.look()
    assert sight
    assert (sight.is_over, sight.is_dead) == (True, True)
    assert "it has died, or cannot reach the store" in sight.describe()


def test_a_machine_that_falls_silent_is_given_up_after_the_time_of_its_lease(tmp_path: Path) -> None:
    store, now = LocalStore(tmp_path / "store"), [100.0]
    claim_of_another_machine(store, 1, ttl_seconds=30.0)
    watcher = Watcher(store, clock=lambda: now[0])
    seen = []
    for beat, seconds in ((0, 20.0), (2, 20.0), (0, 29.0), (0, 3.0)):
        if beat:
            store.put_if_absent(f"lease/00000001/{beat:08d}.json", b"at work")
        sight = watcher.look()
        assert sight
        seen.append((sight.is_over, sight.silent_seconds))
        now[0] += seconds
    assert seen == [(False, 0.0), (False, 0.0), (False, 20.0), (True, 49.0)]


def test_an_untouched_store_shows_nothing(tmp_path: Path) -> None:
    assert list(follow(LocalStore(tmp_path / "store"), 0.1)) == []


class Counted(LocalStore):
    """Counts what is read; nothing may be written."""

    calls: list[str]

    def get(self, name: str) -> bytes:
        self.calls.append(f"get {name}")
        return super().get(name)

    def list(self, prefix: str = "") -> Any:
        self.calls.append(f"list {prefix}")
        return super().list(prefix)


def test_a_look_costs_one_listing_and_a_heartbeat_one_read_more(tmp_path: Path) -> None:
    store = Counted(tmp_path / "store")
    claim_of_another_machine(store, 1, ttl_seconds=30.0)
    watcher, counts = Watcher(store), []
    for beat in (None, None, 2, None, 3, "released"):
        if beat is not None:
            name = f"{beat:08d}" if isinstance(beat, int) else beat
            store.put_if_absent(f"lease/00000001/{name}.json", b"at work")
        store.calls = []
        watcher.look()
        counts.append(len(store.calls))
    assert counts == [2, 1, 2, 1, 2, 2]


@pytest.mark.s3
def test_a_bucket_is_followed_with_few_requests(fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    fault_proxy.endpoint.client().create_bucket(Bucket="followed")
    fault_proxy.endpoint.use(monkeypatch)
    store: Store = open_store("s3://followed/x")
    with Lease.acquire(store, "run 1"):
        watcher = Watcher(store)
        fault_proxy.requests.clear()
        for _ in range(5):
            watcher.look()
        assert [method for method, _ in fault_proxy.requests] == ["GET"] * 6  # five listings, and the claim
    fault_proxy.requests.clear()
    sight = watcher.look()
    assert sight
    assert sight.is_over
    assert len(fault_proxy.requests) == 2


def test_speed_and_what_is_left_are_those_of_this_attempt() -> None:
    fields = {"stage": "embed", "units": 40, "done_before": 10, "read_bytes": 0, "written_bytes": 0}
    stage = StageReport(waiting=20, rows=2_000, planned_rows=7_000, rows_before=3_000, seconds=50.0, **fields)
    assert left_seconds(stage) == 50.0
    assert describe_stage(stage) == (
        "embed: 20 of 40 units (10 before), 5,000 of 7,000 rows, 40 rows/s, about 50.0 s left"
    )
    unknown = stage.model_copy(update={"planned_rows": 0, "rows_before": 0, "stage": "scan"})
    assert left_seconds(unknown) == 100.0  # by units, since their rows are not known before they are read
    assert left_seconds(unknown.model_copy(update={"waiting": 30, "rows": 0})) is None
