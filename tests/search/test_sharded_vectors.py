"""An index that several processes hold answers as one that a single process holds; here all are in this process."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest

from dpr.errors import RecipeError, StoreError
from dpr.formats.lexical_entry import SearchMode
from dpr.formats.manifest import SnapshotBody
from dpr.formats.records import ObjectRef
from dpr.formats.snapshots import read_snapshot
from dpr.operations.shard_host import ShardHost
from dpr.search.filters import parse_filter
from dpr.search.hits import Hit
from dpr.search.retrieve import Retriever
from dpr.search.segment_set import SegmentSet
from dpr.search.shard_groups import GroupPlace, OwnRows, divide
from dpr.search.shard_search import ShardAnswer, ShardQuestion
from dpr.store import Store
from tests.collection import Collection, let_pass
from tests.tiny import random_texts

GROUPS = 3
QUESTIONS = ["w1 w2 w3", "w7 w100", "w20 w21 w22 w23", "w150 w3 w9"]
K = 12


class LocalShards:
    """Parts of an index in this process; some of them can be out of order."""

    def __init__(self, store: Store, groups: int = GROUPS) -> None:
        self.hosts = [ShardHost(store, GroupPlace(number, groups)) for number in range(groups)]
        self.silent: set[int] = set()
        self.held: list[int] = []
        self.requests: list[ShardQuestion] = []

    def ask(self, question: ShardQuestion) -> Sequence[ShardAnswer | None]:
        self.requests.append(question)
        return [None if n in self.silent else host.answer(question) for n, host in enumerate(self.hosts)]

    def prepare(self, question: ShardQuestion) -> None:
        self.ask(question)

    def hold(self, snapshot: int) -> None:
        self.held.append(snapshot)
        for host in self.hosts:
            while snapshot not in (kept := host.keep("front", self.held)).open:
                if kept.problem:
                    raise StoreError(kept.problem)

    def let_go(self, snapshot: int) -> None:
        self.held.remove(snapshot)
        for host in self.hosts:
            host.keep("front", self.held)


def make_collection(folder: Path, encoder: Path, nprobe: int = 8) -> Collection:
    """Make a collection whose index has several files in its first snapshot, and loose and dead rows in its second."""
    made = make_first(folder, encoder, nprobe)
    some = {id_: text for id_, text in random_texts(180, max_words=20).items() if int(id_[1:]) % 9}
    write_rows(folder / "rows.jsonl", some | random_texts(40, "new", seed=3, max_words=20))
    assert made.night().published
    return made


def make_first(folder: Path, encoder: Path, nprobe: int = 8) -> Collection:
    """Make it with the first snapshot alone."""
    folder.mkdir(parents=True)
    index = {"factory": "IVF8,Flat", "shards": 4, "nprobe": nprobe, "rescore": 400}
    columns = {"title": None, "extra": {"lang": "string", "year": "integer"}}
    corpus = {"path": str(folder / "rows.jsonl"), "columns": columns}
    made = Collection(folder, encoder, corpus=corpus, index=index, gate={"min_recall": 0.0})
    write_rows(folder / "rows.jsonl", random_texts(180, max_words=20))
    assert made.night().published
    return made


def write_rows(path: Path, texts: dict[str, str]) -> None:
    rows = [
        {"id": id_, "text": text, "lang": ["de", "en", None][number % 3], "year": 1980 + number % 20}
        for number, (id_, text) in enumerate(texts.items())
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    return make_collection(tmp_path_factory.mktemp("sharded") / "night", encoder)


def equal_hits(found: Sequence[Sequence[Hit]], expected: Sequence[Sequence[Hit]]) -> None:
    """Equal, except for the last bits of scores of batches of other sizes."""
    for own, others in zip(found, expected, strict=True):
        assert [hit.id for hit in own] == [hit.id for hit in others]
        np.testing.assert_allclose([hit.score for hit in own], [hit.score for hit in others], rtol=1e-5)
        assert [(hit.text, hit.extra) for hit in own] == [(hit.text, hit.extra) for hit in others]


@pytest.mark.parametrize("groups", [1, GROUPS, 7])
@pytest.mark.parametrize("number", [1, 2])
def test_it_answers_as_one_process_does(collection: Collection, groups: int, number: int) -> None:
    """By index, which visits all lists here, and exactly; with and without filters. Seven groups: some have nothing."""
    filters = [None, {"lang": "de"}, {"year": {"gte": 1990}}, {"lang": "fr"}]
    modes: list[SearchMode] = ["dense", "bm25", "hybrid"]
    one, shards = Retriever.open(collection.store, number), LocalShards(collection.store, groups)
    with one, Retriever.open(collection.store, number, shards=shards) as several:
        for written, exact, mode in product(filters, (False, True), modes):
            where = None if written is None else parse_filter(written)
            expected = one.search(QUESTIONS, K, mode=mode, exact=exact, where=where)
            found = several.search(QUESTIONS, K, mode=mode, exact=exact, where=where)
            assert (found.snapshot, found.missing_shards) == (number, ())
            equal_hits(found.hits, expected.hits)


@pytest.mark.slow
def test_hits_are_no_worse_than_those_of_one_process_that_visits_few_lists(tmp_path: Path, encoder: Path) -> None:
    few = make_collection(tmp_path / "few", encoder, nprobe=1)
    shards = LocalShards(few.store)
    with Retriever.open(few.store) as one, Retriever.open(few.store, shards=shards) as several:
        pairs = zip(*(each.search(QUESTIONS, K, mode="dense").hits for each in (one, several)), strict=True)
        for alone, together in pairs:
            scores = np.array([[hit.score for hit in hits] for hits in (alone, together)])
            assert (scores[1] >= scores[0] - 1e-5).all()


def test_windows_of_one_passage_in_several_parts_are_one_hit(tmp_path: Path, encoder: Path) -> None:
    texts = {f"p{n}": " ".join(f"w{(7 * n + m) % 200}" for m in range(60)) for n in range(40)}
    split, short = {"long": "split"}, {"max_tokens": 16}
    index = {"factory": "IVF4,Flat", "shards": 4, "nprobe": 4, "rescore": 400}
    fields = {"corpus": split, "encoder": short, "index": index, "gate": {"min_recall": 0.0}}
    made = Collection(tmp_path / "long", encoder, texts, **fields)
    assert made.night().published
    with Retriever.open(made.store) as one, Retriever.open(made.store, shards=LocalShards(made.store)) as several:
        for exact in (False, True):
            expected = one.search(QUESTIONS, 15, mode="dense", exact=exact).hits
            found = several.search(QUESTIONS, 15, mode="dense", exact=exact).hits
            equal_hits(found, expected)
            assert all(len({hit.id for hit in hits}) == len(hits) for hits in found)


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_what_a_silent_shard_holds_is_missing_and_it_is_named(collection: Collection, mode: SearchMode) -> None:
    shards = LocalShards(collection.store)
    with Retriever.open(collection.store, 1, shards=shards) as several:  # later nights may join small files
        shards.silent = {1}
        answer = several.search(QUESTIONS, 300, mode=mode, exact=True)
        assert answer.missing_shards == (1,)
        if mode == "dense":
            own = ids_of(collection, 1)
            assert own
            for hits in answer.hits:
                assert {hit.id for hit in hits}.isdisjoint(own)
                assert len(hits) == collection.body(1).passages - len(own)
        assert several.search(QUESTIONS, K, mode="bm25").missing_shards == ()
        shards.silent = set()
        assert several.search(QUESTIONS, K, mode=mode).missing_shards == ()


def ids_of(collection: Collection, group: int) -> set[str]:
    """Return the ids of the passages that one part holds."""
    body = collection.body(1)
    own = OwnRows.read(collection.store, body, GroupPlace(group, GROUPS).of(body.index))
    segments = SegmentSet.open(collection.store, body.segments, own)
    ids = [ids_n for ids_n, _ in segments.live_blocks()]
    return set(chain.from_iterable(segments.column("id", ids_n) for ids_n in ids))


def test_without_any_shard_there_is_no_answer(collection: Collection) -> None:
    shards = LocalShards(collection.store)
    with Retriever.open(collection.store, shards=shards) as several:
        shards.silent = set(range(GROUPS))
        with pytest.raises(StoreError, match="none of the shards answered within the deadline"):
            several.search(QUESTIONS, mode="dense")


def test_a_filter_is_prepared_in_all_parts(collection: Collection) -> None:
    shards = LocalShards(collection.store)
    with Retriever.open(collection.store, shards=shards) as several:
        several.prepare_filter(parse_filter({"lang": "de"}))
        assert [len(question.questions_QD) for question in shards.requests] == [0]
        with pytest.raises(RecipeError, match="nothing"):
            several.prepare_filter(parse_filter({"nothing": 1}))


@pytest.mark.parametrize("groups", [1, 2, 3, 9])
def test_every_live_row_belongs_to_one_group(collection: Collection, groups: int) -> None:
    body = collection.body(2)
    parts = divide(body.index, groups)
    assert sum(part.rows for part in parts) == body.passages
    owned = [OwnRows.read(collection.store, body, part) for part in parts]
    for entry in body.segments:
        masks = np.array([own.live_mask(entry) for own in owned])
        assert masks.sum() == entry.live_rows
        assert masks.sum(axis=0).max(initial=0) <= 1


def test_files_are_divided_by_bytes(collection: Collection) -> None:
    body = with_sizes(collection.body(2), [100, 60, 50, 40, 10])
    sizes = [sorted(shard.object.size_bytes for shard in part.shards) for part in divide(body.index, 3)]
    assert sizes == [[100], [10, 60], [40, 50]]
    assert [part.loose_rows for part in divide(body.index, 3)] == [body.index.loose_rows, 0, 0]


def with_sizes(body: SnapshotBody, sizes: Sequence[int]) -> SnapshotBody:
    shard = body.index.shards[0]
    shards = [
        shard.model_copy(update={"object": ObjectRef(name=f"shard-{size}", size_bytes=size, sha256="0" * 64)})
        for size in sizes
    ]
    return body.model_copy(update={"index": body.index.model_copy(update={"shards": shards})})


def test_a_snapshot_stays_open_while_a_front_wants_it(collection: Collection) -> None:
    host = ShardHost(collection.store, GroupPlace(0, 2))
    question = ShardQuestion(1, np.ones((1, 32), np.float32), 3)
    assert host.answer(question) is None  # only the live one is open
    wait_until_open(host, "a", [1, 2])
    assert host.answer(question) is not None
    host.keep("b", [2])
    assert host.keep("a", [1, 2]).open == (1, 2)
    assert host.keep("a", [2]).open == (2,)
    assert host.answer(question) is None


def test_a_front_that_ended_is_forgotten(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ShardHost(collection.store, GroupPlace(0, 2))
    wait_until_open(host, "gone", [1])
    monkeypatch.setattr("dpr.operations.shard_host.FORGET_SECONDS", -1.0)
    wait_until_open(host, "here", [2])
    assert host.answer(ShardQuestion(1, np.ones((1, 32), np.float32), 3)) is None


def wait_until_open(host: ShardHost, front: str, numbers: list[int]) -> None:
    while host.keep(front, numbers).open != tuple(numbers):
        assert host.keep(front, numbers).problem == ""


def test_a_damaged_part_is_refused_and_the_old_one_answers_on(collection: Collection, tmp_path: Path) -> None:
    copy = collection.copy(tmp_path / "copy")
    host = ShardHost(copy.store, GroupPlace(0, 1))
    body = read_snapshot(copy.store, 2).body
    kept = {ref.sha256 for ref in body.objects()}
    only_old = [shard.object for shard in copy.body(1).index.shards if shard.object.sha256 not in kept]
    assert only_old
    for ref in only_old:
        path = copy.file(ref.name)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    let_pass(copy.store, 10)
    while not (found := host.keep("front", [1, 2])).problem:
        assert found.open == (2,)
    assert "has sha256" in found.problem
    assert found.is_final
    assert host.answer(ShardQuestion(2, np.ones((1, 32), np.float32), 3)) is not None


def test_several_ask_at_once(collection: Collection) -> None:
    """Each search notes what was missing for itself."""
    shards = LocalShards(collection.store)
    with Retriever.open(collection.store, shards=shards) as several, ThreadPoolExecutor(4) as pool:
        expected = several.search(QUESTIONS, K, mode="dense").hits
        for answer in pool.map(lambda _: several.search(QUESTIONS, K, mode="dense"), range(20)):
            equal_hits(answer.hits, expected)
