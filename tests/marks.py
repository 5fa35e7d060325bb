"""Mark tests by their folder and by what they use, and set up the processes that run them side by side."""

import os
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

RAY_FOLDER = Path(__file__).parent / "ray_jobs"
RAY_ORDER = ("test_requests_on_ray", "test_serve", "", "test_placement", "test_ahead")
"""Files of RAY_FOLDER: two that begin without a Ray, all others (""), and two that want Rays of their own.

So the others share one: to start a Ray and its first workers takes as long as a test.
"""
RAYS_OWN_WARNINGS = (
    "ResourceWarning",
    "DeprecationWarning",
    "FutureWarning",
    "pytest.PytestUnraisableExceptionWarning",
)
SERVERS = {"moto", "ceph", "nanio"}
"""A test needs one of these if it uses the fixture NAME_endpoint, or has NAME as a parameter."""


class ByFileOrRay(LoadFileScheduling):
    """Keeps the tests of a file in one process, and those of a folder of Ray tests, which share a Ray."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        folder = file.rpartition("/")[0]
        return folder if RAY_FOLDER.name in folder.split("/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Schedule the tests of several processes."""
    return ByFileOrRay(config, log)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run one process more than there are CPUs, since tests of Ray wait for a third of their time.

    Without those, one a CPU: each takes ten seconds of a CPU to import what tests need.
    """
    return (os.cpu_count() or 1) + ("not ray" not in config.option.markexpr)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test, and put the files first that take long, so that no process has such a one left at the end."""
    for item in items:
        if servers_of(item):
            item.add_marker(pytest.mark.s3)
        if any("GPU" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")):
            item.add_marker(pytest.mark.gpu)
        if RAY_FOLDER in item.path.parents and item.get_closest_marker("without_ray") is None:
            item.add_marker(pytest.mark.ray)
            for category in RAYS_OWN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))
    long_files = {item.path for item in items if any(map(item.get_closest_marker, ("slow", "s3")))}

    def place(item: pytest.Item) -> tuple[bool, int]:
        if RAY_FOLDER in item.path.parents:
            return False, RAY_ORDER.index(item.path.stem if item.path.stem in RAY_ORDER else "")
        return True, item.path not in long_files

    items.sort(key=place)


def servers_of(item: pytest.Item) -> set[str]:
    """Return which servers a test uses."""
    fixtures = {name.removesuffix("_endpoint") for name in getattr(item, "fixturenames", ())}
    callspec = getattr(item, "callspec", None)
    parameters = {value for value in callspec.params.values() if isinstance(value, str)} if callspec else set()
    return SERVERS & (fixtures | parameters)
