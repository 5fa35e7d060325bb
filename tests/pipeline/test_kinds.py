"""Every kind of index through whole runs, and what can go wrong on the way to one: nothing published, nothing lost."""

from pathlib import Path
from typing import Any

import pytest

import dpr.stages.merge
from dpr.errors import DprError, IndexBuildError, IntegrityError
from dpr.index.choose import choose
from dpr.index.merging import merge
from dpr.recipe import Recipe
from dpr.search.retrieve import Retriever
from dpr.formats.snapshots import live_snapshot, numbers
from dpr.store import LocalStore
from tests.disk import full_disk
from tests.pipeline.stores import run, tiny_recipe
from tests.tiny import WORDS

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


def with_index(recipe: Recipe, **index: object) -> Recipe:
    return recipe.model_copy(update={"index": recipe.index.model_copy(update=index)})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Recipe:
    """A recipe whose store holds the segments already, so that other indexes cost no encoding."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("kinds"), encoder)
    run(recipe)
    return recipe


def recall(store: LocalStore) -> float:
    retriever = Retriever.open(store)
    found, exact = (retriever.search(QUESTIONS, 20, exact=exact).hits for exact in (False, True))
    shared = [
        len({hit.id for hit in mine} & {hit.id for hit in theirs}) for mine, theirs in zip(found, exact, strict=True)
    ]
    return sum(shared) / (20 * len(QUESTIONS))


@pytest.mark.parametrize("factory", KINDS)
def test_every_kind_publishes_and_answers(factory: str, made: Recipe) -> None:
    reached = {}
    for candidates in (0, 200):
        outcome = run(with_index(made, factory=factory, nprobe=8, rescore=candidates, max_drift=100.0))
        body = outcome.snapshot.body
        assert outcome.published
        assert (body.codebook.factory, body.index.rows, body.index.rescore) == (factory, 600, candidates)
        reached[candidates] = recall(LocalStore(made.store))
    print(f"{factory}: recall@20 {reached[0]:.3f}, with re-scoring {reached[200]:.3f}")
    assert reached[0] >= KINDS[factory]
    assert reached[200] >= max(0.8, reached[0] - 0.01)
    plan = choose(with_index(made, factory=factory).index, 600, 32)
    assert plan.mergeable == ("HNSW" not in factory)
    assert any("cannot be merged from parts" in reason for reason in plan.reasons) != plan.mergeable


def refused(recipe: Recipe, error: type[DprError]) -> str:
    """What a run that must fail says; the store is as it was and its live snapshot still answers."""
    store = LocalStore(recipe.store)
    before = numbers(store)
    with pytest.raises(error) as said:
        run(recipe)
    assert "\n" not in str(said.value)
    assert numbers(store) == before
    named = {shard.object.name for shard in live_snapshot(store).body.index.shards}
    assert named <= {info.name for info in store.list("indexes/")}
    assert Retriever.open(store).search(["w1 w2"], 3).hits[0]
    return str(said.value)


def test_a_part_whose_checksum_is_wrong(tmp_path: Path, encoder: Path) -> None:
    recipe = tiny_recipe(tmp_path, encoder, factory="IVF8,SQ8")
    run(recipe)
    store = LocalStore(recipe.store)
    part = next(info.name for info in store.list("parts/") if info.name.endswith(".safetensors"))
    path = store.local_path(part)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    again = with_index(recipe, shards=2)
    assert f"object {part} in" in refused(again, IntegrityError)
    store.delete(part)
    store.delete(part.replace(".safetensors", ".json"))
    assert run(again).snapshot.number == 2


def test_a_disk_that_fills_up_during_a_merge(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def merge_on_a_full_disk(*args: Any) -> int:
        with full_disk():
            return merge(*args)

    recipe = tiny_recipe(tmp_path, encoder, factory="IVF8,SQ8")
    run(recipe)
    again = with_index(recipe, shards=2)
    with monkeypatch.context() as patch:
        patch.setattr(dpr.stages.merge, "merge", merge_on_a_full_disk)
        assert "free disk space" in refused(again, IndexBuildError)
    assert run(again).snapshot.number == 2


def test_budgets_that_cannot_be(tmp_path: Path, encoder: Path) -> None:
    recipe = tiny_recipe(tmp_path, encoder, factory="IVF8,SQ8")
    run(recipe)
    assert "index.memory_gb is 1e-06" in refused(with_index(recipe, memory_gb=1e-6), IndexBuildError)
    tight = run(with_index(recipe, latency_ms=1e-3)).snapshot.body.gate
    assert not tight["meets_latency"]
    assert "still above latency_ms 0.001" in tight["settings"]
