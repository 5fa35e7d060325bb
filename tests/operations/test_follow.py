"""A follower answers from the live snapshot, and changes to the next one while questions are asked."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import dpr.engine.room
from dpr.formats import layout
from dpr.formats.manifest import SnapshotBody
from dpr.operations.follow import Follower
from dpr.operations.gc import collect
from dpr.operations.rollback import rollback
from dpr.search.retrieve import Answer, Retriever
from dpr.store.lease import Lease
from tests.collection import Collection, FirstNights
from tests.disk import fill_disk, small_disk
from tests.formats.samples import RemoteStore
from tests.tiny import make_encoder, random_texts

pytestmark = pytest.mark.slow
SLOW = 3600.0
"""Seconds between looks in tests that look themselves."""
QUESTIONS = ["w1 w2 w3", "w150", "w7 w8 w9 w10"]


@pytest.fixture
def collection(first_nights: FirstNights, tmp_path: Path) -> Collection:
    return first_nights.copy(tmp_path / "collection")


def markers(collection: Collection) -> list[str]:
    """Return the numbers of the snapshots that readers have marked, ascending."""
    return sorted(path.name.partition("-")[0].lstrip("0") for path in (collection.folder / "store/readers").glob("*"))


def exact_ids(collection: Collection, body: SnapshotBody, answer: Answer, retriever: Retriever) -> list[set[str]]:
    """Return the ids of the best passages of a snapshot by brute force, as many as the answer has."""
    rows = collection.live_rows(body)
    ids, vectors_ND = list(rows), np.stack([vector for _, vector in rows.values()])
    best_QN = np.argsort(-(retriever.encode(QUESTIONS) @ vectors_ND.T), axis=1)
    return [{ids[row] for row in best_N[: len(hits)]} for best_N, hits in zip(best_QN, answer.hits, strict=True)]


def wait_for(is_true: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_true():
            return
        time.sleep(0.05)
    raise AssertionError("nothing happened for half a minute")


def test_every_answer_comes_from_exactly_one_snapshot(collection: Collection) -> None:
    answers: list[Answer] = []
    done = threading.Event()
    with Follower(collection.store, poll_seconds=0.02) as follower, Retriever.open(collection.store) as retriever:

        def ask() -> None:
            while not done.is_set():
                answers.append(follower.search(QUESTIONS, 5, mode="dense"))

        with ThreadPoolExecutor(2) as threads:
            asking = [threads.submit(ask) for _ in range(2)]
            try:
                for night in range(2, 6):
                    collection.corpus |= random_texts(5, f"night{night}-", seed=night)
                    del collection.corpus[next(iter(collection.corpus))]
                    assert collection.night().snapshot.number == night
                    wait_for(lambda number=night: follower.state.live == number and not follower.state.problem)
                    wait_for(lambda number=night: answers[-1].snapshot == number)
            finally:
                done.set()
            for each in asking:
                each.result()
        assert {answer.snapshot for answer in answers} == {1, 2, 3, 4, 5}
        assert [answer.snapshot for answer in answers] != sorted({answer.snapshot for answer in answers})
        last = {answer.snapshot: answer for answer in answers}
        right = {n: exact_ids(collection, collection.body(n), last[n], retriever) for n in last}
        for answer in answers:
            assert [{hit.id for hit in hits} for hits in answer.hits] == right[answer.snapshot]
        wait_for(lambda: markers(collection) == ["1", "5"])  # the retriever's, and the follower's
    assert markers(collection) == []


def test_a_snapshot_in_use_stays_until_its_last_question(collection: Collection) -> None:
    with Follower(collection.store, poll_seconds=SLOW) as follower:
        with follower.snapshot() as old:
            collection.corpus = random_texts(20, "other")
            collection.night()
            rollback(collection.store, 1)
            collection.corpus |= {"more": "w1 w2"}
            collection.night()
            assert follower.look()
            assert markers(collection) == ["1", "4"]
            with Lease.acquire(collection.store, "collection of garbage") as lease:
                collect(collection.store, 1, lease)
            assert {hit.id for hit in old.search(["w1"], 20).hits[0]} <= set(random_texts(30))
        wait_for(lambda: markers(collection) == ["4"])
        assert follower.search(["w1 w2"], 1).snapshot == 4


def test_a_damaged_snapshot_is_refused_and_a_rollback_is_followed(collection: Collection) -> None:
    with Follower(collection.store, poll_seconds=SLOW) as follower:
        collection.corpus |= random_texts(20, "new")
        body = collection.night().snapshot.body
        (new,) = [entry for entry in body.segments if entry not in collection.body(1).segments]
        path = collection.file(new.object.name)
        path.write_bytes(path.read_bytes()[:-8] + b"damaged!")
        assert not follower.look()
        assert follower.state.problem.startswith("snapshot 2 is refused: ")
        assert follower.state.live == 2
        assert follower.search(["w1"], 1).snapshot == 1
        assert not follower.look()  # it is not read again
        rollback(collection.store, 1)
        assert follower.look()
        assert (follower.search(["w1"], 1).snapshot, follower.state.problem) == (3, "")


def test_a_number_that_comes_again_with_another_snapshot_is_followed(collection: Collection) -> None:
    """Someone removes a snapshot that cannot be opened, and the next run publishes under the same number."""
    with Follower(collection.store, poll_seconds=SLOW) as follower:
        document = collection.file(layout.snapshot(2))
        document.write_bytes(b"{bad")
        assert not follower.look()
        assert follower.state.problem.startswith("snapshot 2 is refused: ")
        document.unlink()
        assert not follower.look()
        assert (follower.state.live, follower.state.problem) == (1, "")
        collection.corpus |= random_texts(20, "new")
        assert collection.night().snapshot.number == 2
        assert follower.look()
        assert (follower.search(["w1"], 1).snapshot, follower.state.live, follower.state.problem) == (2, 2, "")


def test_a_store_that_vanishes_is_reported_and_answers_go_on(collection: Collection) -> None:
    store = collection.folder / "store"
    with Follower(collection.store, poll_seconds=SLOW) as follower:
        before = follower.search(QUESTIONS, 5).hits
        store.rename(collection.folder / "away")
        assert not follower.look()
        assert follower.state.problem.startswith("the store cannot be read: ")
        assert follower.search(QUESTIONS, 5).hits == before
        (collection.folder / "away").rename(store)
        assert not follower.look()
        assert follower.state.problem == ""


def test_a_snapshot_for_which_there_is_no_memory_is_tried_again(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Follower(collection.store, poll_seconds=SLOW) as follower:
        collection.corpus |= random_texts(20, "new")
        collection.night()
        with monkeypatch.context() as full:
            full.setattr(dpr.engine.room, "memory_available", lambda: 0)
            assert not follower.look()
        assert "snapshot 2 cannot be opened yet: " in follower.state.problem
        assert follower.search(["w1"], 1).snapshot == 1
        assert follower.look()
        assert follower.search(["w1"], 1).snapshot == 2


def test_a_disk_too_small_for_what_is_new_is_reported(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from an object store: files are fetched into the cache, which has room for the first snapshot only."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        monkeypatch.setenv("DPR_CACHE", str(disk / "cache"))
        with Follower(RemoteStore(collection.folder / "store"), poll_seconds=SLOW) as follower:
            collection.corpus |= random_texts(60, "new", seed=3)
            collection.night()
            fill_disk(disk / "other")
            assert not follower.look()
            assert "of disk for the cache in" in follower.state.problem
            assert follower.search(["w1"], 1).snapshot == 1
            (disk / "other").unlink()
            assert follower.look()
            assert follower.search(["w1"], 1).snapshot == 2


@pytest.mark.usefixtures("no_loose_rows")
def test_only_what_is_new_is_fetched_and_nothing_of_the_old_snapshot_stays_open(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    store = RemoteStore(collection.folder / "store")
    with Follower(store, poll_seconds=SLOW) as follower:
        follower.search(QUESTIONS, 5)
        wait_for(lambda: follower.state.is_fetched)
        collection.corpus |= random_texts(20, "new")
        collection.corpus.pop("p000")
        new = collection.night().snapshot.body
        store.reads.clear()
        assert follower.look()
        old = {ref.sha256 for ref in collection.body(1).objects()}
        served = [*(shard.object for shard in new.index.shards), *(entry.object for entry in new.segments)]
        served += [part.object for part in new.lexical.parts] if new.lexical else []
        served += [new.deletions] if new.deletions else []
        fresh = [ref for ref in served if ref.sha256 not in old]
        assert 0 < len(fresh) < len(served)
        assert sorted(size for method, size in store.reads if method == "fetch") == sorted(r.size_bytes for r in fresh)
        collection.corpus = random_texts(40, "other", seed=9)
        last = collection.night().snapshot.body
        assert follower.look()
        assert {ref.sha256 for ref in last.objects() if ref != last.codebook.object}.isdisjoint(old)
        assert last.segments[0].object.sha256 in mapped_files()
        # a thread that unpacks texts holds what it reads until it has ended
        wait_for(lambda: not any(map(mapped_files().__contains__, old)))


def mapped_files() -> str:
    """What the system says of this process' memory."""
    return Path("/proc/self/maps").read_text()


