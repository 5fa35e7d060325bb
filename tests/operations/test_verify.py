"""Verifying finds every kind of damage, and nothing that was damaged is read by a run."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.errors import IntegrityError, MissingObjectError
from dpr.formats import layout
from dpr.formats.deletions import read_deletions
from dpr.formats.objects import file_sha256
from dpr.formats.records import ObjectRef, Result, read_record
from dpr.formats.segment import PASSAGE_COLUMNS, passage_schema, write_segment
from dpr.operations.verify import verify
from dpr.search.retrieve import Retriever
from dpr.stages.find_truth import TruthResult, read_neighbours
from dpr.stages.held_rows import read_corpus_rows
from dpr.stages.question_vectors import QuestionVectors, read_questions
from dpr.stages.scan import ScanResult
from dpr.store import LocalStore, Store
from tests.collection import Collection, FirstNights
from tests.conftest import let_no_row_be_loose
from tests.formats.samples import DAMAGE, cut_short, flip_a_bit


@pytest.fixture(scope="module")
def nights(first_nights: FirstNights, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Two nights: 30 passages in two segments, then one edit and one new passage."""
    nights = first_nights.copy(tmp_path_factory.mktemp("verify") / "nights")
    nights.corpus |= {"p001": "w1 w2", "new": "w3"}
    with pytest.MonkeyPatch.context() as patch:
        let_no_row_be_loose(patch)
        nights.night()
    return nights


class Copy:
    """A copy of the store, to be damaged."""

    def __init__(self, source: str, folder: Path) -> None:
        self.folder = folder / "store"
        shutil.copytree(source, self.folder)
        self.store = LocalStore(self.folder)
        self.path = self.folder / layout.snapshot(2)
        self.document: dict[str, Any] = json.loads(self.path.read_text())
        self.body: dict[str, Any] = self.document["body"]

    def problems(self, *, deep: bool) -> list[str]:
        self.path.write_text(json.dumps(self.document))
        return [f"{problem.object}: {problem.reason}" for problem in verify(self.store, [2], deep=deep)[1]]

    def file(self, ref: dict[str, Any]) -> Path:
        return self.folder / ref["name"]

    def record_as_it_is(self, ref: dict[str, Any]) -> None:
        """Make the document agree with the bytes, so that only what they mean can be wrong."""
        ref["sha256"], ref["size_bytes"] = file_sha256(self.file(ref)), self.file(ref).stat().st_size

    def part(self, segment: int) -> str:
        """Return the stem of a segment's part."""
        return layout.part(
            self.body["codebook"]["object"]["sha256"], self.body["segments"][segment]["object"]["sha256"]
        )

    def change_segment(
        self, number: int, change: Callable[[list[dict[str, Any]], npt.NDArray[np.float16]], object]
    ) -> None:
        ref = self.body["segments"][number]["object"]
        table = pq.read_table(self.file(ref))
        rows = table.select(list(PASSAGE_COLUMNS)).to_pylist()
        vectors_ND = np.array(table["embedding"].to_pylist(), np.float16)
        change(rows, vectors_ND)
        passages = pa.Table.from_pylist(rows, schema=passage_schema())
        write_segment(self.file(ref), passages, vectors_ND, self.body["encoder_id"])
        self.record_as_it_is(ref)


@pytest.fixture
def copy(nights: Collection, tmp_path: Path) -> Copy:
    return Copy(nights.recipe.store, tmp_path)


KINDS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "segment": lambda body: body["segments"][0]["object"],
    "deletion set": lambda body: body["deletions"],
    "codebook": lambda body: body["codebook"]["object"],
    "old shard": lambda body: body["index"]["shards"][0]["object"],
    "new shard": lambda body: body["index"]["shards"][1]["object"],
    "lexical part": lambda body: body["lexical"]["parts"][0]["object"],
}


def objects_of(copy: Copy, number: int) -> Iterator[str]:
    """Codebook, index shards, segments and their parts, lexical ones included, and a deletion set."""
    body = json.loads((copy.folder / layout.snapshot(number)).read_text())["body"]
    yield body["codebook"]["object"]["name"]
    yield from (shard["object"]["name"] for shard in body["index"]["shards"])
    yield from (part["object"]["name"] for part in body["lexical"]["parts"])
    for segment in body["segments"]:
        yield segment["object"]["name"]
        stem = layout.part(body["codebook"]["object"]["sha256"], segment["object"]["sha256"])
        yield json.loads((copy.folder / layout.record(stem)).read_text())["part"]["name"]
    if body["deletions"]:
        yield body["deletions"]["name"]


