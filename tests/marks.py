"""Mark tests by their folder and by what they use, and set up the processes that run them side by side."""

import gc
import os
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

RAY_FOLDER = Path(__file__).parent / "ray_jobs"
SHARED_RAYS = {
    "local_ray: LocalRay": "local_ray",
    "lasting_ray: OwnRay": "lasting_ray",
    "drivers: Forks": "lasting_ray",
    "machines: Machines": "machines",
}
"""Parameter of a test → the Ray that it shares with others, as starting one takes as long as a test."""
LAST_FILES = ("test_placement", "test_ahead")
"""Files that share `local_ray`, but with other parameters than the files before them."""
RAYS_OWN_WARNINGS = (
    "ResourceWarning",
    "DeprecationWarning",
    "FutureWarning",
    "pytest.PytestUnraisableExceptionWarning",
)
SERVERS = {"moto", "ceph", "nanio"}
"""A test needs one of these if it uses the fixture NAME_endpoint, or has NAME as a parameter."""


class ByFileOrRay(LoadFileScheduling):
    """Keeps the tests of a file in one process, and all files that share a Ray."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return shared_ray(self.config.rootpath / file) or file


@cache
def shared_ray(file: Path) -> str | None:
    """Return which of the shared Rays a test file uses: a parameter of one of its functions says so."""
    if RAY_FOLDER not in file.parents:
        return None
    text = file.read_text(encoding="utf-8")
    return next((ray for parameter, ray in SHARED_RAYS.items() if parameter in text), None)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Schedule the tests of several processes."""
    return ByFileOrRay(config, log)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run one process more than there are CPUs, since tests of Ray wait for a third of their time.

    Without those, one a CPU: each takes eight seconds of a CPU to import what tests need.
    """
    return (os.cpu_count() or 1) + ("not ray" not in config.option.markexpr)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Do not look for garbage while modules are imported, nor ever again among what they hold.

    That is a million objects, which each full look would visit: it took a process seven of its 75 seconds of a CPU.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test, and put long files first, so that no process still has one at the end."""
    for item in items:
        if servers_of(item):
            item.add_marker(pytest.mark.s3)
        if any("GPU" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")):
            item.add_marker(pytest.mark.gpu)
        if RAY_FOLDER in item.path.parents and item.get_closest_marker("without_ray") is None:
            item.add_marker(pytest.mark.ray)
            for category in RAYS_OWN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))
    ray_files = {item.path for item in items if item.get_closest_marker("ray")}
    long_files = {item.path for item in items if any(map(item.get_closest_marker, ("slow", "s3")))}
    rays = list(SHARED_RAYS.values())

    def place(item: pytest.Item) -> tuple[int, int]:
        if ray := shared_ray(item.path):
            return rays.index(ray), item.path.stem in LAST_FILES
        kinds = (ray_files, long_files, {item.path})
        return len(rays), next(rank for rank, files in enumerate(kinds) if item.path in files)

    items.sort(key=place)


def servers_of(item: pytest.Item) -> set[str]:
    """Return which servers a test uses."""
    fixtures = {name.removesuffix("_endpoint") for name in getattr(item, "fixturenames", ())}
    callspec = getattr(item, "callspec", None)
    parameters = {value for value in callspec.params.values() if isinstance(value, str)} if callspec else set()
    return SERVERS & (fixtures | parameters)
