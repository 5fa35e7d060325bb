"""What tests share whose runs are programs of their own."""

from collections.abc import Iterator

import pytest

from tests.ray_jobs.own_ray import OwnRay, own_ray


@pytest.fixture(scope="package")
def lasting_ray() -> Iterator[OwnRay]:
    """A Ray that drivers join, one after another: starting one, and Ray Data's own actors, costs as much as a test."""
    with own_ray() as running:
        yield running
