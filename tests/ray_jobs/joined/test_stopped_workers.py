"""A worker on Ray that stops in the middle of a unit, and wakes after another run has published, changes nothing."""

import hashlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpr.errors import ConflictError
from dpr.formats.manifest import Snapshot
from dpr.formats.snapshots import live_snapshot
from tests.collection import Collection
from tests.ray_jobs.conftest import Dpr
from tests.ray_jobs.forked import Forked, Forks, forks
from tests.ray_jobs.own_ray import own_ray
from tests.tiny import random_texts

pytestmark = pytest.mark.slow

LEASE_SECONDS = 1.0
PATIENCE_SECONDS = 150.0


@pytest.fixture
def collection(tmp_path: Path, static_encoder: Path) -> Collection:
    """A collection of two segments, without a night."""
    return Collection(tmp_path / "collection", static_encoder, random_texts(40))


@dataclass(frozen=True)
class StoppedRun:
    """A driver, and its worker that has stopped in the middle of a unit."""

    driver: Forked
    worker_pid: int
    folder: Path

    def wake_worker(self) -> None:
        """Let the worker go on until its unit is finished."""
        os.kill(self.worker_pid, signal.SIGCONT)
        wait_until((self.folder / "finished").exists, "the worker to finish its unit")


@contextmanager
def stopping_run(drivers: Forks, collection: Collection, step: str, pattern: str) -> Iterator[Forked]:
    """Start a run on Ray in which a worker of a step stops before it creates an object of such a name."""
    (collection.folder / step).mkdir()
    arguments = [collection.write_recipe(), LEASE_SECONDS, collection.folder / step, step, pattern]
    driver = drivers.start(collection.folder / "driver", "tests.ray_jobs.stopping_worker", *arguments)
    try:
        yield driver
    finally:
        driver.kill()


@contextmanager
def stopped_run(drivers: Forks, collection: Collection, step: str, pattern: str) -> Iterator[StoppedRun]:
    """Start such a run, and give it once a worker has stopped."""
    with stopping_run(drivers, collection, step, pattern) as driver:
        folder = collection.folder / step
        stopped = folder / "stopped"
        wait_until(lambda: stopped.exists() or driver.poll() is not None, "a worker to stop")
        assert driver.poll() is None, driver.errors()
        worker_pid = int(stopped.read_text())
        wait_until(lambda: state_of(worker_pid) == "T", "the worker to be stopped")
        yield StoppedRun(driver, worker_pid, folder)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up, f"waited {PATIENCE_SECONDS:g} s for {what}"
        time.sleep(0.05)


def state_of(pid: int) -> str:
    """Return the state of a process: R, S, T for stopped, …"""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def night_of_another_run(collection: Collection) -> Snapshot:
    """Run the recipe in this process, as soon as the lease can be had."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return collection.night().snapshot
        except ConflictError:
            assert time.monotonic() < give_up
            time.sleep(0.2)


def objects(collection: Collection) -> dict[str, tuple[int, int, str]]:
    """Return inode, time and digest of every file of the store but the lease's."""
    found = {}
    for name in collection.files():
        if not name.startswith("lease/"):
            status, data = collection.file(name).stat(), collection.file(name).read_bytes()
            found[name] = status.st_ino, status.st_mtime_ns, hashlib.sha256(data).hexdigest()
    return found


def check_unchanged(collection: Collection, published: Snapshot, before: dict[str, tuple[int, int, str]]) -> None:
    """Check that the snapshot and all that it names, the records too, are as they were when it was published."""
    assert {ref.name for ref in published.body.objects()} <= before.keys()
    assert objects(collection) == before


def do_before(collection: Collection, stop: str, dpr: Dpr) -> None:
    """Do the stages up to `stop` in this process, which Ray takes several times as long for."""
    assert dpr("run", collection.write_recipe(), "--local", "--until", stop)[0] == 0


@pytest.mark.parametrize(
    ("before", "step", "pattern"),
    [
        (None, "scan", r"^scans/.*\.new-"),
        ("scan", "write", r"^segments/.*\.json$"),
        ("embed", "merge", r"^indexes/.*\.faiss$"),
    ],
)
def test_a_worker_and_its_driver_that_wake_late_change_nothing(
    drivers: Forks, collection: Collection, dpr: Dpr, before: str | None, step: str, pattern: str
) -> None:
    if before:
        do_before(collection, before, dpr)
    with stopped_run(drivers, collection, step, pattern) as stopped:
        stopped.driver.send_signal(signal.SIGSTOP)
        published = night_of_another_run(collection)
        there = objects(collection)
        stopped.wake_worker()
        check_unchanged(collection, published, there)
        stopped.driver.send_signal(signal.SIGCONT)
        assert stopped.driver.wait(PATIENCE_SECONDS) == ConflictError.exit_code == 8
    errors = stopped.driver.errors()
    *_, last = errors.splitlines()
    fencing_number = 2 if before else 1
    assert last.startswith(
        f"error: the lease of store {collection.recipe.store} was lost (fencing number {fencing_number}) to run of "
    )
    assert errors.count("error: ") == 1
    check_unchanged(collection, published, there)
    code, out, _ = dpr("verify", collection.recipe.store, "--deep")
    assert (code, out.split(", ")[-1]) == (0, "0 problems\n")


def test_a_worker_that_wakes_after_its_driver_was_killed_changes_nothing(collection: Collection, dpr: Dpr) -> None:
    do_before(collection, "embed", dpr)
    with (
        own_ray() as ray,
        forks(ray.environment) as drivers,
        stopped_run(drivers, collection, "build", r"^parts/.*\.safetensors$") as stopped,
    ):
        os.kill(ray.raylet_pid, signal.SIGSTOP)  # or it would end the worker with the driver
        stopped.driver.kill()
        published = night_of_another_run(collection)
        there = objects(collection)
        stopped.wake_worker()
        os.kill(ray.raylet_pid, signal.SIGCONT)
    check_unchanged(collection, published, there)
    code, out, _ = dpr("verify", collection.recipe.store, "--deep")
    assert (code, out.split(", ")[-1]) == (0, "0 problems\n")


def test_a_run_names_a_stopped_worker_and_goes_on_without_it(
    drivers: Forks, collection: Collection, tmp_path: Path, static_encoder: Path
) -> None:
    undisturbed = Collection(tmp_path / "undisturbed", static_encoder, collection.corpus)
    collection.change(resources={"idle_seconds": 25.0})
    with stopping_run(drivers, collection, "write", r"^segments/.*\.json$") as driver:
        code, errors = driver.wait(2 * PATIENCE_SECONDS), driver.errors()
        assert code == 0, errors
        worker_pid = int((collection.folder / "write" / "stopped").read_text())
        named = rf"process {worker_pid} on \S+ \(write of \S+\.json\)"
        # a log may have no line due while the worker is waited for; test_oversight.py reads what no log leaves out, and
        # stops workers of stages that run as tasks, too
        killed = "used no CPU, or sent no heartbeat, for 25 s and was killed; Ray repeats the unit"
        assert re.search(rf"^\w+ +{named} {killed}$", errors, re.MULTILINE), errors
        assert not Path(f"/proc/{worker_pid}").exists()
    expected = undisturbed.night().snapshot.body
    assert live_snapshot(collection.store).body.model_dump() == expected.model_dump()