def test_a_sound_store_has_no_problems(copy: Copy) -> None:
    for deep in (False, True):
        checked, problems = verify(copy.store, [1, 2], deep=deep)
        assert problems == []
        assert checked == len({name for number in (1, 2) for name in objects_of(copy, number)}) == 13
    assert list(copy.store.list("readers/")) == []


def test_a_snapshot_that_is_not_there_cannot_be_verified(copy: Copy) -> None:
    with pytest.raises(MissingObjectError, match="has no snapshot 3"):
        verify(copy.store, [3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_object_is_found(copy: Copy, kind: str) -> None:
    ref = KINDS[kind](copy.body)
    copy.file(ref).unlink()
    for deep in (False, True):
        (problem,) = copy.problems(deep=deep)
        assert problem.startswith(f"{ref['name']}: ")
        assert "is not in store" in problem


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_object_is_found(copy: Copy, kind: str) -> None:
    ref = KINDS[kind](copy.body)
    cut_short(copy.file(ref))
    for deep in (False, True):
        (problem,) = copy.problems(deep=deep)
        assert problem.startswith(f"{ref['name']}: ")
        assert f"{ref['size_bytes'] - 1} bytes" in problem
        assert f"{ref['size_bytes']}" in problem


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_found_by_looking_deep(copy: Copy, kind: str) -> None:
    ref = KINDS[kind](copy.body)
    flip_a_bit(copy.file(ref))
    assert copy.problems(deep=False) == []
    (problem,) = copy.problems(deep=True)
    assert problem.startswith(f"{ref['name']}: ")
    assert "sha256" in problem


def test_a_damaged_part_is_found(copy: Copy) -> None:
    (name,) = (name for name in objects_of(copy, 2) if name.startswith(f"{copy.part(0)}-"))
    flip_a_bit(copy.folder / name)
    assert copy.problems(deep=False) == []
    (problem,) = copy.problems(deep=True)
    assert problem.startswith(f"{name}: ")
    assert "sha256" in problem


def test_one_problem_hides_no_other(copy: Copy) -> None:
    """The rest is verified even if a document or a record cannot be read."""
    first = copy.folder / layout.snapshot(1)
    first.write_text(first.read_text().replace('"sha256":"', '"sha256":"../'))
    record = layout.record(copy.part(1))
    (copy.folder / record).write_text("{}")
    copy.file(copy.body["index"]["shards"][0]["object"]).unlink()
    problems = verify(copy.store, [1, 2])[1]
    assert [(problem.snapshot, problem.object) for problem in problems] == [
        (1, layout.snapshot(1)),
        (2, record),
        (2, copy.body["index"]["shards"][0]["object"]["name"]),
    ]
    assert "is not a snapshot document" in problems[0].reason
    assert "is not a record of this version; delete it" in problems[1].reason


@pytest.mark.parametrize("kind", ["codebook", "segment"])
def test_what_another_encoder_made_is_found_and_never_searched(copy: Copy, kind: str) -> None:
    ref = KINDS[kind](copy.body)
    own, other = copy.body["encoder_id"], "0123456789abcdef"
    elsewhere = copy.folder / ref["name"].replace(own, other)
    elsewhere.parent.mkdir(parents=True)
    shutil.copy(copy.file(ref), elsewhere)  # undamaged, and where the snapshot names it
    ref["name"] = ref["name"].replace(own, other)
    (problem,) = copy.problems(deep=False)
    assert f"snapshot of encoder {own} names" in problem
    assert other in problem
    with pytest.raises(IntegrityError, match=f"snapshot of encoder {own} names"):
        Retriever.open(copy.store)


def count_one_more(copy: Copy) -> None:
    copy.body["passages"] += 1
    copy.body["index"]["rows"] += 1
    copy.body["index"]["shards"][0]["live_rows"] += 1


def test_wrong_counts_are_found(copy: Copy) -> None:
    copy.body["passages"] += 1
    (problem,) = copy.problems(deep=False)
    assert "would hold 32 passages, its segments 31 live rows and its index 31" in problem

    copy.body["passages"] -= 1
    copy.body["segments"][0]["rows"] += 1
    count_one_more(copy)
    assert copy.problems(deep=False) == []  # it agrees with itself
    (problem,) = copy.problems(deep=True)
    assert "15 rows, its record says 16" in problem


@pytest.mark.parametrize("count", ["rows", "live_rows"])
def test_wrong_counts_of_a_shard_are_found(copy: Copy, count: str) -> None:
    """The counts agree with each other, but not with the shards."""
    old, new = copy.body["index"]["shards"]
    old[count] += 1
    new[count] -= 1
    assert copy.problems(deep=False) == []
    (problem,) = copy.problems(deep=True)
    assert "holds 30 vectors of which 29 live, the snapshot says" in problem


def test_a_deletion_set_of_another_size_is_found(copy: Copy) -> None:
    copy.body["segments"][0]["dead_rows"] -= 1
    count_one_more(copy)
    assert copy.problems(deep=False) == []
    (problem,) = copy.problems(deep=True)
    assert "names 1 dead rows of segment" in problem
    assert "they are not the 0 that the snapshot counts" in problem


def test_a_deletion_set_of_other_rows_is_found(copy: Copy) -> None:
    """Another set of equally many rows: size and digest are right, except for the digest that the segment carries."""
    path = copy.file(copy.body["deletions"])
    table = pq.read_table(path)
    assert table.to_pylist() == [{"segment": 0, "row": 1}]
    pq.write_table(table.set_column(1, table.schema.field("row"), pa.array([2], pa.uint32())), path)
    copy.record_as_it_is(copy.body["deletions"])
    assert copy.problems(deep=False) == []
    (problem,) = copy.problems(deep=True)
    assert "they are not the 1 that the snapshot counts" in problem


def test_words_of_another_segment_are_found(copy: Copy) -> None:
    parts = copy.body["lexical"]["parts"]
    parts[0]["object"], parts[2]["object"] = parts[2]["object"], parts[0]["object"]
    assert copy.problems(deep=False) == []
    (problem,) = copy.problems(deep=True)
    assert "rows, and its segment" in problem


def test_an_index_of_other_rows_is_found(copy: Copy) -> None:
    for entry, field in ((copy.body["segments"][1], "number"), (copy.body["lexical"]["parts"][1], "segment")):
        entry[field] = copy.body["next_segment_number"]
    copy.body["next_segment_number"] += 1
    (problem,) = copy.problems(deep=True)
    assert "vectors of which" in problem


@pytest.mark.parametrize("column", ["text", "title", "id"])
def test_a_key_that_is_not_that_of_its_passage_is_found(copy: Copy, column: str) -> None:
    copy.change_segment(1, lambda rows, _: rows[3].update({column: "changed"}))
    assert copy.problems(deep=False) == []
    (problem,) = copy.problems(deep=True)
    assert "does not have its key" in problem


def test_an_id_that_is_there_twice_is_found(copy: Copy) -> None:
    table = pq.read_table(copy.file(copy.body["segments"][0]["object"]), columns=list(PASSAGE_COLUMNS))
    first = table.to_pylist()
    copy.change_segment(1, lambda rows, _: rows[3].update(first[5]))
    (problem,) = copy.problems(deep=True)
    assert "two live rows have the same passage id: row 5 of segment number 0 and row 3 of segment number 1" in problem


def test_a_vector_that_is_not_finite_is_found(copy: Copy) -> None:
    copy.change_segment(1, lambda _, vectors_ND: vectors_ND.put(40, np.nan))
    (problem,) = copy.problems(deep=True)
    assert "not finite" in problem


def test_a_segment_of_another_encoder_is_found(copy: Copy) -> None:
    ref = copy.body["segments"][0]["object"]
    table = pq.read_table(copy.file(ref))
    vectors_ND = np.array(table["embedding"].to_pylist(), np.float16)
    write_segment(copy.file(ref), table.select(list(PASSAGE_COLUMNS)), vectors_ND, "another")
    copy.record_as_it_is(ref)
    (problem,) = copy.problems(deep=True)
    assert "is of encoder another, not" in problem


def test_vectors_that_no_reader_would_find_are_found(copy: Copy) -> None:
    """Another tool rewrote the segment: every row is right, but its vectors are in pages of 8 rows."""
    ref = copy.body["segments"][0]["object"]
    pq.write_table(pq.read_table(copy.file(ref)), copy.file(ref), compression="none", data_page_size=512)
    copy.record_as_it_is(ref)
    assert copy.problems(deep=False) == []
    (problem,) = copy.problems(deep=True)
    assert "keeps its vectors in another form" in problem


@pytest.mark.usefixtures("no_loose_rows")
def test_what_a_shard_leaves_out_is_verified_and_read_verified(nights: Collection, tmp_path: Path) -> None:
    """A shard with many dead rows is rewritten without them; the next night must know which it left out."""
    history = nights.copy(tmp_path / "nights")
    history.corpus |= {f"p{n:03d}": f"w{n}" for n in range(10)}
    (left_out,) = {shard.left_out for shard in history.night().snapshot.body.index.shards} - {None}
    assert verify(history.store, [3], deep=True)[1] == []
    flip_a_bit(history.file(left_out.name))
    assert verify(history.store, [3])[1] == []
    (problem,) = verify(history.store, [3], deep=True)[1]
    assert (problem.object, "sha256" in problem.reason) == (left_out.name, True)
    history.corpus["another"] = "w8"
    with pytest.raises(IntegrityError, match=f"{left_out.name} .*its record says"):
        history.night()
    history.file(left_out.name).unlink()
    (problem,) = verify(history.store, [3])[1]
    assert (problem.object, "is not in store" in problem.reason) == (left_out.name, True)


def only(store: Store, prefix: str, kind: type[Result]) -> Any:
    """Return the result in the first record below a prefix."""
    name = next(info.name for info in store.list(prefix) if info.name.endswith(".json"))
    return read_record(store, name, kind)


def truth_of(copy: Copy, read: bool) -> Any:
    folder = f"truth/{copy.body['encoder_id']}/{copy.body['gate']['questions_id']}"
    sha256 = copy.body["segments"][0]["object"]["sha256"]
    result = only(copy.store, f"{folder}/{sha256[: layout.SHORT_DIGEST]}", TruthResult)
    return next(read_neighbours(copy.store, [result], copy.body["gate"]["questions"])) if read else result.truth


def questions_of(copy: Copy, read: bool) -> Any:
    folder = f"truth/{copy.body['encoder_id']}/{copy.body['gate']['questions_id']}"
    ref = only(copy.store, f"{folder}/vectors.json", QuestionVectors).vectors
    return read_questions(copy.store, ref) if read else ref


def keys_of(copy: Copy, read: bool) -> Any:
    scanned = only(copy.store, f"scans/{copy.body['encoder_id']}/", ScanResult)
    return read_corpus_rows(copy.store, [scanned]) if read else scanned.keys


def deletions_of(copy: Copy, read: bool) -> Any:
    ref = ObjectRef.model_validate(copy.body["deletions"])
    return read_deletions(copy.store, ref) if read else ref


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", [truth_of, questions_of, keys_of, deletions_of])
def test_a_run_refuses_what_was_damaged(
    copy: Copy, kind: Callable[[Copy, bool], Any], damage: Callable[[Path], None]
) -> None:
    ref: ObjectRef = kind(copy, False)
    damage(copy.folder / ref.name)
    with pytest.raises(IntegrityError, match=f"object {ref.name} in .*, its record says "):
        kind(copy, True)


@pytest.mark.parametrize("kind", [truth_of, questions_of, keys_of, deletions_of])
def test_a_run_reads_what_is_sound(copy: Copy, kind: Callable[[Copy, bool], Any]) -> None:
    assert kind(copy, True) is not None


@pytest.mark.parametrize("stem", ["truth/", "deletions/"])
def test_a_night_stops_at_damage(nights: Collection, tmp_path: Path, stem: str) -> None:
    history = nights.copy(tmp_path / "nights")
    (path, *_) = (
        history.file(name)
        for name in sorted(history.files())
        if name.startswith(stem) and name.endswith(".parquet") and "vectors" not in name
    )
    flip_a_bit(path)
    history.corpus["another"] = "w8"
    with pytest.raises(IntegrityError, match=f"{path.name} .*its record says"):
        history.night()
    assert not history.file(layout.snapshot(3)).exists()
