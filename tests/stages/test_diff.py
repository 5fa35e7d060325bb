"""Scan and diff against a model of the collection made of plain dictionaries."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.fingerprint import content_hash, passage_key
from dpr.formats import layout
from dpr.formats.deletions import read_deletions
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import put_object
from dpr.formats.records import ObjectRef
from dpr.formats.segment import HASH, PASSAGE_COLUMNS, passage_schema, write_segment
from dpr.recipe import CorpusConfig
from dpr.retired import RETIRED_FROM
from dpr.stages.diff import Changes, DiffUnit, find_changes
from dpr.stages.held_rows import HeldRows, Rows
from dpr.stages.planned_segments import PlannedSegment, SegmentCut, plan_segments
from dpr.stages.scan import ScanResult, ScanUnit, load_known_keys, scan_slice
from dpr.store import LocalStore

Pairs = Sequence[tuple[str, str]]
"""A corpus: (id, text) of each row."""


@dataclass(frozen=True)
class State:
    """What a snapshot holds."""

    segments: tuple[SegmentEntry, ...] = ()
    deletions: ObjectRef | None = None
    next_number: int = 0


@dataclass
class PlainNights:
    """The store side of nightly runs, with segments whose vectors are all zero."""

    folder: Path
    compact_below: float = 0.5
    segment_rows: int = 7
    max_duplicates: int = 1000
    states: list[State] = field(default_factory=lambda: [State()])
    """Oldest first; before the first night there is nothing."""
    nights: int = 0
    scans: dict[str, ScanResult] = field(default_factory=dict)
    embedded: list[bytes] = field(default_factory=list)
    """Content hash of each passage that a night embedded."""

    def __post_init__(self) -> None:
        self.store = LocalStore(self.folder / "store")

    @property
    def base(self) -> State:
        return self.states[-1]

    def roll_back(self, number: int) -> None:
        """Publish an earlier state again."""
        self.states.append(self.states[number % len(self.states)])

    def forget(self) -> None:
        """Collect all earlier states as garbage."""
        self.states = [self.states[-1]]

    def retired(self) -> list[SegmentEntry]:
        """Segments of earlier states that the base does not hold."""
        held = {entry.object.name for entry in self.base.segments}
        older = {entry.object.name: entry for state in self.states for entry in state.segments}
        entries = [entry for name, entry in sorted(older.items()) if name not in held]
        return [
            entry.model_copy(update={"number": RETIRED_FROM + place, "dead_rows": entry.rows, "dead_digest": ""})
            for place, entry in enumerate(entries)
        ]

    def night(self, corpus: Pairs) -> Changes:
        """Scan a corpus, compare it with the base, and make the planned segments.

        The same corpus lies in the same file on any night, so what was scanned of it once is not scanned again.
        """
        self.nights += 1
        run_id = f"run-{self.nights}"
        rows = "".join(json.dumps({"id": i, "title": "t", "text": t}) + "\n" for i, t in corpus)
        path = self.folder / f"corpus-{content_hash('', rows).hex()}.jsonl"
        if not path.exists():
            path.write_text(rows)
        config = CorpusConfig(path=str(path), format="jsonl", slice_bytes=1000)
        slices = plan_slices(config).slices
        retired = self.retired()
        known = load_known_keys(self.store.url, [*self.base.segments, *retired])
        scans = []
        for slice_ in slices:
            stem = layout.scan("enc", slice_.slice_id(config))
            if stem not in self.scans:
                unit = ScanUnit(layout.record(stem), stem, slice_, slice_.size_bytes)
                self.scans[stem] = scan_slice(self.store, config, known, unit)
            scans.append(self.scans[stem])
        changes = find_changes(
            self.store,
            DiffUnit(
                record="",
                run_id=run_id,
                rows=0,
                read_bytes=0,
                encoder_id="enc",
                corpus=config,
                slices=tuple(slices),
                scans=tuple(scans),
                base=self.base.segments,
                retired=tuple(retired),
                base_deletions=self.base.deletions,
                next_segment_number=self.base.next_number,
                segment_rows=self.segment_rows,
                compact_below=self.compact_below,
                max_duplicates=self.max_duplicates,
            ),
        )
        names = {entry.number: entry.object.name for entry in changes.sources}
        made: list[SegmentEntry] = []
        for planned in changes.planned:
            made.append(self._make(planned, changes, path, names))
            names[planned.number] = made[-1].object.name
        segments = sorted([*changes.kept, *made], key=lambda entry: entry.number)
        self.states.append(State(tuple(segments), changes.deletions, changes.next_segment_number))
        return changes

    def _make(self, planned: PlannedSegment, changes: Changes, corpus: Path, names: dict[int, str]) -> SegmentEntry:
        assert changes.changes is not None
        rows = pq.ParquetFile(self.folder / "store" / changes.changes.name).read_row_group(planned.group).to_pylist()
        passages = []
        for row in rows:
            if planned.kind == "embed":
                assert row["source"] == -1
                self.embedded.append(row["content_hash"])
            else:
                source = pq.read_table(self.folder / "store" / names[row["source"]], columns=["content_hash"])
                assert row["content_hash"] in source["content_hash"].to_pylist()
            passages.append(self._passage(row, corpus, names))
            assert (passages[-1]["key"], passages[-1]["content_hash"]) == (row["key"], row["content_hash"])
        path = self.folder / "segment.parquet"
        columns = {name: [passage[name] for passage in passages] for name in PASSAGE_COLUMNS}
        table = passage_schema().empty_table().from_pydict(columns, schema=passage_schema())
        write_segment(path, table, np.zeros((len(passages), 2), np.float16), "enc")
        ref = put_object(self.store, layout.segment("enc", planned.segment_id), path)
        return SegmentEntry(number=planned.number, segment_id=planned.segment_id, rows=planned.rows, object=ref)

    def _passage(self, row: dict[str, Any], corpus: Path, names: dict[int, str]) -> dict[str, Any]:
        """What a row of the changes file stands for: a line of the corpus, or a row of another segment."""
        if row["slice"] >= 0:
            line = json.loads(corpus.read_bytes()[row["position"] :].splitlines()[0])
            key = passage_key(line["id"], line["title"], line["text"])
            return line | {"key": key, "content_hash": content_hash(line["title"], line["text"])}
        source = pq.read_table(self.folder / "store" / names[row["source"]], columns=list(PASSAGE_COLUMNS)).to_pylist()
        return next(passage for passage in source if passage["key"] == row["key"])

    def live(self) -> dict[str, str]:
        """Id → text of all live rows, each id once."""
        deletions = read_deletions(self.store, self.base.deletions)
        found: list[tuple[str, str]] = []
        for entry in self.base.segments:
            table = pq.read_table(self.folder / "store" / entry.object.name, columns=["id", "text"]).to_pylist()
            dead = set(deletions.dead_rows(entry).tolist())
            found += [(row["id"], row["text"]) for number, row in enumerate(table) if number not in dead]
        assert len(dict(found)) == len(found)
        return dict(found)

    def held(self) -> set[bytes]:
        """Content hashes of all rows of all segments of all states."""
        entries = {entry.object.name for state in self.states for entry in state.segments}
        tables = [pq.read_table(self.folder / "store" / name, columns=["content_hash"]) for name in entries]
        return {hash_ for table in tables for hash_ in table["content_hash"].to_pylist()}


corpora = st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from("uvwxyz")), min_size=1, max_size=25)
acts = st.lists(corpora | st.tuples(st.sampled_from(["again", "roll back", "forget"]), st.integers(0, 100)), max_size=6)
"""What a night finds: another corpus, or that of an earlier night, perhaps after a rollback or a garbage collection."""


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(corpora, acts, st.sampled_from([0.0, 0.5, 1.0]))
# the second corpus is scanned while its rows are held, and comes back when they are not: it must be read again
@example([("a", "u"), ("b", "v")], [[("a", "u"), ("c", "w")], [("d", "x")], ("forget", 1)], 1.0)
def test_any_history_ends_in_the_last_corpus_and_embeds_nothing_that_is_held(
    tmp_path_factory: pytest.TempPathFactory, first: Pairs, later: list[Any], compact_below: float
) -> None:
    nights = PlainNights(tmp_path_factory.mktemp("history"), compact_below)
    past: list[Pairs] = []
    for corpus in [first, *later]:
        if isinstance(corpus, tuple):
            act, number = corpus
            if act == "roll back":
                nights.roll_back(number)
            elif act == "forget":
                nights.forget()
            corpus = past[number % len(past)]
        held = nights.held()
        nights.embedded.clear()
        changes = nights.night(corpus)
        past.append(corpus)
        expected: dict[str, str] = {}
        for passage_id, text in corpus:
            expected.setdefault(passage_id, text)  # the first with an id is kept
        assert nights.live() == expected
        assert changes.rows == len(expected)
        assert changes.duplicates == len(corpus) - len(expected)
        assert len(set(nights.embedded)) == len(nights.embedded) == changes.embed_rows
        assert not held & set(nights.embedded)


def test_an_edit_costs_one_passage_and_its_revert_none(tmp_path: Path) -> None:
    nights = PlainNights(tmp_path, compact_below=0.0)
    corpus = [(f"id-{number}", f"text {number}") for number in range(40)]
    first = nights.night(corpus)
    assert (first.new, first.embed_rows, first.dead) == (40, 40, 0)
    edited = nights.night([("id-0", "other"), *corpus[1:]])
    assert (edited.new, edited.embed_rows, edited.dead, edited.restored) == (1, 1, 1, 0)
    reverted = nights.night(corpus)
    assert (reverted.new, reverted.embed_rows, reverted.dead, reverted.restored) == (0, 0, 1, 1)
    renamed = nights.night([("new-name", "text 0"), *corpus[1:]])
    assert (renamed.new, renamed.embed_rows, renamed.borrowed, renamed.dead) == (1, 0, 1, 1)


@pytest.mark.slow
def test_small_segments_of_many_nights_are_joined_without_embedding(tmp_path: Path) -> None:
    nights = PlainNights(tmp_path, segment_rows=60)
    corpus = [(f"id-{number}", f"text {number}") for number in range(90)]
    nights.night(corpus)
    restored = 0
    for night in range(30):
        corpus += [(f"{name}-{night}", f"{name} text {night}") for name in ("a", "b")]
        if night == 12:
            corpus.remove(("b-10", "b text 10"))
        if night == 16:  # back in the night in which its segment is joined with seven others
            corpus.append(("b-10", "b text 10"))
        restored += nights.night(corpus).restored
        assert nights.live() == dict(corpus)
    assert restored == 1
    assert len(nights.embedded) == len(set(nights.embedded)) == 150
    sizes = [entry.live_rows for entry in nights.base.segments]
    assert sorted(sizes) == [2] * 6 + [16] * 3 + [45] * 2


def test_a_snapshot_has_one_deletion_set_for_all_its_segments(tmp_path: Path) -> None:
    nights = PlainNights(tmp_path, compact_below=0.0)
    corpus = [(f"id-{number}", f"text {number}") for number in range(40)]
    nights.night(corpus)
    assert nights.base.deletions is None
    for night in range(1, 4):
        nights.night(corpus[:: night + 1])
        assert sum(entry.dead_rows > 0 for entry in nights.base.segments) > 3
        assert len(list(nights.store.list(layout.DELETIONS))) == night


def test_duplicates_are_quarantined_with_their_bytes(tmp_path: Path) -> None:
    nights = PlainNights(tmp_path)
    changes = nights.night([("a", "first"), ("b", "other"), ("a", "second")])
    assert changes.duplicate_rows is not None
    rows = pq.read_table(tmp_path / "store" / changes.duplicate_rows.name).to_pylist()
    assert [json.loads(row["raw"])["text"] for row in rows] == ["second"]
    assert "duplicate id: an earlier passage has 'a'" in rows[0]["reason"]
    assert nights.live() == {"a": "first", "b": "other"}
    assert passage_key("a", "t", "first") != passage_key("a", "t", "second")


def test_too_many_duplicates_stop_the_diff(tmp_path: Path) -> None:
    nights = PlainNights(tmp_path, max_duplicates=1)
    nights.night([("a", "first"), ("a", "second")])
    with pytest.raises(CorpusError, match="2 of 3 passages have the id of an earlier one"):
        nights.night([("a", "first"), ("a", "second"), ("a", "third")])


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (0, []),
        (1_500, [1_500]),
        (5_100, [1_020] * 5),  # more than the three that are needed
        (20_000, [1_250] * 16),
        (34_000, [2_000] * 17),
        (100_000, [1_000] * 16 + [2_000] * 42),
    ],
)
def test_a_small_night_is_spread_over_sixteen_segments_and_a_large_one_begins_with_small_ones(
    rows: int, sizes: list[int]
) -> None:
    numbers = np.arange(rows)
    unique = pa.array([row.to_bytes(16, "big") for row in range(rows)], HASH)
    none = HeldRows(np.empty(0, np.int32), pa.array([], HASH), pa.array([], HASH), np.empty(0, np.bool_))
    new = Rows(np.zeros(rows, np.int32), numbers, unique, unique, np.zeros(rows, np.int8))
    planned, _ = plan_segments(SegmentCut("e", 2_000), new, none, np.empty(0, np.bool_), 0)
    assert [segment.rows for segment, _ in planned] == sizes
    assert [row for _, table in planned for row in table["position"].to_pylist()] == numbers.tolist()
