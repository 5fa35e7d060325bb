"""The report of a run: its counts against known changes of a corpus, its sizes against the files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dpr.engine.executor import LocalExecutor, Lost
from dpr.engine.stage import Work
from dpr.errors import CorpusError, GateError, StoreError, UnitError
from dpr.formats import layout
from dpr.operations.forecast import forecast
from dpr.operations.make_report import latest_report, read_report
from dpr.operations.run_report import RunReport
from dpr.run import Clock, Plan, Run
from tests.collection import Collection, FirstNights
from tests.tiny import Quiet, random_texts


class InOrder(Quiet):
    """Also remembers when stages start."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        super().start(stage, total_rows, done_rows)
        self.messages.append(f"{stage} starts")


def stored_reports(collection: Collection) -> list[RunReport]:
    paths = sorted(collection.file("runs").glob("*/reports/*.json"), key=lambda path: path.name)
    return [RunReport.model_validate_json(path.read_bytes()) for path in paths]


@pytest.mark.usefixtures("no_loose_rows")
def test_a_night_is_reported(first_nights: FirstNights, tmp_path: Path) -> None:
    index = {"factory": "IVF2,SQ8", "retrain": "never", "nprobe": 2}
    collection = first_nights.copy(
        tmp_path / "collection", random_texts(120), index=index, resources={"segment_rows": 40}
    )
    (first,) = stored_reports(collection)
    assert first.base is None
    assert (first.found.new, first.found.embedded) == (120, 120)
    assert first.index.trained

    corpus = collection.corpus
    corpus |= {"p003": "w1 w2 w3", "copy": corpus["p004"]}
    del corpus["p005"]
    collection.more_rows = [("p000", "a second of this name"), ("empty", "")]
    progress = InOrder()
    report = collection.night(progress=progress).report

    assert report
    assert stored_reports(collection)[-1] == report
    assert collection.file(layout.report(report.run, report.attempt)).exists()
    assert latest_report(collection.store, report.run) == report
    assert report.base == 1
    assert report.found.model_dump() == {
        "rows": 122,
        "passages": 120,
        "new": 2,
        "embedded": 1,
        "borrowed": 1,
        "why_embedded": {"edited": 1},
        "why_copied": {"new": 1},
        "dead": 2,
        "restored": 0,
        "duplicates": 1,
        "split_passages": 0,
        "windows": 0,
        "quarantined": {"duplicate id": 1, "no text": 1},
    }
    stages = {stage.stage: stage for stage in report.stages}
    names = ["scan", "diff", "embed", "copy", "build", "merge", "invert", "truth", "sentences", "gate"]
    assert [stage.stage for stage in report.stages] == names
    assert stages["scan"].read_bytes == collection.path.stat().st_size
    assert (stages["embed"].rows, stages["copy"].rows, stages["merge"].rows) == (1, 1, 2)
    assert (stages["build"].units, stages["build"].done_before) == (5, 3)
    shards = collection.body(2).index.shards
    old, new = report.index.shards
    sizes = [collection.file(shard.object.name).stat().st_size for shard in shards]
    assert [old.size_bytes, new.size_bytes] == sizes
    assert (stages["merge"].written_bytes, report.index.index_bytes) == (sizes[1], sum(sizes))
    assert (old.segments, old.rows, old.live_rows, old.verification) == ([0, 1, 2], 120, 118, None)
    assert (new.segments, new.rows, new.live_rows) == ([3, 4], 2, 2)
    assert new.verification is not None
    assert report.encoding.passages == 1
    assert report.encoding.tokens == 5  # three words between [CLS] and [SEP]
    assert set(report.encoding.seconds) == {"read", "tokenise", "wait", "encode", "write"}
    assert (report.index.trained, report.index.factory) == (False, "IVF2,SQ8")
    assert report.gate == collection.body(2).gate

    messages = progress.messages
    (chosen,) = (line for line in messages if line.startswith("encoder: "))
    assert report.encoding.choices == [chosen.removeprefix("encoder: ")]
    reasons = next(number for number, line in enumerate(messages) if line.startswith("index: IVF2,SQ8: "))
    assert messages.index("embed starts") < messages.index(chosen) < reasons < messages.index("build starts")

    lines = report.lines()
    assert lines[0] == (
        "corpus: 122 rows, 120 passages: 2 new, 1 to embed (1 have the text of another), 2 gone, 0 back"
    )
    assert lines[1:3] == ["embedded: 1 edited", "copied: 1 new"]
    assert lines[3] == "quarantine: 2 rows: 1 for 'duplicate id', 1 for 'no text'"
    assert lines[-1].startswith("index: IVF2,SQ8, 0.0 MB; codebook kept: ")


