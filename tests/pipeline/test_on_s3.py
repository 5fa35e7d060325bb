"""Nightly runs in a bucket: the same bodies as in a folder, with a run that broke off in between."""

import uuid
from pathlib import Path

import pytest

import dpr.store.s3
from dpr.errors import StoreError
from dpr.operations.verify import verify
from dpr.engine.stage import LocalExecutor
from dpr.nightly import Outcome, run_recipe
from dpr.recipe import Recipe
from dpr.search.retrieve import Retriever
from dpr.formats.snapshots import numbers
from dpr.store import open_store
from dpr.store.faults import FaultyStore
from dpr.store.s3 import S3Store
from tests.services.endpoint import S3Endpoint
from tests.tiny import Quiet, make_encoder, write_jsonl


def nights(store: str, folder: Path, encoder: Path, broken: pytest.MonkeyPatch | None) -> list[Outcome]:
    """Two nights; `broken`: the second one breaks off first."""
    document = {
        "store": store,
        "corpus": {"path": str(folder / "corpus.jsonl"), "format": "jsonl", "slice_bytes": 1500},
        "encoder": {"model": str(encoder), "pooling": "mean", "normalize": True, "title_join": "space"},
        "resources": {"segment_rows": 30, "cpus_per_encoder": 1},
    }
    recipe = Recipe.model_validate(document)
    corpus = {f"p{n}": f"w{n} w{n + 1} w{n + 2}" for n in range(80)}
    write_jsonl(folder / "corpus.jsonl", corpus)
    first = run_recipe(recipe, LocalExecutor(), Quiet())
    write_jsonl(folder / "corpus.jsonl", corpus | {"p3": "w9 w9", "copy": corpus["p4"]})
    if broken is not None:
        with broken.context() as patch:
            patch.setattr(dpr.store.s3, "S3Store", lambda url: FaultyStore(S3Store(url), fail_at=9, mode="after"))
            with pytest.raises(StoreError, match="on purpose"):
                run_recipe(recipe, LocalExecutor(), Quiet())
    return [first, run_recipe(recipe, LocalExecutor(), Quiet())]


@pytest.mark.parametrize("service", ["moto", "ceph"])
def test_runs_in_a_bucket_end_in_the_bodies_of_runs_in_a_folder(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service: str
) -> None:
    endpoint: S3Endpoint = request.getfixturevalue(f"{service}_endpoint")
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    endpoint.client().create_bucket(Bucket=bucket)
    endpoint.use(monkeypatch)
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    encoder = make_encoder(tmp_path / "encoder")
    expected = nights(str(tmp_path / "store"), tmp_path, encoder, None)
    url = f"s3://{bucket}/some/collection"
    found = nights(url, tmp_path, encoder, monkeypatch)
    assert [night.snapshot.body_bytes() for night in found] == [night.snapshot.body_bytes() for night in expected]
    store = open_store(url)
    assert numbers(store) == [1, 2]
    assert verify(store, [1, 2], deep=True)[1] == []
    hits = Retriever.open(store).search(["w9 w9"], 3).hits[0]
    assert hits[0].id == "p3"
