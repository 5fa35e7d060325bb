"""The cluster that the tests of this folder share, the gateway, and a corpus with what becomes of it undisturbed."""

import os
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpr.formats.manifest import SnapshotBody
from dpr.formats.snapshots import live_snapshot, numbers
from dpr.operations.verify import verify
from tests.collection import Collection
from tests.manifests import one
from tests.ray_jobs.nodes.jobs_api import Job
from tests.ray_jobs.nodes.machines import Machines
from tests.ray_jobs.nodes.network import Places, places
from tests.ray_jobs.nodes.waiting import wait_until
from tests.services.ceph import CephUnavailableError, ceph_gateway
from tests.services.endpoint import S3Endpoint
from tests.tiny import random_texts

WORKERS = 3
RETRIES = 3
"""`backoffLimit` of the nightly CronJob."""


@pytest.fixture(scope="package")
def network() -> Iterator[Places]:
    """Where the nodes run."""
    with places() as made:
        yield made


@pytest.fixture(scope="package")
def gateway(network: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Endpoint]:
    """A real Ceph RADOS Gateway that all nodes reach; moto's server where there is no Ceph, which is printed."""
    try:
        with ceph_gateway(tmp_path_factory.mktemp("ceph"), network.host) as endpoint:
            yield endpoint
    except CephUnavailableError as error:
        if os.environ.get("DPR_REQUIRE_SERVICES") == "1":
            raise
        print(f"moto's S3 stands in for Ceph: {error}")
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer(ip_address=network.host, port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield S3Endpoint(f"http://{host}:{port}", "moto-access", "moto-secret")
        server.stop()


@pytest.fixture(scope="package")
def machines(network: Places, gateway: S3Endpoint) -> Iterator[Machines]:
    """A running cluster of a head and three workers."""
    with tempfile.TemporaryDirectory(prefix="rn-", ignore_cleanup_errors=True) as home:
        made = Machines(network, Path(home), gateway)
        try:
            made.add(WORKERS)
            yield made
        finally:
            made.end()


@pytest.fixture(autouse=True)
def enough_workers(request: pytest.FixtureRequest) -> None:
    """Give each test three workers, and no others that Ray knows of, whatever happened in the previous test."""
    if "machines" in request.fixturenames:
        cluster: Machines = request.getfixturevalue("machines")
        if (missing := WORKERS - len(cluster.workers)) > 0:
            cluster.add(missing)
        there = len(cluster.workers) + 1
        wait_until(lambda: len(cluster.alive()) == there, "Ray gives lost machines up", lambda: str(cluster.alive()))


@dataclass(frozen=True)
class Night:
    """A recipe whose store is in a bucket, and the snapshot that a run of it must end in."""

    collection: Collection
    recipe: Path
    expected: SnapshotBody

    def submit(self, cluster: Machines) -> Job:
        """Submit the nightly job."""
        return cluster.submit("python", "-m", "ray_jobs.nightly", "--recipe", str(self.recipe))

    def submitter(self, cluster: Machines) -> "subprocess.Popen[str]":
        """Start what the pod of the nightly CronJob runs."""
        (container,) = one("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        address = f"--address=http://{cluster.head.place.address}:{cluster.dashboard}"
        command = [*container["command"], address, *container["args"][1:-1], str(self.recipe)]
        environment = cluster.environment(cluster.head.name)
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
        )

    def run_again(self, cluster: Machines, lost: Job) -> None:
        """Submit the job again while it fails, as the CronJob does after a failure."""
        attempts = [lost]
        while attempts[-1].end() == "FAILED":
            assert len(attempts) <= RETRIES, attempts[-1].log
            attempts.append(self.submit(cluster))
        assert len(attempts) > 1, "the first one was not lost"
        assert attempts[-1].state == "SUCCEEDED"

    def done(self, prefix: str) -> int:
        """Return how many units are done whose records begin with `prefix`."""
        return sum(info.name.endswith(".json") for info in self.collection.store.list(prefix))

    def wait_for(self, prefix: str, count: int, job: Job) -> None:
        """Return as soon as `count` units are done; the run must not end before."""

        def look() -> bool:
            found = self.done(prefix)
            assert found >= count or not job.has_ended, job.log
            return found >= count

        wait_until(look, f"{count} units of {prefix} are done", lambda: job.log)

    def check(self) -> None:
        """Fail unless the one snapshot is that of an undisturbed run, and all of it is as recorded."""
        store = self.collection.store
        assert numbers(store) == [1]
        assert live_snapshot(store).body.to_bytes() == self.expected.to_bytes()
        checked, problems = verify(store, [1], deep=True)
        assert (checked > 0, problems) == (True, [])


@pytest.fixture(scope="package")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, static_encoder: Path) -> tuple[Collection, SnapshotBody]:
    """A collection with many units in most stages, and its first snapshot, made in this process."""
    corpus = random_texts(600, seed=3, max_words=20)
    corpus |= {f"copy{n}": corpus[f"p{7 * n:03d}"] for n in range(60)}  # for units of kind copy
    made = Collection(tmp_path_factory.mktemp("nodes"), static_encoder, corpus, index={"factory": "Flat"})
    made.change(corpus={"slice_bytes": 8000}, limits={"lease_seconds": 30.0})
    return made, made.night().snapshot.body


@pytest.fixture
def night(
    undisturbed: tuple[Collection, SnapshotBody], gateway: S3Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Night:
    """The same collection with a store of its own in a bucket."""
    made, expected = undisturbed
    gateway.use(monkeypatch)
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    gateway.client().create_bucket(Bucket=bucket)
    there = Collection(tmp_path / "there", made.model, made.corpus, **made.fields)
    there.change(corpus={"path": str(made.path)}, store=f"s3://{bucket}/nodes")
    return Night(there, there.write_recipe(), expected)
