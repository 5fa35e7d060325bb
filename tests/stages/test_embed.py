"""Embedding: once for each text that no kept segment holds, and by one worker for each unit, even if others try."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from dpr.engine.executor import LocalExecutor
from dpr.engine.run_units import run_units
from dpr.engine.stage import Stage, Work
from dpr.engine.stage_meter import StageMeter
from dpr.errors import CorpusError, EncoderError, IntegrityError
from dpr.formats import layout
from dpr.formats.records import ObjectRef, read_record
from dpr.formats.snapshots import read_snapshot
from dpr.nightly import make_segments
from dpr.operations.rollback import rollback
from dpr.operations.verify import verify
from dpr.run import Plan, Run
from dpr.stages import diff, embed, scan
from dpr.stages.write_segment import MadeSegment, SegmentResult, SegmentUnit
from dpr.store import LocalStore
from tests.collection import Collection, FirstNights
from tests.tiny import Quiet, make_encoder, random_texts, write_jsonl


def run_of(collection: Collection, precision: str) -> Run:
    collection.change(encoder={"precision": precision})
    collection.write_corpus()
    return Run(Plan.of(collection.recipe), LocalExecutor(), Quiet())


class Overtaken(LocalStore):
    """A store in which another worker finishes every segment just before this one puts its record."""

    others: "dict[str, Stage[SegmentUnit, SegmentResult]]"
    """Record → the other worker's stage of that unit alone."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        if (other := self.others.pop(name, None)) is not None:
            run_units(LocalStore(self.url), LocalExecutor(), Quiet(), other, StageMeter(other.name))
        return super().put_if_absent(name, data)


def test_the_first_record_of_a_segment_counts_and_all_that_follows_uses_its_object(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker computes in bf16. Another one, in fp32, begins and ends while the first is about to put its record."""
    collection = Collection(tmp_path, encoder)
    slow, quick = run_of(collection, "bf16"), run_of(collection, "fp32")
    scans = scan.scan(slow)
    changes = diff.diff(slow, scans, allow_shrink=False)
    units = embed.segment_units(slow, changes, scans, "embed")
    assert len(units) == 2
    others = {unit.record: Stage("embed", [unit], SegmentResult, embed.embed_work(quick)) for unit in units}
    with monkeypatch.context() as patch:
        patch.setattr(Overtaken, "others", others, raising=False)
        patch.setattr("dpr.store.LocalStore", Overtaken)
        made = embed.embed(slow, embed.embed_work(slow), changes, scans)

    assert others == {}
    exact = Collection(tmp_path / "exact", encoder, encoder={"precision": "fp32"})
    exact_rows = exact.live_rows(exact.night().snapshot.body)
    for unit, segment in zip(units, made, strict=True):
        assert read_record(collection.store, unit.record, SegmentResult) == segment.result
        objects = [info.name for info in collection.store.list(f"{unit.stem}-")]
        assert len(objects) == 2  # both have put theirs, and they differ
        assert segment.result.segment is not None
        assert segment.result.segment.name in objects
        assert segment.result.encoder.startswith("fp32")

    body = collection.night().snapshot.body  # with both segments done already
    assert [entry.object for entry in body.segments] == [segment.result.segment for segment in made]
    assert verify(collection.store, [1], deep=True)[1] == []
    for id_, (_, vector) in collection.live_rows(body).items():
        assert (vector == exact_rows[id_][1]).all()
    assert body.segments == exact.body(1).segments
    assert body.index == exact.body(1).index


def test_a_worker_with_other_model_files_is_refused(tmp_path: Path) -> None:
    collection = Collection(tmp_path, make_encoder(tmp_path / "model"))
    run = run_of(collection, "fp32")
    weights = load_file(collection.model / "model.safetensors")
    weights["embeddings.LayerNorm.weight"][0] += 1
    save_file(weights, collection.model / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"on this machine and .* where the run was planned; give all machines"):
        make_segments(run)


class Watched(LocalExecutor):
    """Remembers what the driver asks of it for the embed stage."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def begin(self, stage: str, work: Work[Any, Any]) -> None:
        self.calls.append(f"begin {stage}")
        super().begin(stage, work)

    def release(self, *stages: str) -> None:
        self.calls.append(" ".join(["release", *stages]))
        super().release(*stages)

    def run(self, stage: str, work: Work[Any, Any], units: Sequence[Any]) -> Iterator[Any]:
        self.calls.append(f"run {stage}")
        return super().run(stage, work, units)


def test_encoders_load_while_the_corpus_is_scanned_and_are_released_if_that_fails(
    tmp_path: Path, encoder: Path
) -> None:
    collection = Collection(tmp_path, encoder, {"none": ""})
    executor = Watched()
    with pytest.raises(CorpusError, match="the corpus holds no usable passage"):
        collection.night(executor)
    assert executor.calls == ["begin embed", "run scan", "release"]
    collection.corpus = {"some": "w1"}
    executor = Watched()
    collection.night(executor)
    begun = ["begin embed", "run scan", "run diff", "begin gate", "begin train", "begin questions", "run embed"]
    assert executor.calls[: len(begun)] == begun
    assert executor.calls[-1] == "release"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="its GPU may multiply fp8")
