"""Concurrent runs and publishers: one works or wins, the others end with a sentence, and the history is serial."""

import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import pytest

from dpr.engine.executor import LocalExecutor
from dpr.errors import ConflictError, PublishRaceError
from dpr.formats.snapshots import live_snapshot, numbers, publish_body, read_snapshot
from dpr.operations.rollback import rollback
from dpr.operations.verify import verify
from dpr.run import Plan
from dpr.run_recipe import Outcome, run_plan
from ray_jobs import cli
from ray_jobs.guard import guarded
from tests.collection import Collection, FirstNights
from tests.stopping import run_stopped_before
from tests.tiny import Quiet

LEASE_SECONDS = 0.5
PLACES = {
    "before the record of a scan": r"^scans/.*\.json$",
    "before a segment": r"^segments/.*\.parquet$",
    "between a segment and its record": r"^segments/.*\.json$",
    "between a part and its record": r"^parts/.*\.json$",
    "before the loose rows": r"^indexes/loose-",
    "before an index shard": r"^indexes/.*\.faiss$",
    "between an index shard and its record": r"^indexes/.*\.json$",
    "before the gate": r"^truth/.*\.parquet$",
    "before what the gate measured": r"^truth/.*/measured-.*\.json$",
    "before publishing": r"^snapshots/",
}
"""Where a driver stops: the objects that it is about to create."""
OTHER_UNITS = ["between a segment and its record", "before publishing"]
"""Where it also stops while the other run has another corpus, and so units of its own."""


def run_after_lease(collection: Collection) -> Outcome:
    """Run the recipe once the present lease has expired."""
    collection.write_corpus()
    until = time.monotonic() + 60
    while True:
        try:
            return run_plan(Plan.of(collection.recipe), LocalExecutor(), Quiet())
        except ConflictError:
            assert time.monotonic() < until
            time.sleep(0.1)


def identities(collection: Collection) -> dict[str, tuple[int, int, bytes]]:
    """Name → inode, time and bytes of every file of the store, except temporary ones."""
    found = {}
    for name in collection.files():
        if not name.startswith(("lease/", "probes/", "readers/")):
            path = collection.file(name)
            found[name] = path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "same_corpus"), [*((place, True) for place in PLACES), *((place, False) for place in OTHER_UNITS)]
)
def test_a_driver_that_wakes_after_another_run_has_published_changes_nothing(
    tmp_path: Path, first_nights: FirstNights, place: str, same_corpus: bool
) -> None:
    """The other run computes the same units with other bytes: in fp32, while the one that stops uses bf16."""
    collection = first_nights.copy(tmp_path)
    collection.change(encoder={"precision": "bf16"})
    if "index shard" in place:  # so few new rows stay loose, unless all shards are made again
        collection.change(index={"shards": 2})
    collection.corpus |= {"p001": "w1 w2", "p002": "w3 w4 w5", "new": "w6"}
    recipe = collection.write_recipe()
    with run_stopped_before(recipe, PLACES[place], lease_seconds=LEASE_SECONDS) as stopped:
        assert numbers(collection.store) == [1]
        collection.change(encoder={"precision": "fp32"})
        if not same_corpus:
            collection.corpus |= {"p003": "w7 w8", "new": "w9"}
        published = run_after_lease(collection).snapshot
        assert (published.number, published.body.passages) == (2, 31)
        before = identities(collection)
        code, errors = stopped.wake()
    assert code == ConflictError.exit_code == 8
    assert errors.startswith(f"error: the lease of store {collection.store.url} was lost (fencing number ")
    assert errors.endswith("nothing was published, start the run again\n")
    assert errors.count("\n") == 1

    after = identities(collection)
    assert {name: after.get(name) for name in before} == before
    assert not {name for name in after.keys() - before.keys() if name.startswith("snapshots/")}
    assert verify(collection.store, [1, 2], deep=True)[1] == []
    assert {i: text for i, (text, _) in collection.live_rows(published.body).items()} == collection.corpus
    assert not collection.night().published


