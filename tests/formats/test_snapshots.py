"""Snapshots: created once under the next number, found by everybody, and never read if a name in them is unsafe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpr.errors import IntegrityError, MissingObjectError, PublishRaceError, StoreError
from dpr.formats import layout
from dpr.formats.deletions import with_dead
from dpr.formats.gate_report import IndexLoss
from dpr.formats.manifest import FORMAT, Snapshot, SnapshotBody
from dpr.formats.snapshots import (
    DamagedSnapshot,
    History,
    check_live,
    foreign_names,
    latest_snapshot,
    lineage,
    live_snapshot,
    numbers,
    open_snapshot,
    publish_body,
    read_history,
    read_snapshot,
)
from dpr.store import LocalStore
from tests.formats.samples import snapshot_body, some_ref
from tests.formats.test_records import BAD_NAMES
from tests.store.together import run_together

BODY = snapshot_body()
SHARD = BODY.index.shards[0].model_copy(update={"left_out": some_ref("indexes/i.left-out-0.parquet")})
WITH_ALL_OBJECTS = BODY.model_copy(
    update={
        "deletions": some_ref("deletions/rows-0"),
        "index": BODY.index.model_copy(update={"shards": [SHARD]}),
    }
)
OTHER = BODY.model_copy(
    update={
        "encoder_id": "f",
        "segments": [BODY.segments[0].model_copy(update={"object": some_ref("segments/f/s-0.parquet")})],
        "codebook": BODY.codebook.model_copy(update={"object": some_ref("codebooks/f/c-0.faiss")}),
    }
)
"""Of another encoder."""


def publish_some(store: LocalStore, parent: int | None, body: SnapshotBody = BODY) -> Snapshot:
    return publish_body(store, body, parent, run_id="r", inputs="i")


def test_snapshots_are_numbered_and_the_highest_is_live(store: LocalStore) -> None:
    assert numbers(store) == []
    assert latest_snapshot(store) is None
    with pytest.raises(StoreError, match="has no snapshot; `dpr run RECIPE` makes the first"):
        live_snapshot(store)
    with pytest.raises(MissingObjectError, match="has no snapshot 1; it has none yet"):
        read_snapshot(store, 1)
    made = [publish_some(store, parent) for parent in (None, 1, 2)]
    assert [snapshot.number for snapshot in made] == numbers(store) == [1, 2, 3]
    assert [snapshot.parent for snapshot in made] == [None, 1, 2]
    assert [read_snapshot(store, number) for number in (1, 2, 3)] == made
    assert latest_snapshot(store) == live_snapshot(store) == made[2]
    assert store.get("snapshots/00000003.json") == made[2].to_bytes()
    with pytest.raises(MissingObjectError, match="has no snapshot 7; it has 1 to 3"):
        read_snapshot(store, 7)


def test_files_of_other_tools_among_snapshots_are_no_snapshots(store: LocalStore) -> None:
    foreign = ["snapshots/.DS_Store", "snapshots/00000002.json.tmp", "snapshots/9.json", "snapshots/old/00000009.json"]
    for name in foreign:
        store.put(name, b"")
    assert (numbers(store), latest_snapshot(store)) == ([], None)
    made = publish_some(store, None)
    check_live(store, 1)
    assert (numbers(store), latest_snapshot(store), lineage(store, BODY.encoder_id)) == (
        [1],
        made,
        History((made,), ()),
    )
    assert foreign_names(store) == sorted(foreign)


@pytest.mark.parametrize("parent", [None, 1, 3])
def test_who_builds_on_another_parent_than_the_live_one_publishes_nothing(
    store: LocalStore, parent: int | None
) -> None:
    for before in (None, 1):
        publish_some(store, before)
    with pytest.raises(PublishRaceError, match=r"another publisher was first \(live is 2\); start the run again"):
        publish_some(store, parent)
    with pytest.raises(PublishRaceError):
        check_live(store, parent)
    check_live(store, 2)
    assert numbers(store) == [1, 2]


RACE = """
from dpr.errors import PublishRaceError
from dpr.store import LocalStore
store = LocalStore(sys.argv[1])
for parent in [None, *range(1, 20)]:
    try:
        publish_body(store, snapshot_body(), parent, run_id=str(os.getpid()), inputs=None)
        print("published", end=" ")
    except PublishRaceError:
        print("lost", end=" ")
    while not numbers(store) or numbers(store)[-1] < (parent or 0) + 1:
        pass
