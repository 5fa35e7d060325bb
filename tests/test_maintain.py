"""Verifying finds every kind of damage, and comparing says what happened to passages."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.formats import layout
from dpr.errors import IntegrityError, MissingObjectError
from dpr.operations.verify import compare, verify
from dpr.formats.records import file_sha256
from dpr.search.retrieve import Retriever
from dpr.formats.segment import PASSAGE_COLUMNS, passage_schema, write_segment
from dpr.formats.snapshots import numbers, rollback
from dpr.store import LocalStore
from tests.nights import Nights
from tests.tiny import make_encoder


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    """Two nights: 30 passages in two segments, then one edit and one new passage."""
    folder = tmp_path_factory.mktemp("maintain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPR_CACHE", str(folder / "cache"))
        made = Nights(folder / "nights", make_encoder(folder / "encoder"))
        made.night()
        made.corpus |= {"p001": "w1 w2", "new": "w3"}
        made.night()
        yield made


class Copy:
    """A copy of the store, to be damaged."""

    def __init__(self, source: str, folder: Path) -> None:
        self.folder = folder / "store"
        shutil.copytree(source, self.folder)
        self.store = LocalStore(self.folder)
        self.path = self.folder / layout.snapshot(2)
        self.document: dict[str, Any] = json.loads(self.path.read_text())
        self.body: dict[str, Any] = self.document["body"]

    def said(self, *, deep: bool) -> list[str]:
        self.path.write_text(json.dumps(self.document))
        return [f"{problem.object}: {problem.said}" for problem in verify(self.store, [2], deep=deep)[1]]

    def file(self, ref: dict[str, Any]) -> Path:
        return self.folder / ref["name"]

    def record_as_it_is(self, ref: dict[str, Any]) -> None:
        """Make the document agree with the bytes, so that only what they mean can be wrong."""
        ref["sha256"], ref["size_bytes"] = file_sha256(self.file(ref)), self.file(ref).stat().st_size

    def change_segment(self, number: int, change: Callable[[list[dict[str, Any]], np.ndarray], object]) -> None:
        ref = self.body["segments"][number]["object"]
        table = pq.read_table(self.file(ref))
        rows = table.select(list(PASSAGE_COLUMNS)).to_pylist()
        vectors_ND = np.array(table["embedding"].to_pylist(), np.float16)
        change(rows, vectors_ND)
        passages = pa.Table.from_pylist(rows, schema=passage_schema())
        write_segment(self.file(ref), passages, vectors_ND, self.body["encoder_id"])
        self.record_as_it_is(ref)


@pytest.fixture
def copy(nights: Nights, tmp_path: Path) -> Copy:
    return Copy(nights.store.url, tmp_path)


KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "segment": lambda body: body["segments"][0]["object"],
    "deletion set": lambda body: body["segments"][0]["deletions"]["object"],
    "codebook": lambda body: body["codebook"]["object"],
    "index": lambda body: body["index"]["shards"][0]["object"],
}


def test_a_sound_store_has_no_problems(nights: Nights) -> None:
    for deep in (False, True):
        checked, problems = verify(nights.store, [1, 2], deep=deep)
        assert problems == []
        # codebooks, indexes, segments and their parts, a deletion set
        assert checked == len({ref for number in (1, 2) for ref in _names(nights, number)})


def _names(nights: Nights, number: int) -> Iterator[str]:
    body = json.loads((Path(nights.store.url) / layout.snapshot(number)).read_text())["body"]
    yield from (body["codebook"]["object"]["name"], body["index"]["shards"][0]["object"]["name"])
    for segment in body["segments"]:
        yield segment["object"]["name"]
        yield layout.part(body["codebook"]["codebook_id"], segment["segment_id"])
        if segment["deletions"]:
            yield segment["deletions"]["object"]["name"]


def test_a_damaged_part_is_found(copy: Copy) -> None:
    name = layout.part(copy.body["codebook"]["codebook_id"], copy.body["segments"][0]["segment_id"])
    path = copy.file({"name": name})
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert copy.said(deep=False) == []
    (said,) = copy.said(deep=True)
    assert said.startswith(f"{name}: ")
    assert "sha256" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_object_is_found(copy: Copy, kind: str) -> None:
    ref = KINDS[kind](copy.body)
    copy.file(ref).unlink()
    for deep in (False, True):
        (said,) = copy.said(deep=deep)
        assert said.startswith(f"{ref['name']}: ")
        assert "is not in store" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_object_is_found(copy: Copy, kind: str) -> None:
    ref = KINDS[kind](copy.body)
    size = ref["size_bytes"]
    copy.file(ref).write_bytes(copy.file(ref).read_bytes()[:-1])
    for deep in (False, True):
        (said,) = copy.said(deep=deep)
        assert said.startswith(f"{ref['name']}: ")
        assert f"{size - 1} bytes" in said
        assert f"{size}" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_by_looking_deep(copy: Copy, kind: str) -> None:
    ref = KINDS[kind](copy.body)
    data = bytearray(copy.file(ref).read_bytes())
    data[len(data) // 2] ^= 1
    copy.file(ref).write_bytes(data)
    assert copy.said(deep=False) == []
    (said,) = copy.said(deep=True)
    assert said.startswith(f"{ref['name']}: ")
    assert "sha256" in said


@pytest.mark.parametrize("kind", ["codebook", "segment"])
def test_what_another_encoder_made_is_found_and_never_searched(copy: Copy, kind: str) -> None:
    ref = (copy.body["codebook"] if kind == "codebook" else copy.body["segments"][0])["object"]
    mine, other = copy.body["encoder_id"], "0123456789abcdef"
    elsewhere = copy.folder / ref["name"].replace(mine, other)
    elsewhere.parent.mkdir(parents=True)
    shutil.copy(copy.file(ref), elsewhere)  # sound, and where the snapshot says
    ref["name"] = ref["name"].replace(mine, other)
    (said,) = copy.said(deep=False)
    assert f"snapshot of encoder {mine} names" in said
    assert other in said
    with pytest.raises(IntegrityError, match=f"snapshot of encoder {mine} names"):
        Retriever.open(copy.store)


def test_an_index_of_other_dimensions_is_never_searched(copy: Copy) -> None:
    shard = copy.body["index"]["shards"][0]["object"]
    faiss.write_index(faiss.index_factory(24, "IDMap,Flat", faiss.METRIC_INNER_PRODUCT), str(copy.file(shard)))
    copy.record_as_it_is(shard)
    copy.said(deep=False)
    with pytest.raises(IntegrityError, match="has 24 dimensions, and encoder"):
        Retriever.open(copy.store)


def test_wrong_counts_are_found(copy: Copy) -> None:
    copy.body["passages"] += 1
    (said,) = copy.said(deep=False)
    assert "would hold 32 passages, its segments 31 live rows and its index 31" in said

    copy.body["segments"][0]["rows"] += 1
    copy.body["index"]["rows"] += 1
    copy.body["index"]["shards"][0]["rows"] += 1
    assert copy.said(deep=False) == []  # it agrees with itself
    (said,) = copy.said(deep=True)
    assert "15 rows, its record says 16" in said


def test_a_deletion_set_of_another_size_is_found(copy: Copy) -> None:
    copy.body["segments"][0]["deletions"]["rows"] -= 1
    copy.body["passages"] += 1
    copy.body["index"]["rows"] += 1
    copy.body["index"]["shards"][0]["rows"] += 1
    (said,) = copy.said(deep=True)
    assert "leaves 14 live rows, the snapshot says 15" in said


def test_an_index_of_other_rows_is_found(copy: Copy) -> None:
    copy.body["segments"][1]["number"] = copy.body["next_segment_number"]
    copy.body["next_segment_number"] += 1
    (said,) = copy.said(deep=True)
    assert "the ids in the index are not those of the live rows" in said


@pytest.mark.parametrize("column", ["text", "title", "id"])
def test_a_key_that_is_not_that_of_its_passage_is_found(copy: Copy, column: str) -> None:
    copy.change_segment(1, lambda rows, _: rows[3].update({column: "changed"}))
    assert copy.said(deep=False) == []
    (said,) = copy.said(deep=True)
    assert "does not have its key" in said


def test_an_id_that_is_there_twice_is_found(copy: Copy) -> None:
    table = pq.read_table(copy.file(copy.body["segments"][0]["object"]), columns=list(PASSAGE_COLUMNS))
    first = table.to_pylist()
    copy.change_segment(1, lambda rows, _: rows[3].update(first[5]))
    (said,) = copy.said(deep=True)
    assert "a passage id is there twice: row 5 of segment number 0 and row 3 of segment number 1" in said


def test_a_vector_that_is_not_finite_is_found(copy: Copy) -> None:
    copy.change_segment(1, lambda _, vectors_ND: vectors_ND.put(40, np.nan))
    (said,) = copy.said(deep=True)
    assert "not finite" in said


def test_comparing_says_what_happened_to_passages(tmp_path: Path, nights: Nights) -> None:
    history = Nights(tmp_path / "nights", Path(nights.recipe.encoder.model))
    corpora = []
    for night in range(5):
        match night:
            case 1:  # an edit, a removal, an addition
                history.corpus |= {"p001": "w1", "new": "w2"}
                del history.corpus["p002"]
            case 2:  # a revert, a rename
                history.corpus["renamed"] = history.corpus.pop("p003")
                history.corpus["p001"] = corpora[0]["p001"]
            case 3:  # most of a segment dies, so the rest is compacted
                history.corpus = dict(list(history.corpus.items())[9:])
            case 4:
                history.corpus |= dict(list(corpora[0].items())[:3])
        corpora.append(dict(history.corpus))
        history.night()
    corpora.append(corpora[1])
    rollback(history.store, 2)
    assert numbers(history.store) == [1, 2, 3, 4, 5, 6]
    for a, before in enumerate(corpora, 1):
        for b, after in enumerate(corpora, 1):
            found = compare(history.store, a, b)
            assert found.added == sorted(after.keys() - before.keys())
            assert found.removed == sorted(before.keys() - after.keys())
            assert found.changed == sorted(i for i in before.keys() & after.keys() if before[i] != after[i])
    with pytest.raises(MissingObjectError, match="has no snapshot 7; it has 1 to 6"):
        compare(history.store, 1, 7)
    assert list(history.store.list("readers/")) == []