def test_times_are_in_the_report_alone(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    (report,) = stored_reports(collection)
    assert report.seconds > 0
    assert "seconds" not in collection.body(1).to_bytes().decode()
    record = next(collection.file("segments").rglob("*.json"))
    assert set(json.loads(record.read_bytes())["seconds"]) > {"encode", "wait"}


def test_every_attempt_has_its_own_report_and_the_last_counts(first_nights: FirstNights, tmp_path: Path) -> None:
    """A run that fails its gate is reported too; started again with a lower demand, it is the same run."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "w1", "answers": ["nothing"]}) + "\n")
    gate = {"questions": str(questions), "answers": "strings", "min_accuracy": {1: 1.0}, "at": [1]}
    collection = first_nights.copy(tmp_path / "collection")
    collection.change(gate=gate)
    with pytest.raises(GateError, match=r"top-1 accuracy is 0\.0000"):
        collection.night()
    failed = stored_reports(collection)[-1]
    assert failed.gate
    assert failed.gate.accuracy_index == {"1": 0.0}
    assert (failed.ending.kind, failed.ending.exit_code) == ("refused", 3)
    assert "top-1 accuracy is 0.0000" in failed.ending.sentence
    assert not collection.file(layout.run_report(failed.run)).exists()
    assert "top-1 accuracy is 0.0000" in collection.file(layout.report_page(failed.run, failed.attempt)).read_text()
    assert not collection.file(layout.snapshot(2)).exists()

    collection.change(gate={"min_accuracy": {1: 0.0}})
    report = collection.night().report
    assert report
    assert (report.run, report.attempt > failed.attempt) == (failed.run, True)
    assert stored_reports(collection)[-2:] == [failed, report]
    assert latest_report(collection.store, report.run) == report
    assert (report.ending.kind, report.ending.exit_code, report.ending.snapshot) == ("published", 0, 2)
    assert read_report(collection.store, layout.run_report(report.run)) == report
    (earlier,) = report.earlier
    assert (earlier.attempt, earlier.seconds, earlier.ending) == (failed.attempt, failed.seconds, failed.ending)
    assert earlier.last_stage == "modes"


class Breaks(LocalExecutor):
    """Raises an error after the first unit of a stage, and has lost workers on the way."""

    def __init__(self, stage: str, error: BaseException) -> None:
        self._stage, self._error = stage, error

    def run(self, stage: str, work: Work[Any, Any], units: Sequence[Any]) -> Any:
        for number, result in enumerate(super().run(stage, work, units)):
            if stage == self._stage and number == 1:
                raise self._error
            yield result

    def take_lost(self) -> Lost:
        return Lost(units=2, workers=1)


@pytest.mark.parametrize(
    ("error", "kind", "exit_code", "sentence"),
    [
        (UnitError("workers died"), "failed", 11, "workers died"),
        (CorpusError("a file changed"), "failed", 9, "a file changed"),
        (ZeroDivisionError("by zero"), "failed", 1, "a bug: ZeroDivisionError: by zero; please report it"),
        (KeyboardInterrupt(signal.SIGTERM), "interrupted", 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), "interrupted", 130, "stopped by SIGINT"),
        (StoreError("the store is gone"), "failed", 5, "the store is gone"),
    ],
)
def test_an_attempt_that_fails_leaves_a_report_of_how_far_it_came(
    first_nights: FirstNights, tmp_path: Path, error: BaseException, kind: str, exit_code: int, sentence: str
) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    collection.corpus |= random_texts(50, "new", seed=3)
    with pytest.raises(type(error)):
        collection.night(executor=Breaks("embed", error))
    before = stored_reports(collection)[1:]
    assert len(before) == (0 if isinstance(error, StoreError) else 1)  # a store that fails cannot be written to
    report = collection.night().report
    assert report
    failed = stored_reports(collection)[1]
    assert [failed] == before or isinstance(error, StoreError)
    assert (failed.run, failed.base) == (report.run, 1)
    assert failed.ending.model_dump() == {"kind": kind, "exit_code": exit_code, "sentence": sentence, "snapshot": None}
    assert [stage.stage for stage in failed.stages] == ["scan", "diff", "embed"]
    embed, whole = failed.stages[-1], report.stages[2]
    assert (embed.units, embed.waiting, embed.planned_rows) == (whole.units, whole.units - 1, 50)
    assert 0 < embed.rows < 50
    assert (whole.done_before, whole.rows_before, whole.rows) == (2, 2 * embed.rows, 50 - 2 * embed.rows)
    assert (embed.repeated, embed.lost_workers) == (2, 1)
    assert (failed.index, failed.gate) == (None, None)
    assert [(each.ending.kind, each.last_stage) for each in report.earlier] == [(kind, "embed")]


KILLED = """
import sys, time
from dpr.engine.executor import LocalExecutor
from dpr.recipe_file import load_recipe
from dpr.run import Plan
from dpr.run_recipe import run_plan
from tests.tiny import Quiet

class Stops(Quiet):
    def advance(self, rows, detail=""):
        super().advance(rows, detail)
        if self._stage == "embed":
            print("embedded", flush=True)
            time.sleep(600)

run_plan(Plan.of(load_recipe(sys.argv[1])), LocalExecutor(), Stops(), lease_seconds=0.3)
"""


@pytest.mark.slow
def test_an_attempt_that_is_killed_has_a_report_once_the_run_is_resumed(tmp_path: Path, static_encoder: Path) -> None:
    collection = Collection(tmp_path, static_encoder, random_texts(50), encoder={"pooling": None, "normalize": None})
    command = (sys.executable, "-c", KILLED, str(collection.write_recipe()))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == b"embedded\n"
            last = time.monotonic() + 120
            while not any(_says_one_unit_is_done(path) for path in collection.file("lease").rglob("*.json")):
                assert time.monotonic() < last
                time.sleep(0.05)
        finally:
            child.kill()
    assert stored_reports(collection) == []
    report = collection.night().report
    assert report
    died, stored = stored_reports(collection)
    assert stored == report
    assert (died.run, died.base, died.ending.kind, died.ending.exit_code) == (report.run, None, "died", None)
    assert [(stage.stage, stage.units - stage.waiting) for stage in died.stages] == [
        ("scan", 1),
        ("diff", 1),
        ("embed", 1),
    ]
    (earlier,) = report.earlier
    assert (earlier.attempt, earlier.last_stage) == (died.attempt, "embed")
    assert collection.file(layout.report_page(died.run, died.attempt)).exists()


def _says_one_unit_is_done(path: Path) -> bool:
    try:
        last = json.loads(path.read_text())["stages"][-1]
    except (FileNotFoundError, KeyError, IndexError, ValueError):  # removed since; the claim; no stage yet; the time
        return False
    return bool(last["stage"] == "embed" and last["rows"] > 0)


@pytest.mark.slow
def test_an_estimate_of_the_same_run_stands_beside_its_outcome(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    collection.corpus["new"] = "w1 w2"
    collection.write_corpus()
    made = forecast(Run(Plan.of(collection.recipe), LocalExecutor(), Quiet()))
    report = collection.night().report
    assert report
    assert report.estimate == made.cost
    assert (report.estimate.passages, report.cost.passages) == (1, 1)
    collection.corpus["newer"] = "w3"
    other = collection.night().report
    assert other
    assert other.estimate is None


def test_attempts_sort_by_when_they_began() -> None:
    """Also those of one second, which are listed by name to find the last."""
    attempts = [Clock().attempt for _ in range(50)]
    assert attempts == sorted(attempts)


def test_a_report_of_another_version_is_no_report(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    (report,) = stored_reports(collection)
    collection.store.put(layout.report(report.run, "99990101T000000Z-0"), b'{"of": "another version"}')
    assert latest_report(collection.store, report.run) is None
    assert latest_report(collection.store, "unknown") is None