"""
RACE_IMPORTS = """
from dpr.formats.snapshots import numbers, publish_body
from tests.formats.samples import snapshot_body
"""


@pytest.mark.slow
def test_of_publishers_at_the_same_time_exactly_one_wins_each_number(store: LocalStore) -> None:
    outcomes = [output.split() for output in run_together(RACE_IMPORTS, RACE, 3, store.url)]
    for attempts in zip(*outcomes, strict=True):
        assert sorted(attempts) == ["lost", "lost", "published"]
    assert numbers(store) == list(range(1, 21))
    assert len({read_snapshot(store, number).publish_id for number in numbers(store)}) == 20


class LosesAnswers(LocalStore):
    """A folder that creates objects, and then reports that they existed: as an S3 request that was sent twice does."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        super().put_if_absent(name, data)
        return False


def test_a_publisher_recognises_its_own_snapshot(tmp_path: Path) -> None:
    assert publish_some(LosesAnswers(tmp_path), None).number == 1  # type: ignore[arg-type]


class Beaten(LocalStore):
    """A folder in which somebody else publishes right before this process does."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        other = Snapshot.model_validate_json(data).model_copy(update={"publish_id": "another"})
        super().put_if_absent(name, other.to_bytes())
        return super().put_if_absent(name, data)


def test_a_publisher_that_was_beaten_at_the_last_moment_changes_nothing(tmp_path: Path) -> None:
    store = Beaten(tmp_path)
    with pytest.raises(PublishRaceError, match=r"snapshot 1 .* was not published"):
        publish_some(store, None)
    assert read_snapshot(store, 1).publish_id == "another"


def test_a_lineage_is_of_one_encoder(store: LocalStore) -> None:
    for parent, body in ((None, BODY), (1, OTHER), (2, BODY)):
        publish_some(store, parent, body)
    assert [snapshot.number for snapshot in lineage(store, "e").snapshots] == [1, 3]
    assert [snapshot.number for snapshot in lineage(store, "f").snapshots] == [2]
    assert lineage(store, "g") == History((), ())


def test_who_opens_a_snapshot_leaves_a_marker_until_it_is_closed(store: LocalStore) -> None:
    for parent in (None, 1):
        publish_some(store, parent)
    for number in (None, 1):
        snapshot, marker = open_snapshot(store, number)
        with marker:
            assert [info.name for info in store.list("readers/")] == [marker.name]
            assert layout.read_number(marker.name) == snapshot.number == (number or 2)
    assert list(store.list("readers/")) == []


class Collecting(LocalStore):
    """A folder whose snapshot 1 is collected as soon as a reader has written its marker."""

    def put(self, name: str, data: bytes) -> None:
        super().put(name, data)
        if name.startswith(layout.READERS):
            self.delete(layout.snapshot(1))


def test_a_snapshot_that_is_collected_while_it_is_opened_is_missing_and_leaves_no_marker(tmp_path: Path) -> None:
    store = Collecting(tmp_path)
    publish_some(store, None)
    with pytest.raises(MissingObjectError, match="has no snapshot 1"):
        open_snapshot(store, 1)
    assert list(store.list("readers/")) == []


def set_in(document: dict[str, Any], path: str, value: object) -> None:
    *folders, last = path.split(".")
    place: Any = document
    for name in folders:
        place = place[int(name)] if name.isdigit() else place[name]
    place[int(last) if last.isdigit() else last] = value


OBJECTS = ["segments.0.object", "codebook.object", "index.shards.0.object", "index.shards.0.left_out", "deletions"]
BAD_DIGESTS = ["0" * 63, "A" * 64, "../" + "0" * 61, ""]
BAD_IDS = ["..", "a/b", "", "a\n"]
IDS = ["encoder_id", "encoder.encoder_id", "segments.0.segment_id", "codebook.codebook_id", "index.index_id"]
IDS += ["gate.questions_id"]
UNSAFE = [(f"{place}.name", name) for place in OBJECTS for name in BAD_NAMES[:8]]
UNSAFE += [(f"{place}.sha256", digest) for place in OBJECTS for digest in BAD_DIGESTS]
UNSAFE += [(place, value) for place in IDS for value in BAD_IDS]


@pytest.mark.parametrize(("place", "value"), UNSAFE)
def test_a_document_that_names_something_unsafe_is_not_read(store: LocalStore, place: str, value: str) -> None:
    document = publish_some(store, None, WITH_ALL_OBJECTS).model_dump()
    set_in(document, f"body.{place}", value)
    store.put(layout.snapshot(2), json.dumps(document).encode())
    with pytest.raises(IntegrityError, match=r"snapshot 2 of .* is not a snapshot document of this version") as refused:
        read_snapshot(store, 2)
    assert "\n" not in str(refused.value)
    for find in (latest_snapshot, live_snapshot, open_snapshot):
        with pytest.raises(IntegrityError, match="snapshot 2"):
            find(store)
    assert list(store.list("readers/")) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [("format", FORMAT + 1), ("format", FORMAT - 1), ("more", 1), ("passages", "many"), ("run_id", "../x")],
)
def test_a_document_of_another_version_is_not_read(store: LocalStore, place: str, value: object) -> None:
    document = publish_some(store, None).model_dump()
    set_in(document, place if place in document else f"body.{place}", value)
    store.put(layout.snapshot(2), json.dumps(document).encode())
    with pytest.raises(IntegrityError, match=r"snapshot 2 of .* is not a snapshot document of this version"):
        read_snapshot(store, 2)


@pytest.mark.parametrize("content", [b"", b"{bad", b'{"number": 2, "par', b"\xff\xfe\x00", b"[" * 100_000])
def test_a_damaged_document_is_said_to_be_damaged_and_can_be_removed(store: LocalStore, content: bytes) -> None:
    """Whoever reads "use a new store" embeds everything again."""
    before = publish_some(store, None)
    store.put(layout.snapshot(2), content)
    sentence = (
        r"^snapshot 2 of \S+ is damaged: its document snapshots/00000002\.json is not JSON \(.+\); restore it from a "
        r"backup, or remove it, and the one before it is live again$"
    )
    with pytest.raises(IntegrityError, match=sentence):
        live_snapshot(store)
    store.delete(layout.snapshot(2))
    assert live_snapshot(store) == before


def test_an_older_damaged_document_hides_no_other(store: LocalStore) -> None:
    made = [publish_some(store, number) for number in (None, 1, 2)]
    store.put(layout.snapshot(2), b"{bad")
    sentence = (
        f"snapshot 2 of {store.url} is damaged: its document snapshots/00000002.json is not JSON (Expecting property "
        "name enclosed in double quotes: line 1 column 2 (char 1)); restore it from a backup, or remove it: the live "
        "snapshot 3 does not need it"
    )
    history = read_history(store)
    assert history == History((made[0], made[2]), (DamagedSnapshot(2, sentence),))
    assert lineage(store, BODY.encoder_id) == history
    store.put(layout.snapshot(2), b"{}")
    (damaged,) = read_history(store).damaged
    assert damaged.problem.startswith(f"snapshot 2 of {store.url} is not a snapshot document of this version; ")
    assert damaged.problem.endswith("restore snapshots/00000002.json from a backup, or remove it")


def test_nothing_falls_back_from_a_live_document_that_is_damaged(store: LocalStore) -> None:
    publish_some(store, None)
    store.put(layout.snapshot(2), b"{bad")
    for read in (read_history, lambda store: lineage(store, BODY.encoder_id)):
        with pytest.raises(IntegrityError, match=r"^snapshot 2 of \S+ is damaged.*the one before it is live again$"):
            read(store)


@pytest.mark.parametrize("encoder_id", ["e", "g"])
def test_a_damaged_document_that_may_be_the_newest_of_an_encoder_is_not_passed_over(
    store: LocalStore, encoder_id: str
) -> None:
    """The next run of the encoder would build on an older snapshot, or on none, and embed again what it had."""
    publish_some(store, None)
    store.put(layout.snapshot(2), b"{bad")
    publish_some(store, 2, OTHER)
    with pytest.raises(
        IntegrityError, match=r"^snapshot 2 of \S+ is damaged.*; nothing is run before that, since it may"
    ):
        lineage(store, encoder_id)
    assert [snapshot.number for snapshot in lineage(store, "f").snapshots] == [3]


def test_a_document_under_the_name_of_another_is_damaged(store: LocalStore) -> None:
    publish_some(store, None)
    store.put(layout.snapshot(2), store.get(layout.snapshot(1)))
    sentence = r"^snapshot 2 of \S+ is damaged: its document snapshots/00000002\.json is that of snapshot 1; restore it"
    with pytest.raises(IntegrityError, match=sentence):
        live_snapshot(store)


def of_another_encoder(body: SnapshotBody) -> dict[str, object]:
    return {"segments": [body.segments[0].model_copy(update={"object": some_ref("segments/f/s-0.parquet")})]}


def of_another_segment(body: SnapshotBody) -> dict[str, object]:
    return {"segments": [body.segments[0].model_copy(update={"object": some_ref("segments/e/sx-0.parquet")})]}


def codebook_of_another_encoder(body: SnapshotBody) -> dict[str, object]:
    return {"codebook": body.codebook.model_copy(update={"object": some_ref("codebooks/f/c-0.faiss")})}


def more_passages(body: SnapshotBody) -> dict[str, object]:
    return {"passages": body.passages + 1}


def fewer_in_the_index(body: SnapshotBody) -> dict[str, object]:
    return {"index": body.index.model_copy(update={"rows": body.passages - 1})}


def fewer_in_its_shards(body: SnapshotBody) -> dict[str, object]:
    shard = body.index.shards[0].model_copy(update={"live_rows": body.passages - 1})
    return {"index": body.index.model_copy(update={"shards": [shard]})}


def one_number_twice(body: SnapshotBody) -> dict[str, object]:
    half = body.segments[0].model_copy(update={"rows": body.passages // 2})
    return {"segments": [half, half]}


def a_number_to_come(body: SnapshotBody) -> dict[str, object]:
    return {"next_segment_number": body.segments[0].number}


def dead_rows_without_a_set(body: SnapshotBody) -> dict[str, object]:
    entry = with_dead(body.segments[0].model_copy(update={"rows": body.passages + 1}), np.zeros(1, np.uint32))
    return {"segments": [entry]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (more_passages, "would hold 31 passages, its segments 30 live rows and its index 30"),
        (fewer_in_the_index, "its segments 30 live rows and its index 29"),
        (fewer_in_its_shards, r"its index 30 \(29 in its shards, 0 loose\)"),
        (one_number_twice, r"segment numbers \[0, 0\] are not distinct"),
        (a_number_to_come, r"segment numbers \[0\] are not distinct and below 0"),
        (dead_rows_without_a_set, "have dead rows, and it names no deletion set"),
        (of_another_encoder, r"snapshot of encoder e names segments/f/s-0\.parquet where segments/e/s-… belongs"),
        (of_another_segment, r"names segments/e/sx-0\.parquet where segments/e/s-… belongs"),
        (codebook_of_another_encoder, r"names codebooks/f/c-0\.faiss where codebooks/e/c-… belongs"),
    ],
)
def test_a_body_that_contradicts_itself_is_never_published(
    store: LocalStore, change: Callable[[SnapshotBody], dict[str, object]], message: str
) -> None:
    BODY.check()
    body = BODY.model_copy(update=change(BODY))
    with pytest.raises(IntegrityError, match=message):
        body.check()
    with pytest.raises(IntegrityError, match=message):
        publish_some(store, None, body)
    assert numbers(store) == []


def test_a_body_names_all_its_objects() -> None:
    assert sorted(ref.name for ref in WITH_ALL_OBJECTS.objects()) == [
        "codebooks/e/c-0.faiss",
        "deletions/rows-0",
        "indexes/i-0.faiss",
        "indexes/i.left-out-0.parquet",
        "segments/e/s-0.parquet",
    ]


def test_a_snapshot_with_the_names_that_fields_had_before_is_read_as_one_with_todays() -> None:
    loss = IndexLoss(kind="questions", questions=50, lost=1, won=0, at_most=0.08)
    body = BODY.model_copy(update={"gate": BODY.gate.model_copy(update={"losses": [loss]})})
    document = json.loads(body.to_bytes())
    document["gate"]["new_asked"] = document["gate"].pop("new_sentences")
    document["gate"]["losses"][0]["asked"] = document["gate"]["losses"][0].pop("questions")
    assert SnapshotBody.model_validate(document) == body


def test_bodies_differ_with_every_field() -> None:
    bodies = [BODY, *(BODY.model_copy(update=change(BODY)) for change in (more_passages, fewer_in_the_index))]
    assert len({body.body_id() for body in bodies}) == 3
    assert snapshot_body().body_id() == BODY.body_id()
