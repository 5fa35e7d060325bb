"""The report of a run: its counts against a corpus whose changes are known, its sizes against the files."""

import json
from pathlib import Path

import pytest

from dpr.errors import GateError
from dpr.formats import layout
from dpr.operations.run_report import Clock, RunReport, latest_report
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
    assert lines[1] == "quarantine: 2 rows: 1 duplicate id, 1 no text"
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
    assert failed.gate.accuracy_index == {"1": 0.0}
    assert not collection.file(layout.snapshot(2)).exists()

    collection.change(gate={"min_accuracy": {1: 0.0}})
    report = collection.night().report
    assert report
    assert (report.run, report.attempt > failed.attempt) == (failed.run, True)
    assert stored_reports(collection)[-2:] == [failed, report]
    assert latest_report(collection.store, report.run) == report


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
