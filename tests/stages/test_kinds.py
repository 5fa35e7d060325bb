"""Every kind of index through whole runs, and what can go wrong on the way to one: nothing published, nothing lost."""

from pathlib import Path
from typing import Any

import pytest

import dpr.stages.merge
from dpr.errors import DprError, IndexBuildError, IntegrityError
from dpr.formats import layout
from dpr.formats.records import read_record
from dpr.formats.snapshots import live_snapshot, numbers
from dpr.index.choose import choose
from dpr.index.merging import merge
from dpr.search.retrieve import Retriever
from dpr.stages.build import PartResult
from tests.collection import Collection, FirstNights
from tests.disk import full_disk
from tests.tiny import WORDS, random_texts

ROWS = 600
QUESTIONS = [f"{first} {second}" for first, second in zip(WORDS[:30], WORDS[30:60], strict=True)]
KINDS = {
    "Flat": 0.99,
    "HNSW16": 0.4,
    "SQ8": 0.9,
    "IVF8,Flat": 0.99,
    "IVF8,SQ8": 0.9,
    "IVF8,PQ8": 0.4,
    "OPQ8,IVF8,PQ8": 0.4,
    "IVF8,PQ16x4": 0.3,
    "IVF8,PQ16x4fs": 0.3,
    "IVF8,RaBitQ": 0.1,
}
"""Recall@20 that a kind has on its own at least, all lists visited."""


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights) -> Collection:
    """A collection whose segments are there already, so that other indexes cost no encoding."""
    collection = first_nights.copy(
        tmp_path_factory.mktemp("kinds"),
        random_texts(ROWS, max_words=20),
        resources={"segment_rows": 100},
        gate={"min_recall": 0},
    )
    collection.change(index={"factory": "Flat", "nprobe": 8, "rescore": 200})
    collection.night()
    return collection


def recall(collection: Collection) -> float:
    """Recall@20 of the live snapshot on QUESTIONS, against exact search."""
    with Retriever.open(collection.store) as retriever:
        found, exact = (retriever.search(QUESTIONS, 20, exact=exact).hits for exact in (False, True))
    shared = [len({hit.id for hit in some} & {hit.id for hit in true}) for some, true in zip(found, exact, strict=True)]
    return sum(shared) / (20 * len(QUESTIONS))


@pytest.mark.slow
@pytest.mark.parametrize("factory", KINDS)
def test_every_kind_publishes_and_answers(factory: str, segments: Collection) -> None:
    reached = {}
    for candidates in (0, 200):
        segments.change(index={"factory": factory, "rescore": candidates, "max_drift": 100.0})
        outcome = segments.night()
        body = outcome.snapshot.body
        assert outcome.published
        assert (body.codebook.factory, body.index.rows, body.index.rescore) == (factory, ROWS, candidates)
        reached[candidates] = recall(segments)
    assert reached[0] >= KINDS[factory]
    assert reached[200] >= max(0.8, reached[0] - 0.01)
    plan = choose(segments.recipe.index, ROWS, 32)
    assert plan.mergeable == ("HNSW" not in factory)
    assert any("cannot be merged from parts" in reason for reason in plan.reasons) != plan.mergeable


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["IVF8,PQ8x4,RFlat", "PCA16,IVF8,SQ8,Refine(SQ8)", "HNSW16"])
def test_what_is_published_is_the_recall_that_a_user_has(factory: str, segments: Collection) -> None:
    """Refinements are left out: the stored vectors re-score exactly. A graph is tuned with as many candidates."""
    segments.change(index={"factory": factory, "rescore": None, "nprobe": None, "max_drift": 100.0})
    body = segments.night().snapshot.body
    assert body.codebook.factory == factory.removesuffix(",RFlat").removesuffix(",Refine(SQ8)")
    assert body.gate.recall > 0.95
    assert recall(segments) == pytest.approx(body.gate.recall, abs=0.04)
    again = segments.night()
    assert not again.published


@pytest.mark.slow
@pytest.mark.parametrize("others", [5, 100])
def test_questions_near_a_text_that_stands_a_thousand_times_get_their_hits(
    others: int, tmp_path: Path, first_nights: FirstNights
) -> None:
    """Also where there are fewer different texts than inverted lists."""
    index = {"factory": "IVF16,PQ16x4", "rescore": 50}
    texts = random_texts(others, seed=3) | {f"copy{n}": "the same words in all of these" for n in range(1_000)}
    collection = first_nights.copy(tmp_path, texts, index=index, resources={"segment_rows": 500})
    assert collection.body(1).gate.recall > 0.99
    with Retriever.open(collection.store) as retriever:
        for question in ("the same words in all of these", "these words in all the same"):
            found, exact = (retriever.search([question], 20, exact=exact).hits[0] for exact in (False, True))
            assert [hit.score for hit in found] == [hit.score for hit in exact]


@pytest.fixture
def collection(tmp_path: Path, first_nights: FirstNights) -> Collection:
    """A first night whose index is one shard, and the recipe of a second with two."""
    collection = first_nights.copy(tmp_path, random_texts(60), index={"factory": "IVF4,SQ8"})
    collection.change(index={"shards": 2})
    return collection


def refused(collection: Collection, error: type[DprError]) -> str:
    """Return why a run that must fail does; the store is as it was and its live snapshot still answers."""
    store = collection.store
    before = numbers(store)
    with pytest.raises(error) as raised:
        collection.night()
    assert "\n" not in str(raised.value)
    assert numbers(store) == before
    named = {shard.object.name for shard in live_snapshot(store).body.index.shards}
    assert named <= {info.name for info in store.list("indexes/")}
    with Retriever.open(store) as retriever:
        assert retriever.search(["w1 w2"], 3).hits[0]
    return str(raised.value)


def test_a_part_whose_checksum_is_wrong(collection: Collection) -> None:
    body, store = collection.body(1), collection.store
    record = layout.record(layout.part(body.codebook.object.sha256, body.segments[0].object.sha256))
    result = read_record(store, record, PartResult)
    assert result is not None
    part = result.part.name
    content = bytearray(collection.file(part).read_bytes())
    content[-1] ^= 1
    collection.file(part).write_bytes(content)
    message = refused(collection, IntegrityError)
    assert f"object {part} in" in message
    assert message.endswith(f"; delete it and {record}, and the next run makes both again")
    store.delete(part)
    store.delete(record)
    assert collection.night().snapshot.number == 2


@pytest.mark.slow
def test_a_disk_that_fills_up_during_a_merge(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def merge_on_a_full_disk(*args: Any) -> int:
        with full_disk():
            return merge(*args)

    collection.corpus |= random_texts(150, "more", seed=1)  # more than fits below the limit
    with monkeypatch.context() as patch:
        patch.setattr(dpr.stages.merge, "merge", merge_on_a_full_disk)
        assert "free disk space" in refused(collection, IndexBuildError)
    assert collection.night().snapshot.number == 2


def test_budgets_that_cannot_be(collection: Collection) -> None:
    collection.change(index={"memory_gb": 1e-6})
    assert "index.memory_gb is 1e-06" in refused(collection, IndexBuildError)
    collection.change(index={"memory_gb": None, "latency_ms": 1e-3}, gate={"min_recall": 0})
    tight = collection.night().snapshot.body.gate
    assert not tight.meets_latency
    assert "still above latency_ms 0.001" in tight.settings
