"""The commands that take a recipe, as a user types them: run and plan, and other commands on their result."""

import json
from pathlib import Path

import pytest

from tests.collection import Collection
from tests.ray_jobs.conftest import Dpr
from tests.ray_jobs.local_ray import LocalRay
from tests.tiny import random_texts

TEXTS = random_texts(60)


@pytest.fixture
def collection(tmp_path: Path, static_encoder: Path) -> Collection:
    """A collection without a night."""
    return Collection(tmp_path, static_encoder, TEXTS)


def test_plan_on_ray_writes_nothing_and_the_run_keeps_its_estimate(
    local_ray: LocalRay, collection: Collection, dpr: Dpr
) -> None:
    local_ray.use()
    recipe, store = collection.write_recipe(), collection.recipe.store
    code, out, _ = dpr("plan", recipe, "--json")
    planned = json.loads(out)
    assert code == 0
    assert (planned["cost"]["passages"], planned["slices_read"]) == (60, planned["slices"])
    assert not Path(store).exists()

    code, out, err = dpr("run", recipe, "--local", "--json")
    ran = json.loads(out)
    assert code == 0
    assert (ran["snapshot"], ran["published"], ran["cost"]["passages"]) == (1, True, 60)
    stages = [stage["stage"] for stage in ran["stages"]]
    assert stages == ["scan", "diff", "embed", "train", "build", "merge", "invert", "questions", "truth", "gate"]
    assert [stage for stage in stages if f"{stage:<9} " not in err] == []


@pytest.mark.without_ray
def test_run_until_a_stage_publishes_nothing_and_the_next_run_goes_on(collection: Collection, dpr: Dpr) -> None:
    recipe, store = collection.write_recipe(), collection.recipe.store
    made = {}
    for stage in ("scan", "embed", "index"):
        code, out, err = dpr("run", recipe, "--local", "--until", stage)
        assert (code, out.count("\n")) == (0, 1)
        made[stage] = out
        assert dpr("status", store)[0] == 5
    assert made["scan"] == "60 passages: 60 new, 60 to embed, 0 gone\n"
    assert made["embed"] == "3 segments with 60 live passages\n"
    assert made["index"].endswith(" with 60 passages\n")
    assert "embed     0 of 3 units done now, 3 were done before" in err
    assert json.loads(dpr("run", recipe, "--local", "--until", "scan", "--json")[1])["until"] == "scan"
    code, out, err = dpr("run", recipe, "--local")
    assert code == 0
    assert out.startswith("published snapshot 1: 60 passages (60 new, 0 gone), index ")
    assert "build     0 of 3 units done now, 3 were done before" in err
    assert dpr("run", recipe, "--local", "--until", "gate")[0] == 2


@pytest.mark.without_ray
def test_a_finished_run_is_searched_inspected_and_verified(collection: Collection, dpr: Dpr) -> None:
    recipe, store = collection.write_recipe(), collection.recipe.store
    code, _, err = dpr("status", store)
    assert (code, err) == (5, f"error: store {store} has no snapshot; `dpr run RECIPE` makes the first\n")
    assert dpr("run", recipe, "--local")[0] == 0
    found = json.loads(dpr("search", store, TEXTS["p005"], "-k", 3, "--json")[1])
    assert found["hits"][0]["id"] == "p005"
    assert len(found["hits"]) == 3
    inspected = json.loads(dpr("inspect", store, "--json")[1])
    assert sum(segment["rows"] for segment in inspected["segments"]) == 60
    assert dpr("verify", store, "--deep")[0] == 0
    segment = next(Path(store, "segments").rglob("*.parquet"))
    segment.write_bytes(segment.read_bytes()[:-1] + b"?")
    code, out, _ = dpr("verify", store, "--deep")
    assert code == 6
    assert "sha256" in out


@pytest.mark.without_ray
def test_a_recipe_that_is_not_there_is_named(tmp_path: Path, dpr: Dpr) -> None:
    code, out, err = dpr("run", tmp_path / "none.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: recipe {tmp_path}/none.yaml cannot be read: ")
