"""The report of a run: its counts against a corpus whose changes are known, its sizes against the files."""

import json
from pathlib import Path

import pytest

from dpr.errors import GateError
from dpr.operations.run_report import Report
from tests.pipeline.test_run import encoder, passages, recipe, run  # noqa: F401 (encoder is a fixture)
from tests.tiny import Quiet, write_jsonl


class _InOrder(Quiet):
    """Also remembers when stages start."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        super().start(stage, total_rows, done_rows)
        self.said.append(f"{stage} starts")


def test_a_night_is_reported(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    corpus = passages(120)
    write_jsonl(tmp_path / "corpus.jsonl", corpus)
    made = recipe(tmp_path, encoder, index={"factory": "IVF2,SQ8", "retrain": "never"})
    first = run(made)
    assert first.report.base is None
    assert (first.report.found.new, first.report.found.embedded) == (120, 120)

    edited = corpus | {"p0003": "w1 w2 w3", "copy": corpus["p0004"]}
    del edited["p0005"]
    rows = [*edited.items(), ("p0000", "a second of this name"), ("empty", "")]
    path = write_jsonl(tmp_path / "corpus.jsonl", rows)
    progress = _InOrder()
    report = run(made, progress).report

    stored = next((tmp_path / "store" / "runs" / report.run).glob("report.json"))
    assert Report.model_validate_json(stored.read_bytes()) == report
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
        "quarantined": {"duplicate id": 1, "no text": 1},
    }
    stages = {stage.stage: stage for stage in report.stages}
    assert list(stages) == ["scan", "diff", "embed", "copy", "build", "merge", "gate"]
    assert stages["scan"].read_bytes == path.stat().st_size
    assert (stages["embed"].rows, stages["copy"].rows, stages["merge"].rows) == (1, 1, 120)
    assert (stages["build"].units, stages["build"].done_before) == (5, 3)
    index = tmp_path / "store" / "indexes"
    newest = max(index.glob("*.faiss"), key=lambda file: file.stat().st_mtime_ns)
    assert stages["merge"].written_bytes == report.index.index_bytes == newest.stat().st_size
    assert report.encoding.passages == 1
    assert report.encoding.tokens == 5  # three words between [CLS] and [SEP]
    assert set(report.encoding.seconds) == {"read", "tokenise", "wait", "encode", "limit", "write"}
    assert (report.index.trained, report.index.factory) == (False, "IVF2,SQ8")

    said = progress.said
    (chosen,) = (line for line in said if line.startswith("encoder: "))
    assert report.encoding.choices == [chosen.removeprefix("encoder: ")]
    reasons = next(number for number, line in enumerate(said) if line.startswith("index: IVF2,SQ8: "))
    assert said.index("embed starts") < said.index(chosen) < reasons < said.index("build starts")


def test_times_are_in_the_report_alone(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    write_jsonl(tmp_path / "corpus.jsonl", passages(50))
    outcome = run(recipe(tmp_path, encoder))
    assert outcome.report.seconds > 0
    assert "seconds" not in outcome.snapshot.body_bytes().decode()
    record = next((tmp_path / "store" / "segments").rglob("*.json"))
    assert set(json.loads(record.read_bytes())["facts"]["seconds"]) > {"encode", "wait"}


def test_a_run_that_fails_its_gate_is_reported_too(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    write_jsonl(tmp_path / "corpus.jsonl", passages(50))
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "w1", "answers": ["nothing"]}) + "\n")
    gate = {"questions": str(tmp_path / "questions.jsonl"), "min_accuracy": {1: 1.0}, "at": [1]}
    with pytest.raises(GateError):
        run(recipe(tmp_path, encoder, gate=gate))
    (stored,) = (tmp_path / "store" / "runs").glob("*/report.json")
    assert Report.model_validate_json(stored.read_bytes()).gate["accuracy_index"] == {"1": 0.0}
