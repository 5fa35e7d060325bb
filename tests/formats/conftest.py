"""What tests of the formats share."""

from pathlib import Path

import pytest

from dpr.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")