def test_a_message_on_emulated_fp8_comes_before_passages_are_encoded(tmp_path: Path, encoder: Path) -> None:
    class Ordered(Quiet):
        def start(self, stage: str, total_rows: int, done_rows: int) -> None:
            super().start(stage, total_rows, done_rows)
            self.messages.append(f"start {stage}")

    collection, progress = Collection(tmp_path, encoder, encoder={"precision": "fp8"}), Ordered()
    collection.night(progress=progress)
    lines = [line for line in progress.messages if "emulated" in line]
    assert lines[0].startswith("encoder: encoder.precision is fp8, and processors of this run have no products of fp8")
    assert progress.messages.index(lines[0]) < progress.messages.index("start embed")
    del collection.corpus[next(iter(collection.corpus))]
    later = Quiet()
    collection.night(progress=later)
    assert not any("emulated" in line for line in later.messages)  # nothing was encoded


def test_a_segment_that_lost_a_row_is_refused_with_both_numbers() -> None:
    ref = ObjectRef(name="segments/e/s-0.parquet", size_bytes=1, sha256="0" * 64)
    unit = SegmentUnit("segments/e/s.json", "segments/e/s", 3, "s", 10, 0, ref, 0, ())
    result = SegmentResult(rows=8, segment=ref, refused_rows=2, refused=ref, tokens=0, seconds={}, encoder="")
    MadeSegment(unit, result).check()
    short = MadeSegment(unit, result.model_copy(update={"rows": 7}))
    with pytest.raises(IntegrityError, match="segment s was planned with 10 rows; it has 7, and 2 are in quarantine"):
        short.check()


def test_after_a_rollback_texts_that_only_other_kept_snapshots_hold_are_not_embedded_again(
    tmp_path: Path, first_nights: FirstNights
) -> None:
    """Nor are they under other ids: the rows take their vectors from segments that the base does not hold."""
    collection = first_nights.copy(tmp_path)
    first = dict(collection.corpus)
    collection.corpus |= {"p001": "w1 w2", "p002": "w3 w4", "new": "w5 w6"}
    del collection.corpus["p003"]
    collection.night()
    rollback(collection.store, 1)
    progress = Quiet()
    collection.corpus |= {"p004": "w7 w8", "same text": "w1 w2", "old text": first["p003"]}
    body = collection.night(progress=progress).snapshot.body
    assert progress.rows["embed"] == 1
    assert {i: text for i, (text, _) in collection.live_rows(body).items()} == collection.corpus
    assert verify(collection.store, [1, 2, 3, 4], deep=True)[1] == []
    # and so it is after going on from there, and back to the very beginning
    rollback(collection.store, 1)
    collection.corpus = first | {"p005": "w7 w8", "p006": "w3 w4"}
    collection.night(progress=progress)
    assert progress.rows["embed"] == 1
    assert collection.live_rows(read_snapshot(collection.store, 6).body).keys() == first.keys()


def test_passages_that_the_scan_did_not_store_are_read_from_the_corpus_and_embedded(
    tmp_path: Path, encoder: Path
) -> None:
    """A file is scanned while segments hold what is in it. Later they do not, and the file is as it was."""
    files = {name: tmp_path / "corpus" / f"{name}.jsonl" for name in ("stays", "moves", "moved")}
    files["stays"].parent.mkdir()
    moving = random_texts(8, "moving", seed=3)
    write_jsonl(files["stays"], random_texts(12, "stays"))
    write_jsonl(files["moves"], moving)
    collection = Collection(tmp_path, encoder, corpus={"path": str(files["stays"].parent)}, gate={"at": [1]})
    collection.night()
    files["moves"].unlink()
    write_jsonl(files["moved"], {**moving, "other name": moving["moving003"]})
    progress = Quiet()
    collection.night(progress=progress)
    assert (progress.rows["scan"], progress.rows["embed"], progress.rows["copy"]) == (9, 0, 1)

    # the second night's new row borrows the vector; its text is nowhere but in the file
    with_all = collection.body(2)
    assert collection.live_rows(with_all)["other name"][0] == moving["moving003"]

    # another store of the same encoder: the scans are there, and no segment holds what they did not store
    emptied = collection.copy(tmp_path / "emptied")
    emptied.change(corpus={"path": str(files["stays"].parent)})
    for name in emptied.files():
        if not name.startswith(layout.SCANS):
            emptied.file(name).unlink()
    progress = Quiet()
    body = emptied.night(progress=progress).snapshot.body
    assert (progress.rows["scan"], progress.rows["embed"]) == (0, 20)
    rows = emptied.live_rows(body)
    assert {i: text for i, (text, _) in rows.items()} == {
        i: text for i, (text, _) in collection.live_rows(with_all).items()
    }
    np.testing.assert_array_equal(rows["other name"][1], rows["moving003"][1])
    stored = [pq.read_metadata(emptied.file(name)).num_rows for name in emptied.files() if ".new-" in name]
    assert sum(stored) == 12 + 8 + 1  # of 12 + 8 + 9 rows that were scanned
