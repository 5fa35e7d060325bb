"""The report on an index: a page that a browser reads, pictures that are pictures, numbers that are the snapshot's."""

import base64
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dpr.errors import StoreError
from dpr.index.training import read_index
from dpr.evaluate.index_report import write_report
from dpr.store import LocalStore
from tests.pipeline.stores import run, tiny_recipe


class Page(HTMLParser):
    """Tables as lists of rows, the pictures, and tags that were never closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []
        self.chosen: list[list[str]] = []
        self.open: list[str] = []
        self._marked = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
            self._marked = given.get("class") == "chosen"
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.sources += [value for name, value in attrs if name in ("src", "srcset") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "tr" and self._marked:
            self.chosen.append(self.tables[-1][-1])

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def pixels(png: bytes) -> int:
    """Width times height of a PNG whose every chunk has its checksum and whose data unpack to so many rows."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, data, width, height = 8, b"", 0, 0
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + content) == struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", content[:8])
        data += content if kind == b"IDAT" else b""
        at += 12 + length
    assert len(zlib.decompress(data)) == height * (4 * width + 1)
    return width * height


def test_a_report_shows_the_snapshot(tmp_path: Path, encoder: Path) -> None:
    recipe = tiny_recipe(tmp_path, encoder, factory="IVF8,SQ8", shards=2)
    snapshot = run(recipe).snapshot
    store, body = LocalStore(recipe.store), snapshot.body
    html = write_report(store, snapshot, tmp_path / "report").read_text()
    page = Page(html)
    assert page.open == []
    assert "://" not in html  # it asks nothing of anybody

    facts = {row[0]: row[1] for row in page.tables[0]}
    assert facts["passages"] == "600"
    assert facts["bytes of the index"] == f"{sum(shard.object.size_bytes for shard in body.index.shards):,}"
    assert (facts["nprobe"], facts["rescore"]) == (str(body.index.nprobe), str(body.index.rescore))
    assert facts["recall@20"] == f"{body.gate['recall@20']:.4f}"

    recall, lists, memory = (table[1:] for table in page.tables[1:])
    (chosen,) = [row for row in recall if (row[0], row[1]) == (facts["nprobe"], facts["rescore"])]
    assert chosen in page.chosen
    assert float(chosen[2]) == pytest.approx(body.gate["tuned_recall@20"], abs=1e-4)
    assert float(chosen[3]) == pytest.approx(body.gate["predicted_ms"], abs=1e-4)
    assert float(chosen[4]) > 0
    shards = [read_index(store.local_path(shard.object.name)) for shard in body.index.shards]
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
    assert min(pixels(png) for png in written) > 300_000


def test_an_exact_index_has_no_lists_to_show(tmp_path: Path, encoder: Path) -> None:
    recipe = tiny_recipe(tmp_path, encoder, rows=60)
    snapshot = run(recipe).snapshot
    html = write_report(LocalStore(recipe.store), snapshot, tmp_path / "report").read_text()
    assert 'id="memory"' in html
    assert 'id="lists"' not in html
    assert not np.any([path.name.startswith("lists") for path in (tmp_path / "report").iterdir()])


def test_a_folder_that_cannot_be_written(tmp_path: Path, encoder: Path) -> None:
    recipe = tiny_recipe(tmp_path, encoder, rows=60)
    snapshot = run(recipe).snapshot
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written: .*; name another folder with --out"):
        write_report(LocalStore(recipe.store), snapshot, tmp_path / "taken")
