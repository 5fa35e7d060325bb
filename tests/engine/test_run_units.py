"""Units and results: every unit has exactly one result, and the first record of a unit counts."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dpr.engine.executor import Executor, LocalExecutor
from dpr.engine.progress import Progress
from dpr.engine.run_state import StageReport
from dpr.engine.run_units import run_units
from dpr.engine.stage import Done, Stage, Step, Work, recorded
from dpr.engine.stage_meter import StageMeter
from dpr.errors import IntegrityError, UnitError
from dpr.formats.objects import put_object
from dpr.formats.records import ObjectRef, Result, read_record
from dpr.store import LocalStore
from tests.tiny import Quiet


@dataclass(frozen=True)
class Letters:
    """A unit of this test: letters to be written in upper case."""

    record: str
    text: str
    read_bytes: int = 7

    @property
    def rows(self) -> int:
        return len(self.text)


@dataclass(frozen=True)
class Shouted:
    """The value between the two steps."""

    record: str
    text: str


class Stored(Result):
    """The result: the letters in an object."""

    text: ObjectRef
    worker: str = ""


class Shout:
    """The first step."""

    def __call__(self, unit: Letters) -> Shouted:
        return Shouted(unit.record, unit.text.upper())


class Put:
    """The second step."""

    def __init__(self, url: str, worker: str = "") -> None:
        self._store, self._worker = LocalStore(url), worker

    def __call__(self, shouted: Shouted) -> Stored:
        path = Path(self._store.url).parent / f"file-{threading.get_ident()}.txt"
        path.write_text(shouted.text + self._worker)
        ref = put_object(self._store, shouted.record.removesuffix(".json"), path)
        return Stored(rows=len(shouted.text), text=ref, worker=self._worker)


class Rearranged(LocalExecutor):
    """Returns the results after `change`."""

    def __init__(self, change: Callable[[list[Any]], Iterable[Any]]) -> None:
        self._change = change

    def run(self, stage: str, work: Work[Any, Any], units: Sequence[Any]) -> Iterator[Any]:
        yield from self._change(list(super().run(stage, work, units)))


UNITS = [Letters(f"letters/{name}.json", name * size) for size, name in enumerate("abcd", 1)]


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def shouting(store: LocalStore, worker: str = "", units: Sequence[Letters] = UNITS) -> Stage[Letters, Stored]:
    first: Step[Letters, Shouted] = Step("shout", Shout)
    last: Step[Shouted, Stored] = Step("put", partial(Put, store.url, worker))
    return Stage("letters", units, Stored, Work.of(first).then(recorded(store.url, Stored, last)))


def run(
    store: LocalStore, executor: Executor, progress: Progress, stage: Stage[Letters, Stored]
) -> tuple[list[Stored], StageReport]:
    """Run the units of a stage; return their results, and what was counted."""
    meter = StageMeter(stage.name)
    return run_units(store, executor, progress, stage, meter), meter.report()


def text_of(store: LocalStore, result: Stored) -> str:
    return store.get(result.text.name).decode()


def test_results_are_in_the_order_of_units_whatever_order_they_come_in(store: LocalStore) -> None:
    progress = Quiet()
    results, report = run(store, Rearranged(reversed), progress, shouting(store))
    assert [text_of(store, result) for result in results] == ["A", "BB", "CCC", "DDDD"]
    assert [read_record(store, unit.record, Stored) for unit in UNITS] == results
    assert progress.rows == {"letters": 10}
    assert (report.units, report.done_before, report.rows) == (4, 0, 10)
    assert (report.read_bytes, report.written_bytes) == (28, 10)


def test_units_that_have_a_record_are_not_done_again(store: LocalStore) -> None:
    run(store, LocalExecutor(), Quiet(), shouting(store, units=UNITS[1:3]))
    progress = Quiet()
    results, report = run(store, LocalExecutor(), progress, shouting(store, "another"))
    assert [text_of(store, result) for result in results] == ["Aanother", "BB", "CCC", "DDDDanother"]
    assert progress.rows == {"letters": 5}
    assert (report.units, report.done_before, report.rows, report.read_bytes) == (4, 2, 5, 14)
    nothing, report = run(store, LocalExecutor(), Quiet(), shouting(store, units=[]))
    assert (nothing, report.units) == ([], 0)


def test_a_stage_shows_each_new_result_to_its_watch(store: LocalStore) -> None:
    run(store, LocalExecutor(), Quiet(), shouting(store, units=UNITS[:1]))
    progress, stage = Quiet(), shouting(store)
    watched = Stage(stage.name, stage.units, stage.kind, stage.work, lambda result: f"{result.rows} letters")
    run(store, LocalExecutor(), progress, watched)
    assert progress.details == ["2 letters", "3 letters", "4 letters"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda done: [*done, done[1]],
            "stage letters returned letters/b.json, which is not one of its units or was returned before; start",
        ),
        (lambda done: [done[0], *done], "stage letters returned letters/a.json, which is not one"),
        (lambda done: done[:-1], "stage letters lost 1 of 4 units; start the run again to do them"),
        (lambda done: done[:0], "stage letters lost 4 of 4 units"),
        (lambda done: [*done, Done("letters/x.json", done[0].result)], "letters returned letters/x.json, which is not"),
    ],
    ids=["twice", "twice in a row", "lost", "lost all", "unknown"],
)
def test_an_executor_that_gives_other_results_than_one_a_unit_is_refused(
    store: LocalStore, change: Callable[[list[Any]], list[Any]], message: str
) -> None:
    with pytest.raises(UnitError, match=message):
        run(store, Rearranged(change), Quiet(), shouting(store))
    # nothing is lost: what has its record is done
    results, report = run(store, LocalExecutor(), Quiet(), shouting(store))
    assert [text_of(store, result) for result in results] == ["A", "BB", "CCC", "DDDD"]
    assert report.done_before == 4


def test_a_result_of_a_unit_that_was_done_before_counts_as_one_too_many(store: LocalStore) -> None:
    before, _ = run(store, LocalExecutor(), Quiet(), shouting(store, units=UNITS[:1]))
    again = Rearranged(lambda done: [*done, Done(UNITS[0].record, before[0])])
    with pytest.raises(UnitError, match=r"returned letters/a\.json, which is not one"):
        run(store, again, Quiet(), shouting(store))


def test_a_record_that_cannot_be_read_is_named(store: LocalStore) -> None:
    store.put(UNITS[2].record, b'{"rows": 1}')
    with pytest.raises(IntegrityError, match=r"object letters/c\.json in .* is not a record of this version"):
        run(store, LocalExecutor(), Quiet(), shouting(store))


def test_a_unit_that_is_sent_again_after_its_record_was_written_is_not_computed_again(store: LocalStore) -> None:
    """As Ray does with a unit whose worker was lost between writing the record and answering."""
    before, _ = run(store, LocalExecutor(), Quiet(), shouting(store))
    again = list(LocalExecutor().run("letters", shouting(store, "again").work, UNITS))
    assert again == [Done(unit.record, result) for unit, result in zip(UNITS, before, strict=True)]
    assert len(list(store.list("letters/"))) == 2 * len(UNITS)


class MeetsAtRecords(LocalStore):
    """A store that puts a record only when two workers are about to do so."""

    meeting = threading.Barrier(2)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        if name.endswith(".json"):
            self.meeting.wait(60)
        return super().put_if_absent(name, data)


def test_of_two_workers_with_different_bytes_the_first_record_counts_for_both(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have computed the unit and put their objects before either puts its record."""
    monkeypatch.setattr("dpr.store.LocalStore", MeetsAtRecords)

    def work(worker: str) -> tuple[str, list[Stored]]:
        return worker, run(store, LocalExecutor(), Quiet(), shouting(store, worker))[0]

    with ThreadPoolExecutor(2) as pool:
        found = dict(pool.map(work, ["-one", "-two"]))
    assert found["-one"] == found["-two"]
    for unit, result in zip(UNITS, found["-one"], strict=True):
        assert read_record(store, unit.record, Stored) == result
        assert text_of(store, result) == unit.text.upper() + result.worker
        stem = unit.record.removesuffix(".json")
        texts = {store.get(info.name).decode() for info in store.list(f"{stem}-")}
        assert texts == {f"{unit.text.upper()}-one", f"{unit.text.upper()}-two"}


def test_a_worker_whose_record_vanishes_under_it_ends_in_a_sentence(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(LocalStore):
        """A store in which every race is lost, and then the winner's record is gone."""

        def put_if_absent(self, name: str, data: bytes) -> bool:  # noqa: ARG002
            return False

    monkeypatch.setattr("dpr.store.LocalStore", Refuses)
    with pytest.raises(IntegrityError, match=r"record letters/a\.json of .* was deleted while a run was using it"):
        run(store, LocalExecutor(), Quiet(), shouting(store))
