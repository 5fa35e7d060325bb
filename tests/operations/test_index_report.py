"""The report on an index: a page that a browser reads, pictures that are pictures, numbers that are the snapshot's."""

import base64
from pathlib import Path

import pytest

from dpr.errors import StoreError
from dpr.formats.snapshots import read_snapshot
from dpr.index.faiss_file import read_faiss
from dpr.operations.index_report import write_report
from tests.collection import Collection, FirstNights
from tests.evaluate.html_page import HtmlPage, png_pixels
from tests.tiny import random_texts


@pytest.fixture
def exact(first_nights: FirstNights, tmp_path: Path) -> Collection:
    return first_nights.copy(tmp_path / "exact")


def report(collection: Collection, folder: Path) -> str:
    return write_report(collection.store, read_snapshot(collection.store, 1), folder).read_text()


@pytest.mark.slow
def test_a_report_shows_the_snapshot(first_nights: FirstNights, tmp_path: Path) -> None:
    index = {"factory": "IVF8,SQ8", "shards": 2}
    collection = first_nights.copy(
        tmp_path / "collection", random_texts(600), index=index, resources={"segment_rows": 100}
    )
    store, body = collection.store, collection.body(1)
    html = report(collection, tmp_path / "report")
    page = HtmlPage(html)
    assert page.open == []
    assert "://" not in html  # it sends no request

    facts = {row[0]: row[1] for row in page.tables[0]}
    assert facts["passages"] == "600"
    assert facts["bytes of the index"] == f"{sum(shard.object.size_bytes for shard in body.index.shards):,}"
    assert (facts["nprobe"], facts["rescore"]) == (str(body.index.nprobe), str(body.index.rescore))
    assert facts["recall@20"] == f"{body.gate.recall:.4f}"
    assert facts["shards"] == "2"

    recall, lists, memory = (table[1:] for table in page.tables[1:])
    (chosen,) = [row for row in recall if (row[0], row[1]) == (facts["nprobe"], facts["rescore"])]
    assert chosen in page.chosen
    assert float(chosen[2]) == pytest.approx(body.gate.tuned_recall, abs=1e-4)
    assert float(chosen[3]) == pytest.approx(body.gate.predicted_ms, abs=1e-4)
    assert float(chosen[4]) > 0
    shards = [read_faiss(collection.file(shard.object.name)) for shard in body.index.shards]
    assert len(shards) == 2
    assert store.local_path(body.index.shards[0].object.name)
    sizes = [sum(shard.invlists.list_size(number) for shard in shards) for number in range(8)]
    assert sum(int(count) for _, count in lists) == 8
    assert max(sizes) == pytest.approx(float(lists[-1][0].split(" to ")[1].replace(",", "")), abs=0.06)
    assert float(dict(memory)["IVF8,SQ8"]) == pytest.approx(body.index.size_bytes / 600, abs=1e-4)
    assert float(dict(memory)["Flat"]) == 32 * 4 + 8
    assert ["IVF8,SQ8", dict(memory)["IVF8,SQ8"]] in page.chosen

    names = ["recall", "recall-dark", "lists", "lists-dark", "memory", "memory-dark"]
    embedded = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.sources}
    written = {(tmp_path / "report" / f"{name}.png").read_bytes() for name in names}
    assert embedded == written
    assert len(written) == 6
    assert min(png_pixels(png) for png in written) > 300_000


@pytest.mark.slow
def test_an_exact_index_has_no_lists_to_show(exact: Collection, tmp_path: Path) -> None:
    html = report(exact, tmp_path / "report")
    assert 'id="memory"' in html
    assert 'id="recall"' in html
    assert 'id="lists"' not in html
    assert not [path for path in (tmp_path / "report").iterdir() if path.name.startswith("lists")]


@pytest.mark.slow
def test_what_the_gate_measured_is_shown_as_long_as_it_is_kept(exact: Collection, tmp_path: Path) -> None:
    for path in exact.file("truth").rglob("measured-*"):
        path.unlink()
    html = report(exact, tmp_path / "report")
    assert 'id="recall"' not in html
    assert 'id="memory"' in html


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(exact: Collection, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written: .*; name another folder"):
        report(exact, tmp_path / "taken")
