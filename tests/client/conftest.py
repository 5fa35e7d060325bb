"""A real service for clients: the application over a small store with extra columns, behind HTTP, with keys."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpr.operations.follow import Follower
from ray_jobs.serve.app import make_app
from ray_jobs.serve.keys import KeyRing, add_key
from tests.collection import Collection
from tests.ray_jobs.serve_api import make_collection, served


@dataclass(frozen=True)
class Service:
    """A service, and one key for each role."""

    url: str
    search_key: str
    admin_key: str
    collection: Collection
    follower: Follower


@pytest.fixture(scope="package")
def collection(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    return make_collection(tmp_path_factory.mktemp("asked"), encoder)


@pytest.fixture(scope="package")
def service(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    search_key, admin_key = add_key(file, "alice", "search"), add_key(file, "ops", "admin")
    with Follower(collection.store) as follower, served(make_app(follower, keys=KeyRing(file))) as url:
        yield Service(url, search_key, admin_key, collection, follower)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
