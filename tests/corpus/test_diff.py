"""Scan and diff against a model of the collection made of plain dictionaries."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.formats import layout
from dpr.stages.diff import Changes, DiffInputs, find_changes, first_of_each
from dpr.corpus.slices import plan_slices
from dpr.stages.scan import scan_slice
from dpr.formats.deletions import read_deletions
from dpr.fingerprint import passage_key
from dpr.formats.manifest import CodebookEntry, IndexEntry, SegmentEntry, SnapshotBody
from dpr.pipeline.scan import load_known_keys
from dpr.recipe import CorpusConfig
from dpr.formats.records import ObjectRef, put_object, write_record
from dpr.formats.segment import HASH, PASSAGE_COLUMNS, passage_schema, read_rows, write_segment
from dpr.store import LocalStore

NOTHING = ObjectRef(name="none", size_bytes=0, sha256="")
CODEBOOK = CodebookEntry(
    codebook_id="",
    factory="",
    trained_rows=0,
    corpus_rows=0,
    last_segment=0,
    quantisation_error=0,
    list_imbalance=None,
    object=NOTHING,
)
INDEX = IndexEntry(index_id="", rows=0, nprobe=1, rescore=0, shards=[])


@dataclass
class Collection:
    """The store side of nightly runs, with segments whose vectors are all zero."""

    folder: Path
    compact_below: float = 0.5
    segment_rows: int = 7
    nights: int = 0
    base: SnapshotBody | None = None
    embedded: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = LocalStore(self.folder / "store")

    def night(self, corpus: list[tuple[str, str]]) -> Changes:
        """Scan a corpus of (id, text), and make the planned segments."""
        self.nights += 1
        run_id = f"run-{self.nights}"
        path = self.folder / f"night-{self.nights}.jsonl"
        path.write_text("".join(json.dumps({"id": i, "title": "t", "text": t}) + "\n" for i, t in corpus))
        config = CorpusConfig(path=str(path), format="jsonl", slice_bytes=1000)
        slices = plan_slices(config)
        entries = self.base.segments if self.base else []
        known = load_known_keys(self.store.url, [entry.object.name for entry in entries])
        scans = []
        for number, slice_ in enumerate(slices):
            scans.append(scan_slice(self.store, run_id, number, slice_, config, known))
            write_record(self.store, layout.record(layout.scan_keys(run_id, number)), scans[-1])
        inputs = DiffInputs(run_id, "enc", config, slices, self.base, self.segment_rows, self.compact_below)
        changes = Changes.model_validate(find_changes(self.store, inputs, scans).facts)
        made = [self._make(run_id, changes, group) for group in range(len(changes.planned))]
        self.base = SnapshotBody(
            encoder_id="enc",
            encoder={},
            passages=changes.passages,
            segments=sorted([*changes.kept, *made], key=lambda entry: entry.number),
            next_segment_number=changes.next_segment_number,
            codebook=CODEBOOK,
            index=INDEX,
            gate={},
        )
        return changes

    def _make(self, run_id: str, changes: Changes, group: int) -> SegmentEntry:
        planned = changes.planned[group]
        rows = pq.ParquetFile(self.folder / "store" / layout.changes(run_id)).read_row_group(group).to_pylist()
        names = {e.number: e.object.name for e in (self.base.segments if self.base else [])}
        names |= {p.number: layout.segment("enc", p.segment_id) for p in changes.planned}
        passages = []
        for row in rows:
            if planned.kind == "embed":
                assert row["source"] == -1
                self.embedded.append(row["content_hash"])
            else:
                source = pq.read_table(self.folder / "store" / names[row["source"]], columns=["key", "content_hash"])
                assert row["content_hash"] in source["content_hash"].to_pylist()
            passages.append(self._passage(run_id, row, names))
        path = self.folder / "segment.parquet"
        columns = {name: [passage[name] for passage in passages] for name in PASSAGE_COLUMNS}
        table = passage_schema().empty_table().from_pydict(columns, schema=passage_schema())
        write_segment(path, table, np.zeros((len(passages), 2), np.float16), "enc")
        ref = put_object(self.store, layout.segment("enc", planned.segment_id), path)
        return SegmentEntry(number=planned.number, segment_id=planned.segment_id, rows=planned.rows, object=ref)

    def _passage(self, run_id: str, row: dict, names: dict[int, str]) -> dict:
        folder = self.folder / "store"
        if row["slice"] >= 0:
            shard = folder / layout.scan_shard(run_id, row["slice"])
            return read_rows(shard, PASSAGE_COLUMNS, np.array([row["row"]])).to_pylist()[0]
        source = pq.read_table(folder / names[row["source"]], columns=list(PASSAGE_COLUMNS)).to_pylist()
        return next(passage for passage in source if passage["key"] == row["key"])

    def live(self) -> dict[str, str]:
        """Id → text of all live rows, each id once."""
        found: list[tuple[str, str]] = []
        for entry in self.base.segments if self.base else []:
            table = pq.read_table(self.folder / "store" / entry.object.name, columns=["id", "text"]).to_pylist()
            dead = set(read_deletions(self.store, entry).tolist())
            found += [(row["id"], row["text"]) for number, row in enumerate(table) if number not in dead]
        assert len(dict(found)) == len(found)
        return dict(found)


corpora = st.lists(
    st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from("uvwxyz")), min_size=1, max_size=25),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(corpora, st.sampled_from([0.0, 0.5, 1.0]))
def test_any_history_ends_in_the_last_corpus(
    tmp_path_factory, nights: list[list[tuple[str, str]]], compact_below: float
) -> None:
    collection = Collection(tmp_path_factory.mktemp("history"), compact_below)
    for corpus in nights:
        changes = collection.night(corpus)
        expected: dict[str, str] = {}
        for passage_id, text in corpus:
            expected.setdefault(passage_id, text)  # the first with an id is kept
        assert collection.live() == expected
        assert changes.passages == len(expected)
        assert changes.duplicates == len(corpus) - len(expected)


@settings(max_examples=30, deadline=None)
@given(corpora)
def test_no_text_is_embedded_twice_while_a_segment_holds_it(tmp_path_factory, nights) -> None:
    collection = Collection(tmp_path_factory.mktemp("history"), compact_below=0.0)
    held: set[bytes] = set()
    for corpus in nights:
        collection.embedded.clear()
        collection.night(corpus)
        assert len(set(collection.embedded)) == len(collection.embedded)
        assert not held & set(collection.embedded)
        held = set()
        for entry in collection.base.segments:
            stored = pq.read_table(collection.folder / "store" / entry.object.name, columns=["content_hash"])
            held |= set(stored["content_hash"].to_pylist())


def test_an_edit_costs_one_passage_and_its_revert_none(tmp_path: Path) -> None:
    collection = Collection(tmp_path, compact_below=0.0)
    corpus = [(f"id-{number}", f"text {number}") for number in range(40)]
    first = collection.night(corpus)
    assert (first.new, first.embed_rows, first.dead) == (40, 40, 0)
    edited = collection.night([("id-0", "other"), *corpus[1:]])
    assert (edited.new, edited.embed_rows, edited.dead, edited.restored) == (1, 1, 1, 0)
    reverted = collection.night(corpus)
    assert (reverted.new, reverted.embed_rows, reverted.dead, reverted.restored) == (0, 0, 1, 1)
    renamed = collection.night([("new-name", "text 0"), *corpus[1:]])
    assert (renamed.new, renamed.embed_rows, renamed.borrowed, renamed.dead) == (1, 0, 1, 1)


def test_small_segments_of_many_nights_are_joined_without_embedding(tmp_path: Path) -> None:
    collection = Collection(tmp_path, segment_rows=60)
    corpus = [(f"id-{number}", f"text {number}") for number in range(90)]
    collection.night(corpus)
    restored = 0
    for night in range(30):
        corpus += [(f"{name}-{night}", f"{name} text {night}") for name in ("a", "b")]
        if night == 12:
            corpus.remove(("b-10", "b text 10"))
        if night == 16:  # back in the night in which its segment is joined with seven others
            corpus.append(("b-10", "b text 10"))
        restored += collection.night(corpus).restored
        assert collection.live() == dict(corpus)
    assert restored == 1
    assert len(collection.embedded) == len(set(collection.embedded)) == 150
    sizes = [entry.live_rows for entry in collection.base.segments]
    assert sorted(sizes) == [2] * 6 + [16] * 3 + [45] * 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30))
def test_hashes_that_share_a_half_are_told_apart(halves: list[tuple[int, int]]) -> None:
    hashes = pa.array([np.array(pair, np.uint64).tobytes() for pair in halves], HASH)
    expected = [pair not in halves[:number] for number, pair in enumerate(halves)]
    assert first_of_each(hashes).tolist() == expected


def test_duplicates_are_quarantined_with_their_bytes(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    collection.night([("a", "first"), ("b", "other"), ("a", "second")])
    rows = pq.read_table(tmp_path / "store" / layout.unit_quarantine("run-1", "duplicates")).to_pylist()
    assert [json.loads(row["raw"])["text"] for row in rows] == ["second"]
    assert "duplicate id: an earlier passage has 'a'" in rows[0]["reason"]
    assert collection.live() == {"a": "first", "b": "other"}
    assert passage_key("a", "t", "first") != passage_key("a", "t", "second")