@pytest.mark.slow
def test_of_two_nightly_runs_one_works_and_the_other_names_it(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = Collection(tmp_path, encoder)
    recipe = collection.write_recipe()

    def nightly() -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["dpr", "run", str(recipe), "--local"])
        with pytest.raises(SystemExit) as ended:
            sys.exit(guarded(cli.run))
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    with run_stopped_before(recipe, r"^indexes/", lease_seconds=60.0) as first:
        code, _, err = nightly()
        assert code == ConflictError.exit_code == 8
        store = collection.store.url
        assert err.splitlines()[-1].startswith(f"error: store {store} is held by run of {store} (host ")
        assert f"pid {first.pid}, since " in err
        assert err.endswith("wait until it ends or stop it, then start again\n")
        assert first.wake() == (0, "")
    assert live_snapshot(collection.store).body.passages == 30
    code, out, _ = nightly()
    assert not code
    assert "snapshot 1 is up to date" in out


class Interrupting(Quiet):
    """Does one of `acts` each time a stage begins."""

    def __init__(self, stage: str, acts: Iterable[Callable[[], object]]) -> None:
        super().__init__()
        self._stage_to_interrupt, self._acts = stage, iter(acts)

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        super().start(stage, total_rows, done_rows)
        if stage == self._stage_to_interrupt and (act := next(self._acts, None)):
            act()


@pytest.fixture
def third_night(tmp_path: Path, first_nights: FirstNights) -> Collection:
    """Two published nights, and the corpus of a third."""
    collection = first_nights.copy(tmp_path / "nights")
    collection.corpus |= {"p001": "w9 w9", "p002": "w8"}
    collection.night()
    collection.corpus |= {"p002": "w2 w2", "p003": "w7", "new": "w6 w6"}
    return collection


def test_a_run_that_was_overtaken_is_planned_again_on_the_new_parent(tmp_path: Path, third_night: Collection) -> None:
    serial, store = third_night.copy(tmp_path / "serial"), third_night.store
    rollback(serial.store, 1)
    expected = serial.night().snapshot

    outcome = third_night.night(progress=Interrupting("gate", [lambda: rollback(store, 1)]))
    assert outcome.published
    assert (outcome.snapshot.number, outcome.snapshot.parent) == (4, 3)
    assert outcome.snapshot.body.to_bytes() == expected.body.to_bytes()
    assert [read_snapshot(store, number).note for number in numbers(store)] == ["", "", "rollback to 1", ""]


def test_a_run_that_is_always_overtaken_gives_up_with_a_sentence(third_night: Collection) -> None:
    store = third_night.store
    progress = Interrupting("scan", repeat(lambda: rollback(store, live_snapshot(store).number - 1)))
    with pytest.raises(PublishRaceError, match=r"another publisher was first .* start the run again to build on it"):
        third_night.night(progress=progress)
    assert all(read_snapshot(store, number).note for number in numbers(store)[2:])
    assert third_night.night().published


def test_a_run_without_changes_notices_that_its_snapshot_is_live_no_more(third_night: Collection) -> None:
    store = third_night.store
    third = third_night.night().snapshot
    third_night.path.touch()  # the file looks changed, but its rows are not
    outcome = third_night.night(progress=Interrupting("gate", [lambda: rollback(store, 1)]))
    assert (outcome.published, outcome.snapshot.number) == (True, 5)
    assert outcome.snapshot.body.passages == third.body.passages


def test_of_publishers_at_once_one_wins_each_number(tmp_path: Path, first_nights: FirstNights) -> None:
    collection = first_nights.copy(tmp_path)
    body, store = collection.body(1), collection.store
    publishers, rounds = 4, 25
    gate = threading.Barrier(publishers)

    def try_it(me: int) -> list[bool]:
        won = []
        for number in range(1, rounds + 1):
            gate.wait(60)
            try:
                snapshot = publish_body(store, body, number, run_id=f"{me}", inputs=None)
                won.append(True)
                assert (snapshot.number, snapshot.run_id) == (number + 1, f"{me}")
            except PublishRaceError:
                won.append(False)
            gate.wait(60)
        return won

    with ThreadPoolExecutor(publishers) as pool:
        outcomes = list(pool.map(try_it, range(publishers)))
    for number, won in enumerate(zip(*outcomes, strict=True), start=2):
        assert sum(won) == 1
        assert read_snapshot(store, number).run_id == f"{won.index(True)}"
    assert numbers(store) == list(range(1, rounds + 2))
