"""Fixtures of tests whose runs are separate programs."""

from collections.abc import Iterator

import pytest

from tests.ray_jobs.forked import Forks, forks
from tests.ray_jobs.own_ray import OwnRay, own_ray


@pytest.fixture(scope="package")
def lasting_ray() -> Iterator[OwnRay]:
    """A Ray that drivers join, one after another: starting one, and Ray Data's own actors, costs as much as a test."""
    with own_ray() as running:
        yield running


@pytest.fixture(scope="package")
def drivers(lasting_ray: OwnRay) -> Iterator[Forks]:
    """What drivers of `lasting_ray` are forked from."""
    with forks(lasting_ray.environment) as server:
        yield server
