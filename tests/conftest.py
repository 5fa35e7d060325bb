"""What tests of all folders share."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.tiny import make_encoder, make_static_encoder

if TYPE_CHECKING:
    from tests.collection import FirstNights

# no test depends on how busy a machine is
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = ["tests.hung", "tests.marks", "tests.services.fixtures"]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what tests unpack out of the user's own cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_syncs() -> Iterator[None]:
    """Let no write of this process wait for the disk, as the 70 of a night do: no power fails here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, for tests that only read it."""
    return make_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="session")
def static_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of static embeddings, for runs in other processes that do not depend on the kind of encoder."""
    return make_static_encoder(tmp_path_factory.mktemp("encoder") / "static")


def let_no_row_be_loose(patch: pytest.MonkeyPatch) -> None:
    """Let new rows go into a shard, however few they are."""
    patch.setattr("dpr.stages.loose_rows.max_new", lambda _: -1_000_000)


@pytest.fixture
def no_loose_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let new rows go into a shard, however few they are."""
    let_no_row_be_loose(monkeypatch)


@pytest.fixture(scope="session")
def first_nights(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> "FirstNights":
    """Collections whose first night is over, to be copied: `first_nights.copy(tmp_path / "name", …)`."""
    from tests.collection import FirstNights  # imports FAISS, which many tests do not need

    return FirstNights(tmp_path_factory.mktemp("first"), encoder)
