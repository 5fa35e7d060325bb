"""What `dpr plan` finds, against corpora whose changes are known and against the run that follows."""

import contextlib
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.engine.executor import LocalExecutor
from dpr.errors import CorpusError, IntegrityError
from dpr.nightly import make_index, make_segments
from dpr.operations.forecast import Forecast, forecast
from dpr.operations.rollback import rollback
from dpr.run import Plan, Run
from dpr.stages.scan import scan
from tests.collection import Collection, FirstNights
from tests.tiny import Quiet, random_texts

FIELDS: dict[str, Any] = {"corpus": {"slice_bytes": 4000}, "resources": {"segment_rows": 40}}


@pytest.fixture(autouse=True)
def _short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr.operations.calibrate.ENCODE_SECONDS", 0.01)


def plan(collection: Collection, seconds: float = 60.0) -> Forecast:
    """Forecast the next night."""
    collection.write_corpus()
    return forecast(Run(Plan.of(collection.recipe), LocalExecutor(), Quiet()), seconds)


def test_the_first_night(tmp_path: Path, encoder: Path) -> None:
    corpus = random_texts(90)
    corpus["same"] = corpus["p000"]
    collection = Collection(tmp_path, encoder, corpus, **FIELDS)
    collection.change(resources={"price_per_gpu_hour": 2.5})
    before = plan(collection)
    assert not (tmp_path / "store").exists()
    assert before.exact
    assert (before.base, before.work.passages, before.new, before.borrowed) == (None, 91, 91, 1)
    words = sum(len(text.split()) for name, text in corpus.items() if name != "same")
    assert before.work.tokens == pytest.approx(words + 2 * 90, rel=0.02)  # the sample has the borrowing passage, too
    assert before.cost.dollars == before.cost.gpu_hours * 2.5
    assert before.cost.index_seconds is None
    assert any("no earlier run has measured them" in sentence for sentence in before.assumed)

    report = collection.night().report
    assert report
    assert (report.cost.passages, report.cost.units) == (before.cost.passages, before.cost.units) == (90, 4)
    assert report.cost.tokens == words + 2 * 90
    assert report.cost.read_bytes > 0


def test_a_later_night_reads_keys_of_the_base(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "collection", random_texts(120), **FIELDS)
    collection.corpus |= {"p003": "w1 w2 w3", "new": "w9 w9", "copy": collection.corpus["p004"]}
    del collection.corpus["p005"], collection.corpus["p006"]
    collection.more_rows = [("p007", collection.corpus["p007"]), ("empty", "")]
    there = collection.files()
    before = plan(collection)
    assert collection.files() == there  # nothing is written to the store
    assert (before.base, before.work.passages, before.new, before.borrowed, before.dead) == (1, 120, 3, 1, 3)
    assert (before.duplicates, before.quarantined, before.work.embed, before.work.copy_rows) == (1, 1, 2, 1)
    assert before.work.train_rows == 0
    assert before.cost.index_seconds is not None
    assert before.cost.index_seconds > 0  # of the previous night
    assert any("as long as in the previous run" in sentence for sentence in before.assumed)

    report = collection.night().report
    assert report
    found = report.found
    assert (found.new, found.borrowed, found.dead, found.embedded) == (3, 1, 3, 2)
    assert found.duplicates == 1
    again = plan(collection)
    assert again.work.embed == 0
    assert again.speeds.encode_tokens == 0.0  # no encoder was started


def test_what_an_older_kept_snapshot_holds_needs_no_embedding(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    collection.corpus["p001"] = "w150 w151"
    collection.night()
    rollback(collection.store, 1)
    before = plan(collection)
    assert (before.base, before.work.embed, before.work.passages) == (3, 0, 30)


@pytest.mark.usefixtures("no_loose_rows")
def test_what_the_index_took_in_a_run_that_was_cut_off_is_not_known(first_nights: FirstNights, tmp_path: Path) -> None:
    """Its last attempt found the codebook and shards done, so its seconds are not those of the work."""
    collection = first_nights.copy(tmp_path / "collection")
    collection.corpus["new"] = "w1"
    collection.write_corpus()
    run = Run(Plan.of(collection.recipe), LocalExecutor(), Quiet())
    make_index(run, make_segments(run))
    collection.night()
    assert plan(collection).cost.index_seconds is None


def test_a_sample_stands_for_the_corpus(tmp_path: Path, encoder: Path) -> None:
    collection = Collection(tmp_path, encoder, random_texts(1200), **FIELDS)
    sampled = plan(collection, seconds=0.0)  # one slice
    assert sampled.slices > 10
    assert (sampled.slices_read, sampled.dead) == (1, None)
    assert not sampled.exact
    assert sampled.work.embed == pytest.approx(1200, rel=0.15)
    assert any("slices that were not read" in sentence for sentence in sampled.assumed)


def test_damaged_texts_of_an_earlier_scan_are_not_sampled(first_nights: FirstNights, tmp_path: Path) -> None:
    """The hashes are left by a run that ended after its scan; only the page checksum shows the damage."""
    collection = first_nights.copy(tmp_path / "collection")
    collection.corpus |= random_texts(60, name="new", seed=2)
    collection.write_corpus()
    there = collection.files()
    scan(Run(Plan.of(collection.recipe), LocalExecutor(), Quiet()))
    assert plan(collection).new > 0
    (name,) = (name for name in collection.files() if ".new-" in name and name not in there)
    damage_silently(collection.file(name), "text")
    with pytest.raises(IntegrityError, match=f"{re.escape(name)} is damaged .*; roll back to a sound snapshot or run"):
        plan(collection)


def damage_silently(path: Path, column: str) -> None:
    """Change a byte of a Parquet column so that a reader that does not verify the page's checksum gets other values."""
    whole, values = path.read_bytes(), pq.read_table(path)[column]
    group = pq.read_metadata(path).row_group(0)
    chunk = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == column)
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    for at in reversed(range(first, first + chunk.total_compressed_size)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with contextlib.suppress(pa.ArrowException, OSError):
            if pq.read_table(path)[column] != values:
                return
    raise AssertionError(f"no damage of {path} goes unnoticed")


def test_a_corpus_without_passages_is_one_sentence(tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(CorpusError, match="1 of 1 slices of the corpus hold no usable passage"):
        plan(Collection(tmp_path, encoder, {"empty": ""}))
