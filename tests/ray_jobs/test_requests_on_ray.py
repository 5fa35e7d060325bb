"""The requests of a night on a real local Ray: the report counts those of workers, also for shared values."""

import shutil
from pathlib import Path

import pytest

from ray_jobs.connect import connected
from ray_jobs.ray_executor import RayExecutor
from tests.services.fault_proxy import FaultProxy
from tests.test_requests import Seen, counted, make_collection, take_outside


@pytest.mark.usefixtures("no_ray")
def test_the_requests_of_all_workers_are_in_the_report(
    tmp_path: Path, static_encoder: Path, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    fault_proxy.endpoint.use(monkeypatch)
    collection = make_collection(tmp_path, static_encoder)
    bucket, _, _ = collection.store.url.removeprefix("s3://").partition("/")
    fault_proxy.endpoint.client().create_bucket(Bucket=bucket)
    with connected():
        executor = RayExecutor(collection.recipe.resources)
        for _ in range(2):
            take_outside()
            fault_proxy.requests.clear()
            report = collection.night(executor).report
            assert report
            assert counted(report) == Seen.of(fault_proxy.requests).classes
            shutil.rmtree(tmp_path / "cache")  # or the second night has nothing to fetch that workers share
            collection.corpus |= {"p001": "w1 w2", "copy": collection.corpus["p002"]}
