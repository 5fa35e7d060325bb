"""Documents and records: what they may name, and that the first record of a unit counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from dpr.errors import IntegrityError
from dpr.formats.records import Document, Identifier, ObjectRef, Result, read_record, write_record
from dpr.store import LocalStore
from tests.formats.samples import some_ref
from tests.store.together import run_together

DIGEST = "0123456789abcdef" * 4


class Made(Result):
    """A result with one object, and perhaps another."""

    first: ObjectRef
    second: ObjectRef | None
    note: str = ""


class Named(Document):
    """Something with a short id."""

    name: Identifier


BAD_NAMES = [
    "../x",
    "segments/../../x",
    "segments/..",
    "/etc/passwd",
    "",
    "a//b",
    "a/",
    "/",
    ".hidden",
    "a/.tmp-1",
    "a\\b",
    "a b",
    "a\n",
    "a\0b",
    "é",
    "-a",
    "c:/x",
    "s3://bucket/x",
    "x" * 501,
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_an_object_name_that_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        ObjectRef(name=name, size_bytes=1, sha256=DIGEST)


@pytest.mark.parametrize("name", ["a", "a-1.parquet", "segments/E/S.refused-0a.parquet", "runs/_x/1.json"])
def test_an_object_name_of_plain_parts_is_taken(name: str) -> None:
    assert ObjectRef(name=name, size_bytes=0, sha256=DIGEST).name == name


@pytest.mark.parametrize(
    "sha256", [DIGEST.upper(), DIGEST[:-1], DIGEST + "0", DIGEST[:-1] + "g", DIGEST + "\n", "../" + DIGEST[3:], ""]
)
def test_a_digest_that_is_not_one_is_refused(sha256: str) -> None:
    with pytest.raises(ValidationError, match="sha256"):
        ObjectRef(name="a", size_bytes=1, sha256=sha256)


@pytest.mark.parametrize("name", ["..", "a/b", "a.b", "", "a\n", "x" * 81, "é"])
def test_an_identifier_that_could_not_be_part_of_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        Named(name=name)


def test_a_size_is_not_negative() -> None:
    with pytest.raises(ValidationError, match="size_bytes"):
        ObjectRef(name="a", size_bytes=-1, sha256=DIGEST)


def test_documents_are_frozen_and_know_their_fields() -> None:
    ref = some_ref("a")
    with pytest.raises(ValidationError, match="frozen"):
        ref.name = "b"
    with pytest.raises(ValidationError, match="extra"):
        ObjectRef.model_validate({**ref.model_dump(), "url": "http://x"})


def test_equal_documents_are_equal_bytes() -> None:
    one = ObjectRef(name="a", size_bytes=1, sha256=DIGEST)
    other = ObjectRef(sha256=DIGEST, size_bytes=1, name="a")
    assert one.to_bytes() == other.to_bytes() == json.dumps(one.model_dump(), sort_keys=True).replace(" ", "").encode()


def test_a_result_names_the_objects_that_it_stored() -> None:
    result = Made(rows=1, first=some_ref("a"), second=some_ref("b"))
    assert [ref.name for ref in result.objects()] == ["a", "b"]
    assert [ref.name for ref in result.model_copy(update={"second": None}).objects()] == ["a"]


def test_a_unit_is_done_when_its_record_exists(store: LocalStore) -> None:
    result = Made(rows=7, first=some_ref("a"), second=None)
    assert read_record(store, "runs/r/unit.json", Made) is None
    assert write_record(store, "runs/r/unit.json", result) == result
    assert read_record(store, "runs/r/unit.json", Made) == result


def test_who_comes_second_adopts_the_first_record(store: LocalStore) -> None:
    first, second = (Made(rows=rows, first=some_ref("a"), second=None) for rows in (1, 2))
    write_record(store, "unit.json", first)
    before = store.get("unit.json")
    assert write_record(store, "unit.json", second) == first
    assert store.get("unit.json") == before


RACE_IMPORTS = """
from pathlib import Path
import dpr.formats.objects, dpr.formats.records
from tests.formats.test_records import Made
"""
RACE = """
import os
from dpr.formats.objects import put_object
from dpr.formats.records import write_record
from dpr.store import LocalStore

folder, own = Path(sys.argv[1]), os.urandom(8).hex()
store = LocalStore(folder / "store")
for unit in range(50):
    path = folder / f"{own}.bin"
    path.write_bytes(f"{own} {unit}".encode())
    ref = put_object(store, f"made/unit{unit}", path)
    counts = write_record(store, f"made/unit{unit}.json", Made(rows=1, first=ref, second=None, note=own))
    print(counts.to_bytes().decode())
"""


@pytest.mark.slow
def test_processes_that_do_the_same_units_end_with_the_same_results(tmp_path: Path) -> None:
    """Each process makes different bytes for a unit; all get the first one's result, with its object as recorded."""
    outputs = run_together(RACE_IMPORTS, RACE, 3, tmp_path)
    assert outputs[0] == outputs[1] == outputs[2]
    results = [Made.model_validate_json(line) for line in outputs[0].splitlines()]
    assert len(results) == 50
    store = LocalStore(tmp_path / "store")
    for unit, result in enumerate(results):
        assert store.get(f"made/unit{unit}.json") == result.to_bytes()
        assert store.get(result.first.name) == f"{result.note} {unit}".encode()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: {**document, "more": 1},
        lambda document: {name: value for name, value in document.items() if name != "rows"},
        lambda document: {**document, "first": {**document["first"], "name": "../x"}},
        lambda document: {**document, "first": {**document["first"], "sha256": "0" * 63}},
    ],
)
def test_a_record_of_another_version_is_refused_and_says_what_to_do(
    store: LocalStore, spoil: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    document = Made(rows=1, first=some_ref("a"), second=None).model_dump()
    store.put("unit.json", json.dumps(spoil(document)).encode())
    with pytest.raises(IntegrityError, match=r"unit\.json in .* is not a record of this version; delete it, and its"):
        read_record(store, "unit.json", Made)
    store.put("broken.json", b"{")
    with pytest.raises(IntegrityError, match=r"broken\.json in .* is not a record"):
        read_record(store, "broken.json", Made)


class Vanishing(LocalStore):
    """A folder in which garbage collection removes the record that somebody else wrote first."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        created = super().put_if_absent(name, data)
        self.delete(name)
        return created


def test_a_record_that_was_deleted_meanwhile_stops_the_run(tmp_path: Path) -> None:
    result = Made(rows=1, first=some_ref("a"), second=None)
    LocalStore(tmp_path).put("unit.json", result.to_bytes())
    with pytest.raises(IntegrityError, match=r"record unit\.json of .* was deleted while a run was using it; start"):
        write_record(Vanishing(tmp_path), "unit.json", result)
