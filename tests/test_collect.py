"""Garbage collection: what it may not touch, what it must not leave, and what happens when others come meanwhile."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from dpr import collect as collecting
from dpr.formats import layout
from dpr.operations.gc import collect, find_garbage
from dpr.errors import ConflictError, MissingObjectError
from dpr.operations.verify import verify
from dpr.engine.stage import LocalExecutor
from dpr.run import Plan
from dpr.run import Run
from dpr.formats.markers import Marker
from dpr.formats.snapshots import numbers, open_snapshot, read_snapshot, rollback
from dpr.store import LocalStore, Store
from dpr.store.lease import Lease
from tests.nights import Nights, answers, let_pass
from tests.tiny import Quiet, make_encoder, write_jsonl

READ_AND_END = """
import sys
from dpr.formats.snapshots import open_snapshot
from dpr.store import LocalStore
open_snapshot(LocalStore(sys.argv[1]), 1)
"""
HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def nights(tmp_path: Path, encoder: Path) -> Nights:
    return Nights(tmp_path / "nights", encoder)


def gc(store: Store, keep: int) -> list[str]:
    with Lease.acquire(store, "gc") as lease:
        garbage = collect(store, keep, lease)
    return [info.name for info in (*garbage.objects, *garbage.leftovers)]


def files(store: Store) -> set[str]:
    folder = Path(store.url)
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def unnamed(store: Store) -> set[str]:
    """Files that no snapshot's document leads to, found by walking the documents' JSON."""
    named: set[str] = set()
    runs: list[str] = []
    for path in (Path(store.url) / "snapshots").iterdir():
        document = json.loads(path.read_text())
        named |= {f"snapshots/{path.name}", *_values(document, "name")}
        runs.append(f"runs/{document['run_id']}/")
        (codebook,) = _values(document, "codebook_id")
        named |= {f"parts/{codebook}/{segment}.safetensors" for segment in _values(document, "segment_id")}
    named |= {name.rpartition(".")[0] + ".json" for name in named}
    return {name for name in files(store) - named if not name.startswith(("lease/", "truth/", *runs))}


def _values(document: Any, key: str) -> Iterator[str]:
    if isinstance(document, dict):
        yield from (value for found, value in document.items() if found == key and isinstance(value, str))
        for value in document.values():
            yield from _values(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from _values(value, key)


class AnyHistory(RuleBasedStateMachine):
    """Nights, rollbacks, runs that die, readers, days and garbage collections in any order."""

    def __init__(self, folder: Path, encoder: Path) -> None:
        super().__init__()
        self.nights = Nights(folder, encoder)
        self.store = self.nights.store
        self.answers: dict[int, object] = {}
        self.readers: list[Marker] = []
        self.reads: list[int] = []
        self.night([("p001", "w1")])

    @rule(edits=st.lists(st.tuples(st.sampled_from(["p001", "p002", "new"]), st.sampled_from(["w1", "w2 w3", None]))))
    def night(self, edits: list[tuple[str, str | None]]) -> None:
        for passage_id, text in edits:
            self.nights.corpus.pop(passage_id, None)
            if text is not None:
                self.nights.corpus[passage_id] = text
        self._remember(self.nights.night().snapshot.number)

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        if old := numbers(self.store)[:-1]:
            number = data.draw(st.sampled_from(old))
            self._remember(rollback(self.store, number).number)

    @rule(text=st.sampled_from(["w4", "w5"]))
    def a_run_dies(self, text: str) -> None:
        write_jsonl(self.nights.path, self.nights.corpus | {"p003": text})
        run = Run(Plan.of(self.nights.recipe), LocalExecutor(), Quiet())
        run.embed(run.scan())
        assert run.live
        assert run.live.number == numbers(self.store)[-1]

    @rule(data=st.data())
    def a_reader_comes(self, data: st.DataObject) -> None:
        snapshot, marker = open_snapshot(self.store, data.draw(st.sampled_from(numbers(self.store))))
        self.readers.append(marker)
        self.reads.append(snapshot.number)

    @precondition(lambda self: self.readers)
    @rule()
    def a_reader_goes(self) -> None:
        self.readers.pop(0).close()
        self.reads.pop(0)

    @rule()
    def a_day_passes(self) -> None:
        let_pass(self.store, DAY)
        for path in (Path(self.store.url) / "readers").glob("*"):
            os.utime(path)  # the readers' hearts have beaten meanwhile

    @rule(keep=st.integers(1, 3))
    def garbage_is_collected(self, keep: int) -> None:
        expected = sorted({*numbers(self.store)[-keep:], *self.reads})
        gc(self.store, keep)
        assert numbers(self.store) == expected
        assert verify(self.store, expected, deep=True)[1] == []
        for number in expected:
            assert answers(self.store, number) == self.answers[number]

    def teardown(self) -> None:
        while self.readers:
            self.a_reader_goes()
        for _ in range(2):
            let_pass(self.store, DAY)
        self.garbage_is_collected(2)
        assert unnamed(self.store) == set()
        self.night([("p002", "w9")])  # and the next night finds all it needs
        self.garbage_is_collected(1)

    def _remember(self, number: int) -> None:
        self.answers.setdefault(number, answers(self.store, number))


def test_after_any_history_what_is_kept_is_whole_and_nothing_else_remains(
    tmp_path_factory: pytest.TempPathFactory, encoder: Path
) -> None:
    run_state_machine_as_test(
        lambda: AnyHistory(tmp_path_factory.mktemp("history"), encoder),
        settings=settings(
            max_examples=6, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_objects_of_a_reader_stay_however_old_they_are(nights: Nights) -> None:
    nights.night()
    before = answers(nights.store, 1)
    snapshot, marker = open_snapshot(nights.store, 1)
    for text in ("w1", "w2", "w3"):
        nights.corpus = dict.fromkeys(nights.corpus, text)  # nothing of snapshot 1 is left in later ones
        nights.night()
    with marker:
        let_pass(nights.store, 30 * DAY)
        os.utime(Path(nights.store.url) / marker.name)
        gc(nights.store, 1)
        assert numbers(nights.store) == [1, 4]
        assert answers(nights.store, 1) == before
    gc(nights.store, 1)
    assert numbers(nights.store) == [4]
    gone = {ref.name for ref in snapshot.body.objects()} - {
        ref.name for ref in read_snapshot(nights.store, 4).body.objects()
    }
    assert len(gone) >= 3
    assert not gone & files(nights.store)
    assert unnamed(nights.store) == set()


def test_what_a_run_that_died_has_made_stays_for_a_day_after_its_last_sign_of_life(nights: Nights) -> None:
    nights.night()
    nights.corpus |= {f"new-{n}": f"w{n}" for n in range(60)}
    write_jsonl(nights.path, nights.corpus)
    run = Run(Plan.of(nights.recipe), LocalExecutor(), Quiet())
    changes = run.scan()
    let_pass(nights.store, 2 * DAY)  # a long embedding, of which the last segment is new
    run.embed(changes)
    segments = sorted(Path(nights.store.url).rglob("segments/**/*.parquet"), key=lambda path: path.stat().st_mtime)
    for path in segments[:-1]:
        os.utime(path, (0, path.stat().st_mtime - 1.5 * DAY))
    there = files(nights.store)
    gc(nights.store, 1)
    assert {name for name in there - files(nights.store) if not name.startswith("lease/")} == set()
    let_pass(nights.store, 1.1 * DAY)
    gc(nights.store, 1)
    assert unnamed(nights.store) == set()
    assert {name for name in files(nights.store) if not name.startswith("lease/")} < there
    assert nights.night().snapshot.body.passages == 90


def test_leftovers_of_dead_writers_go_after_a_day(nights: Nights) -> None:
    nights.night()
    folder = Path(nights.store.url)
    for name in ("segments/.tmp-1", "probes/1", "runs/old/new/.tmp-2"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"unfinished")
    foreign = folder / "notes" / "mine.txt"
    foreign.parent.mkdir()
    foreign.write_text("not the store's")
    assert gc(nights.store, 1) == []
    let_pass(nights.store, 1.1 * DAY)
    assert sorted(gc(nights.store, 1)) == ["probes/1", "runs/old/new/.tmp-2", "segments/.tmp-1"]
    assert foreign.exists()
    assert unnamed(nights.store) == {"notes/mine.txt"}
    assert {name.split("/")[1] for name in files(nights.store) if name.startswith("lease/")} == {"00000003"}


def test_markers_of_readers_that_are_silent_or_whose_process_ended_do_not_count(nights: Nights) -> None:
    nights.night()
    nights.corpus["p001"] = "w1"
    nights.night()
    subprocess.run((sys.executable, "-c", READ_AND_END, nights.store.url), check=True)
    (marker,) = (Path(nights.store.url) / "readers").iterdir()
    elsewhere = json.loads(marker.read_text())
    elsewhere["process"]["host"] = "elsewhere"
    marker.with_name("00000001-elsewhere.json").write_text(json.dumps(elsewhere))
    assert marker.relative_to(nights.store.url).as_posix() in gc(nights.store, 1)
    assert numbers(nights.store) == [1, 2]
    assert [reader.who for reader in find_garbage(nights.store, 1).readers] == [
        f"host elsewhere, pid {elsewhere['process']['pid']}, since {elsewhere['since']}"
    ]
    let_pass(nights.store, 1.1 * HOUR)
    gc(nights.store, 1)
    assert numbers(nights.store) == [2]
    assert list((Path(nights.store.url) / "readers").iterdir()) == []


class Meanwhile(LocalStore):
    """A folder in which somebody else does something right before or after the first document is removed."""

    def __init__(self, url: str, when: str, act: Callable[[], object]) -> None:
        super().__init__(url)
        self._when, self._act = when, act

    def delete(self, name: str) -> None:
        first, act = name.startswith(layout.SNAPSHOTS), self._act
        if first:
            self._act = lambda: None
        if first and self._when == "before":
            act()
        super().delete(name)
        if first and self._when == "after":
            act()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("who", ["reader", "rollback"])
def test_whoever_comes_while_garbage_is_collected_is_served_or_told(nights: Nights, who: str, when: str) -> None:
    nights.night()
    expected = answers(nights.store, 1)
    nights.corpus = dict.fromkeys(nights.corpus, "w1")
    nights.night()
    let_pass(nights.store, 2 * DAY)
    store, came = LocalStore(nights.store.url), []

    def act() -> None:
        try:
            came.append(open_snapshot(store, 1) if who == "reader" else rollback(store, 1))
        except MissingObjectError as error:
            came.append(error)

    gc(Meanwhile(nights.store.url, when, act), 1)
    assert len(came) == 1
    if when == "after":
        assert "has no snapshot 1" in str(came[0])
        assert numbers(store) == [2]
    elif who == "reader":
        assert numbers(store) == [1, 2]
        assert answers(store, 1) == expected
        came[0][1].close()
        gc(store, 1)
    else:
        assert numbers(store) == [2, 3]
        assert answers(store, 3) == expected
    assert verify(store, numbers(store), deep=True)[1] == []
    assert unnamed(store) == set()


def test_a_collector_that_died_between_document_and_objects_is_waited_for(nights: Nights) -> None:
    nights.night()
    nights.corpus["p001"] = "w1"
    nights.night()
    _, marker = open_snapshot(nights.store, 1)
    with marker:
        nights.store.delete(layout.snapshot(1))
        with pytest.raises(ConflictError, match=r"snapshot 1 .* is read \(host .*\), and its document was coll"):
            gc(nights.store, 1)
    gc(nights.store, 1)


def test_a_collector_that_lost_its_lease_deletes_nothing(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "_CHECK_SECONDS", 0.0)
    nights.night()
    nights.corpus["p001"] = "w1"
    nights.night()
    let_pass(nights.store, 2 * DAY)
    there = {name for name in files(nights.store) if not name.startswith("lease/")}
    with Lease.acquire(nights.store, "gc") as lease:
        mine = Path(nights.store.url) / f"lease/{lease.fencing_number:08d}/00000001.json"
        nights.store.put(f"lease/{lease.fencing_number + 1:08d}/00000001.json", mine.read_bytes())
        with pytest.raises(ConflictError, match="was lost"):
            collect(nights.store, 1, lease)
    assert {name for name in files(nights.store) if not name.startswith("lease/")} == there


def test_exact_neighbours_stay_with_the_segments_and_questions_they_are_of(tmp_path: Path, encoder: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    nights = Nights(tmp_path / "nights", encoder, gate={"questions": str(questions), "at": [1]})
    for asked in ("w1", "w2"):
        questions.write_text(json.dumps({"question": asked, "answers": ["p001"]}) + "\n")
        nights.night()
    truth = {name for name in files(nights.store) if name.startswith("truth/")}
    (old, new) = (read_snapshot(nights.store, number).body.gate["gate_id"] for number in (1, 2))
    of_old = {name for name in truth if f"/{old}" in name}
    assert len(of_old) >= 2  # one a segment at least
    assert len(of_old) == len({name for name in truth if f"/{new}" in name}) == len(truth) / 2
    let_pass(nights.store, 2 * DAY)
    assert {name for name in gc(nights.store, 1) if name.startswith("truth/")} == of_old
    assert {name for name in files(nights.store) if name.startswith("truth/")} == truth - of_old
    nights.corpus = dict.fromkeys(nights.corpus, "w1")  # other segments
    nights.night()
    let_pass(nights.store, 2 * DAY)
    gone = gc(nights.store, 1)
    prefix = f"truth/{read_snapshot(nights.store, 3).body.encoder_id}/{new}-"
    for entry in read_snapshot(nights.store, 3).body.segments:
        assert not any(entry.segment_id in name for name in gone)
    assert any(name.startswith(prefix) for name in gone)


def test_a_unit_is_never_taken_for_done_after_a_collector_died(nights: Nights) -> None:
    """Whatever prefix of the deletions took place: the runs whose objects went partly start again and end well."""
    nights.night()
    nights.corpus["new"] = "w7"
    write_jsonl(nights.path, nights.corpus)
    run = Run(Plan.of(nights.recipe), LocalExecutor(), Quiet())
    changes = run.scan()
    segments = run.embed(changes)
    run.build(segments, *run.train(segments))
    let_pass(nights.store, 2 * DAY)
    with Lease.acquire(nights.store, "gc") as lease:
        todo = len(find_garbage(nights.store, 1).objects)
        assert todo > 6
        for count in range(1, todo):
            with pytest.raises(ZeroDivisionError):
                collect(_Dying(nights.store.url), 1, lease)
            for record in Path(nights.store.url).rglob("*.json"):
                for name in _values(json.loads(record.read_text()), "name"):
                    assert (Path(nights.store.url) / name).exists(), f"{record} names {name} after {count} deletions"
    assert nights.night().snapshot.body.passages == 31


class _Dying(LocalStore):
    """A folder whose user dies at the second deletion."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._left = 1

    def delete(self, name: str) -> None:
        if not name.startswith(layout.PROBES):
            if not self._left:
                raise ZeroDivisionError
            self._left -= 1
        super().delete(name)
