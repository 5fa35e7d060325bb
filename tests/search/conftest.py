"""What tests of searching share."""

from pathlib import Path

import pytest

from dpr.store import LocalStore


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
