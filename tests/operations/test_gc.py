"""Garbage collection: what it must keep, what it must delete, and what happens when others use the store meanwhile."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from dpr.engine.executor import LocalExecutor
from dpr.errors import ConflictError, MissingObjectError
from dpr.formats import layout
from dpr.formats.markers import Marker
from dpr.formats.snapshots import numbers, open_snapshot
from dpr.nightly import make_body, make_index, make_segments
from dpr.operations.gc import collect, find_garbage
from dpr.operations.rollback import rollback
from dpr.operations.verify import verify
from dpr.run import Plan, Run
from dpr.run_recipe import run_plan
from dpr.store import LocalStore, Store
from dpr.store.lease import Lease
from tests.collection import Collection, FirstNights, answers, let_pass
from tests.operations.store_walk import dangling, unnamed
from tests.tiny import Quiet

READ_AND_END = """
import os, sys
from dpr.formats.snapshots import open_snapshot
from dpr.store import LocalStore
open_snapshot(LocalStore(sys.argv[1]), 1)
os._exit(0)
"""
HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture(scope="module")
def first_nights(tmp_path_factory: pytest.TempPathFactory, static_encoder: Path) -> FirstNights:
    """Encode with static embeddings: a night loads an encoder twice, which takes a third of its time with BERT."""
    return FirstNights(tmp_path_factory.mktemp("first"), static_encoder)


@pytest.fixture
def nights(first_nights: FirstNights, tmp_path: Path) -> Collection:
    """A collection after its first night."""
    return first_nights.copy(tmp_path / "nights")


def gc(store: Store, keep: int) -> set[str]:
    with Lease.acquire(store, "gc") as lease:
        garbage = collect(store, keep, lease)
    return {info.name for info in (*garbage.objects, *garbage.leftovers)}


def but_leases(files: set[str]) -> set[str]:
    return {name for name in files if not name.startswith("lease/")}


def start_run(nights: Collection) -> Run:
    """Plan a run over the corpus as it is now."""
    nights.write_corpus()
    return Run(Plan.of(nights.recipe), LocalExecutor(), Quiet())


class AnyHistory(RuleBasedStateMachine):
    """Nights, rollbacks, runs that die, readers, days and garbage collections in any order."""

    def __init__(self, nights: Collection) -> None:
        super().__init__()
        self.nights = nights
        self.store = nights.store
        self.answers: dict[int, object] = {}
        self.readers: list[Marker] = []
        self.reads: list[int] = []
        self._remember(1)
        self.night([("p001", "w1")])

    @rule(edits=st.lists(st.tuples(st.sampled_from(["p001", "p002", "new"]), st.sampled_from(["w1", "w2 w3", None]))))
    def night(self, edits: list[tuple[str, str | None]]) -> None:
        for passage_id, text in edits:
            self.nights.corpus.pop(passage_id, None)
            if text is not None:
                self.nights.corpus[passage_id] = text
        body = self.nights.night().snapshot.body
        assert {id_: text for id_, (text, _) in self.nights.live_rows(body).items()} == self.nights.corpus
        self._remember(numbers(self.store)[-1])

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        if old := numbers(self.store)[:-1]:
            number = data.draw(st.sampled_from(old))
            self._remember(rollback(self.store, number).number)

    @rule(text=st.sampled_from(["w4", "w5"]), far=st.booleans())
    def a_run_dies(self, text: str, far: bool) -> None:
        before = dict(self.nights.corpus)
        self.nights.corpus["p003"] = text
        run = start_run(self.nights)
        made = make_segments(run)
        if far:
            make_body(run, made, make_index(run, made))
        self.nights.corpus = before
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
            os.utime(path)  # the readers have sent heartbeats meanwhile

    @rule(keep=st.integers(1, 3))
    def garbage_is_collected(self, keep: int) -> None:
        expected = sorted({*numbers(self.store)[-keep:], *self.reads})
        gc(self.store, keep)
        assert numbers(self.store) == expected
        assert verify(self.store, expected, deep=True)[1] == []
        assert dangling(self.nights) == set()
        for number in expected:
            assert answers(self.store, number) == self.answers[number]

    def teardown(self) -> None:
        while self.readers:
            self.a_reader_goes()
        for _ in range(2):
            let_pass(self.store, DAY)
        self.garbage_is_collected(2)
        assert unnamed(self.nights) == set()
        self.night([("p002", "w9")])  # and the next night finds all it needs
        self.garbage_is_collected(1)

    def _remember(self, number: int) -> None:
        self.answers.setdefault(number, answers(self.store, number))


@pytest.mark.slow
def test_after_any_history_what_is_kept_is_whole_and_nothing_else_remains(
    tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights
) -> None:
    run_state_machine_as_test(
        lambda: AnyHistory(first_nights.copy(tmp_path_factory.mktemp("history"))),
        settings=settings(
            max_examples=6, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_objects_of_a_reader_stay_however_old_they_are(nights: Collection) -> None:
    store, before = nights.store, nights.answers(1)
    snapshot, marker = open_snapshot(store, 1)
    for text in ("w1", "w2", "w3"):
        nights.corpus = dict.fromkeys(nights.corpus, text)  # nothing of snapshot 1 is left in later ones
        nights.night()
    with marker:
        let_pass(store, 30 * DAY)
        os.utime(nights.file(marker.name))
        gc(store, 1)
        assert numbers(store) == [1, 4]
        assert nights.answers(1) == before
    gc(store, 1)
    assert numbers(store) == [4]
    gone = {ref.name for ref in snapshot.body.objects()} - {ref.name for ref in nights.body(4).objects()}
    assert len(gone) >= 3
    assert not gone & nights.files()
    assert unnamed(nights) == set()


def test_whatever_is_younger_than_a_day_stays(nights: Collection) -> None:
    nights.corpus = dict.fromkeys(nights.corpus, "w1")
    nights.night()
    there = but_leases(nights.files())
    assert gc(nights.store, 1) == {layout.snapshot(1)}
    assert but_leases(nights.files()) == there - {layout.snapshot(1)}
    let_pass(nights.store, 1.1 * DAY)
    assert gc(nights.store, 1) == there - but_leases(nights.files()) - {layout.snapshot(1)}
    assert unnamed(nights) == set()


def test_old_garbage_goes_even_while_other_garbage_is_young(nights: Collection) -> None:
    """An unnamed index that is younger than a day keeps nothing but itself."""
    first = nights.body(1)
    nights.corpus = dict.fromkeys(nights.corpus, "w1")
    nights.night()
    let_pass(nights.store, 2 * DAY)
    young = {first.index.shards[0].object.name, "indexes/0123456789abcdef-0.faiss", "truth/e/q/vectors-0.parquet"}
    for name in young:
        nights.file(name).parent.mkdir(parents=True, exist_ok=True)
        nights.file(name).touch()
    gc(nights.store, 1)
    assert unnamed(nights) == young
    let_pass(nights.store, 1.1 * DAY)
    gc(nights.store, 1)
    assert unnamed(nights) == set()


@pytest.mark.slow
@pytest.mark.parametrize("last", ["segments", "parts", "truth", "runs"])
def test_what_a_run_that_died_has_made_stays_for_a_day_after_its_last_sign_of_life(
    nights: Collection, last: str
) -> None:
    """Everything that the run would need again stays, whatever it made last."""
    before = nights.files()
    nights.corpus |= {f"new-{n}": f"w{n}" for n in range(60)} | {"p001": "w100 w1"}
    run = start_run(nights)
    made = make_segments(run)
    make_body(run, made, make_index(run, made))
    needed = {
        name
        for name in nights.files() - before
        if name.startswith(("scans/", "segments/", "parts/", "lexical/", "truth/", "deletions/", "runs/"))
        and "/measured-" not in name
    }
    folders = {name.partition("/")[0] for name in needed}
    assert folders == {"scans", "segments", "deletions", "parts", "lexical", "truth", "runs"}
    let_pass(nights.store, 2 * DAY)  # a long run, of which one object is new
    sign = max(name for name in needed if name.startswith(f"{last}/"))
    os.utime(nights.file(sign))
    gc(nights.store, 1)
    assert needed <= nights.files()
    assert dangling(nights) == set()

    let_pass(nights.store, 1.1 * DAY)
    gc(nights.store, 1)
    assert not needed & nights.files()
    assert unnamed(nights) == set()
    assert nights.night().snapshot.body.passages == 90


def test_a_run_that_died_lately_goes_on_where_it_was(nights: Collection) -> None:
    nights.corpus |= {f"new-{n}": f"w{n}" for n in range(60)} | {"p001": "w100 w1"}
    run = start_run(nights)
    made = make_segments(run)
    make_body(run, made, make_index(run, made))
    let_pass(nights.store, 0.9 * DAY)
    gc(nights.store, 1)
    progress = Quiet()
    outcome = nights.night(progress=progress)
    assert outcome.published
    assert set(progress.rows.values()) == {0}
    assert outcome.report
    assert all(stage.units == stage.done_before for stage in outcome.report.stages)


@pytest.mark.slow
@pytest.mark.parametrize("questions", [False, True])
def test_after_a_collection_a_night_without_changes_does_no_unit_again(
    first_nights: FirstNights, tmp_path: Path, questions: bool
) -> None:
    path, gate = tmp_path / "questions.jsonl", {}
    if questions:
        path.write_text(json.dumps({"question": "w1 w2", "answers": ["p001"]}) + "\n")
        gate = {"questions": str(path), "at": [1]}
    nights = first_nights.copy(tmp_path / "nights", index={"factory": "IVF2,SQ8", "nprobe": 2}, gate=gate)
    nights.corpus |= {"p001": "w1", "new": "w2"}
    nights.night()
    nights.corpus["p002"] = "w3"
    last = nights.night().snapshot
    let_pass(nights.store, 10 * DAY)
    assert gc(nights.store, 1)
    assert unnamed(nights) == set()

    outcome = run_plan(Plan.of(nights.recipe), LocalExecutor(), Quiet())  # as after a rollback, for one
    assert (outcome.published, outcome.snapshot) == (False, last)
    assert outcome.report
    done_now = {stage.stage: stage.units - stage.done_before for stage in outcome.report.stages}
    assert {stage: units for stage, units in done_now.items() if units} == {"diff": 1}  # which each run does for itself
    assert done_now.keys() >= {"scan", "build", "merge", "questions" if questions else "truth", "truth", "gate"}


def test_files_of_other_tools_among_snapshots_and_markers_stay(nights: Collection) -> None:
    nights.corpus["p001"] = "w1"
    nights.night()
    foreign = {f"{folder}/{name}" for folder in ("snapshots", "readers") for name in (".DS_Store", "1.json", "x.tmp")}
    for name in foreign:
        nights.store.put(name, b"x")
    nights.store.put("runs/.DS_Store", b"x")
    let_pass(nights.store, 10 * DAY)
    assert {"snapshots/00000001.json", "runs/.DS_Store"} <= gc(nights.store, 1)
    assert foreign <= nights.files()
    assert numbers(nights.store) == [2]


def test_leftovers_of_dead_writers_go_after_a_day(nights: Collection) -> None:
    for name in ("segments/.tmp-1", "probes/1", "runs/old/new/.tmp-2"):
        nights.file(name).parent.mkdir(parents=True, exist_ok=True)
        nights.file(name).write_bytes(b"unfinished")
    foreign = nights.file("notes/own.txt")
    foreign.parent.mkdir()
    foreign.write_text("not the store's")
    assert gc(nights.store, 1) == set()
    let_pass(nights.store, 1.1 * DAY)
    assert gc(nights.store, 1) == {"probes/1", "runs/old/new/.tmp-2", "segments/.tmp-1"}
    assert foreign.exists()
    assert unnamed(nights) == {"notes/own.txt"}
    assert len({name.split("/")[1] for name in nights.files() if name.startswith("lease/")}) == 1


def test_markers_of_readers_that_are_silent_or_whose_process_ended_do_not_count(nights: Collection) -> None:
    store = nights.store
    nights.corpus["p001"] = "w1"
    nights.night()
    subprocess.run((sys.executable, "-c", READ_AND_END, store.url), check=True)
    (marker,) = nights.file("readers").iterdir()
    elsewhere = json.loads(marker.read_text())
    elsewhere["process"]["host"] = "elsewhere"
    marker.with_name("00000001-elsewhere.json").write_text(json.dumps(elsewhere))
    assert f"readers/{marker.name}" in gc(store, 1)
    assert numbers(store) == [1, 2]
    assert [reader.who for reader in find_garbage(store, 1).readers] == [
        f"host elsewhere, pid {elsewhere['process']['pid']}, since {elsewhere['since']}"
    ]
    let_pass(store, 1.1 * HOUR)
    gc(store, 1)
    assert numbers(store) == [2]
    assert list(nights.file("readers").iterdir()) == []


class Meanwhile(LocalStore):
    """A folder in which another process acts right before or after the first document is removed."""

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


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("who", ["reader", "rollback"])
def test_processes_that_come_during_collection_are_served_or_refused(nights: Collection, who: str, when: str) -> None:
    store, expected = nights.store, nights.answers(1)
    nights.corpus = dict.fromkeys(nights.corpus, "w1")
    nights.night()
    let_pass(store, 2 * DAY)
    markers: list[Marker] = []
    refusals: list[str] = []

    def act() -> None:
        try:
            if who == "reader":
                markers.append(open_snapshot(store, 1)[1])
            else:
                rollback(store, 1)
        except MissingObjectError as error:
            refusals.append(str(error))

    gc(Meanwhile(store.url, when, act), 1)
    if when == "after":
        assert "has no snapshot 1" in refusals[0]
        assert numbers(store) == [2]
    elif who == "reader":
        assert numbers(store) == [1, 2]
        assert nights.answers(1) == expected
        markers[0].close()
        gc(store, 1)
    else:
        assert numbers(store) == [2, 3]
        assert nights.answers(3) == expected
    assert len(refusals) == (when == "after")
    assert verify(store, numbers(store), deep=True)[1] == []
    assert unnamed(nights) == set()


def test_a_collector_that_died_between_document_and_objects_is_waited_for(nights: Collection) -> None:
    nights.corpus["p001"] = "w1"
    nights.night()
    _, marker = open_snapshot(nights.store, 1)
    with marker:
        nights.store.delete(layout.snapshot(1))
        with pytest.raises(ConflictError, match=r"snapshot 1 .* is read \(host .*\), and its document was coll"):
            gc(nights.store, 1)
    gc(nights.store, 1)


def test_a_collector_that_lost_its_lease_deletes_nothing(nights: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr.operations.gc._CHECK_SECONDS", 0.0)
    nights.corpus["p001"] = "w1"
    nights.night()
    let_pass(nights.store, 2 * DAY)
    there = but_leases(nights.files())
    with Lease.acquire(nights.store, "gc") as lease:
        claim = nights.file(f"lease/{lease.fencing_number:08d}/00000001.json").read_bytes()
        nights.store.put(f"lease/{lease.fencing_number + 1:08d}/00000001.json", claim)
        with pytest.raises(ConflictError, match="was lost"):
            collect(nights.store, 1, lease)
    assert but_leases(nights.files()) == there


@pytest.mark.slow
def test_exact_neighbours_stay_with_the_segments_and_questions_they_are_of(
    first_nights: FirstNights, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "w1", "answers": ["p001"]}) + "\n")
    nights = first_nights.copy(tmp_path / "nights", gate={"questions": str(questions), "at": [1]})
    questions.write_text(json.dumps({"question": "w2", "answers": ["p001"]}) + "\n")
    nights.night()
    old, new = (f"truth/{body.encoder_id}/{body.gate.questions_id}/" for body in map(nights.body, (1, 2)))
    truth = {name for name in nights.files() if name.startswith("truth/")}
    of_old = {name for name in truth if name.startswith(old)}
    assert len(of_old) == len({name for name in truth if name.startswith(new)}) == len(truth) / 2
    let_pass(nights.store, 2 * DAY)
    assert {name for name in gc(nights.store, 1) if name.startswith("truth/")} == of_old
    assert {name for name in nights.files() if name.startswith("truth/")} == truth - of_old

    nights.corpus = dict.fromkeys(nights.corpus, "w1")  # other segments
    nights.night()
    let_pass(nights.store, 2 * DAY)
    gone = {name for name in gc(nights.store, 1) if name.startswith("truth/")}
    kept = {entry.object.sha256[:32] for entry in nights.body(3).segments}
    assert {name.removeprefix(new)[:32] for name in gone} & kept == set()
    assert any(len(name.removeprefix(new).partition("-")[0]) == 32 for name in gone)
    assert f"{new}vectors.json" in nights.files()


def test_a_unit_is_never_taken_for_done_after_a_collector_died(nights: Collection) -> None:
    """Whichever deletions took place, runs that lost some of their objects start again and succeed."""
    nights.corpus["new"] = "w7"
    run = start_run(nights)
    made = make_segments(run)
    make_index(run, made)
    let_pass(nights.store, 2 * DAY)
    with Lease.acquire(nights.store, "gc") as lease:
        count = len(find_garbage(nights.store, 1).objects)
        assert count > 6
        for deletions in range(1, count):
            with pytest.raises(ZeroDivisionError):
                collect(DyingStore(nights.store.url), 1, lease)
            assert dangling(nights) == set(), f"after {deletions} deletions"
    assert nights.night().snapshot.body.passages == 31


class DyingStore(LocalStore):
    """A folder whose process dies at the second deletion."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._left = 1

    def delete(self, name: str) -> None:
        if not name.startswith(layout.PROBES):
            if not self._left:
                raise ZeroDivisionError
            self._left -= 1
        super().delete(name)
