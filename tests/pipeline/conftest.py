"""What tests of the pipeline share."""

from pathlib import Path

import pytest

from tests.tiny import make_encoder


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))
