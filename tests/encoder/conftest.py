"""What all tests of encoders share: small models, made once."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from dpr.encoder.spec import resolve
from dpr.encoder.tower import TowerSpec
from dpr.recipe import EncoderConfig
from tests.encoder.counting_server import CountingServer
from tests.encoder.models import save_bert, save_dpr


@pytest.fixture(scope="session")
def shared_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a plain BERT folder, which tests only read."""
    return save_bert(tmp_path_factory.mktemp("shared") / "bert", num_attention_heads=2)


@pytest.fixture
def bert(shared_bert: Path, tmp_path: Path) -> Path:
    """Copy the BERT folder, so that the test can change it."""
    return Path(shutil.copytree(shared_bert, tmp_path / "bert"))


@pytest.fixture(scope="session")
def mean_tower(shared_bert: Path) -> TowerSpec:
    """Find the passage tower of the BERT folder, with mean pooling."""
    return resolve(EncoderConfig(model=str(shared_bert), pooling="mean")).passage


@pytest.fixture(scope="session")
def dpr_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a DPR pair with a projection to 24 dimensions, which tests only read: context and question encoder."""
    return save_dpr(tmp_path_factory.mktemp("dpr"), projection_dim=24, num_attention_heads=2)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[CountingServer]:
    """Serve the test's own folder by HTTP."""
    with CountingServer(tmp_path) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def hub(tmp_path: Path, web: CountingServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty cache of the hub; the hub itself is `web`, which has no models and counts its requests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", web.url)
    return tmp_path / "hub"