def test_what_the_store_does_not_give_is_asked_for_less_and_less_often(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("dpr.operations.follow.monotonic", lambda: now)
    with Follower(collection.store, poll_seconds=SLOW) as follower:
        collection.corpus |= random_texts(20, "new")
        body = collection.night().snapshot.body
        (new,) = [entry for entry in body.segments if entry not in collection.body(1).segments]
        path = collection.file(new.object.name)
        path.rename(path.with_suffix(".away"))
        for pause_seconds in (10, 20, 40):
            assert not follower.look()
            path.with_suffix(".away").rename(path)
            now += pause_seconds - 1
            assert not follower.look()
            path.rename(path.with_suffix(".away"))
            now += 2
        path.with_suffix(".away").rename(path)
        assert follower.look()


def test_another_encoder_comes_together_with_its_index(collection: Collection, tmp_path: Path) -> None:
    with Follower(collection.store, poll_seconds=SLOW) as follower:
        old = follower.search(["w1"], 1)
        collection.change(encoder={"model": str(make_encoder(tmp_path / "other", seed=5, dim=48))})
        body = collection.night().snapshot.body
        assert follower.look()
        new = follower.search(["w1"], 1)
        assert old.encoder_id != new.encoder_id == body.encoder_id
        with Retriever.open(collection.store) as retriever:
            assert new.hits == retriever.search(["w1"], 1).hits


@pytest.fixture
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


def test_first_answers_from_an_object_store_come_before_segments_are_fetched(
    collection: Collection, own_cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Retriever.open(collection.store) as retriever:
        expected = retriever.search(QUESTIONS, 5, mode="hybrid").hits
    store = RemoteStore(collection.folder / "store")
    monkeypatch.setattr("dpr.operations.follow.Follower.fetch", lambda _: False)
    with Follower(store, poll_seconds=SLOW) as follower:
        assert not follower.state.is_fetched
        found = follower.search(QUESTIONS, 5, mode="hybrid").hits
        assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in expected]
        assert segments_in(own_cache_folder, collection) == set()
        monkeypatch.undo()
        monkeypatch.setenv("DPR_CACHE", str(own_cache_folder))
        assert follower.fetch()
        assert follower.state.is_fetched
        assert segments_in(own_cache_folder, collection) == {e.object.sha256 for e in collection.body(1).segments}
        assert follower.search(QUESTIONS, 5, mode="hybrid").hits == found
        assert not follower.fetch()
    with Follower(store, poll_seconds=SLOW) as again:
        assert again.state.is_fetched


def segments_in(cache: Path, collection: Collection) -> set[str]:
    """Return the digests of the segments that a cache holds."""
    known = {entry.object.sha256 for entry in collection.body(1).segments}
    return known & {path.stem for path in (cache / "entries").rglob("*.parquet")}


@pytest.mark.usefixtures("own_cache_folder")
def test_what_is_larger_than_the_cache_is_read_by_range_for_good(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPR_CACHE_GB", "1e-6")
    with Follower(RemoteStore(collection.folder / "store"), poll_seconds=SLOW) as follower:
        assert not follower.fetch()
        collection.corpus |= random_texts(20, "new")
        collection.night()
        assert follower.look()
        assert (follower.number, follower.state.is_fetched) == (2, False)
        assert follower.search(QUESTIONS, 5).snapshot == 2


@pytest.mark.usefixtures("own_cache_folder")
def test_a_damaged_segment_is_found_when_it_is_fetched(collection: Collection) -> None:
    """Until then its vectors were read by range, and they still are."""
    path = collection.file(collection.body(1).segments[0].object.name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with Follower(RemoteStore(collection.folder / "store"), poll_seconds=SLOW) as follower:
        assert not follower.fetch()
        assert not follower.state.is_fetched
        assert follower.number == 1
