"""Mark tests by their folder and by what they use, and set up the processes that run them side by side."""

import os
from pathlib import Path

import pytest

RAY_FOLDER = Path(__file__).parent / "ray_jobs"
RAYS_OWN_WARNINGS = (
    "ResourceWarning",
    "DeprecationWarning",
    "FutureWarning",
    "pytest.PytestUnraisableExceptionWarning",
)
SERVERS = {"moto", "ceph", "nanio"}
"""A test needs one of these if it uses the fixture NAME_endpoint, or has NAME as a parameter."""


def pytest_configure(config: pytest.Config) -> None:  # noqa: ARG001
    """Give each of several test processes one thread, before PyTorch and FAISS are imported."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test, and keep those in one process that share what starts slowly: a Ray, a Ceph, or their module."""
    for item in items:
        group = str(item.path.relative_to(item.config.rootpath))
        servers = servers_of(item)
        if servers:
            item.add_marker(pytest.mark.s3)
        if "ceph" in servers:
            group = "ceph"
        if any("GPU" in mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif")):
            item.add_marker(pytest.mark.gpu)
        if RAY_FOLDER in item.path.parents and item.get_closest_marker("without_ray") is None:
            group = "ray"
            item.add_marker(pytest.mark.ray)
            for category in RAYS_OWN_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))
        item.add_marker(pytest.mark.xdist_group(group))


def servers_of(item: pytest.Item) -> set[str]:
    """Return which servers a test uses."""
    fixtures = {name.removesuffix("_endpoint") for name in getattr(item, "fixturenames", ())}
    callspec = getattr(item, "callspec", None)
    parameters = {value for value in callspec.params.values() if isinstance(value, str)} if callspec else set()
    return SERVERS & (fixtures | parameters)
