"""Markers of readers: they exist while a snapshot is read, are renewed, and count only while their reader lives."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dpr.formats import layout
from dpr.formats.markers import SILENT_SECONDS, Marker, find_readers
from dpr.store import LocalStore, Store
from dpr.store.lease import store_time
from tests.formats.samples import snapshots_read

READ_AND_END = """
import os, sys
from dpr.formats.markers import Marker
from dpr.store import LocalStore
Marker(LocalStore(sys.argv[1]), 1)
os._exit(0)
"""


def test_a_marker_is_there_until_it_is_closed_and_is_renewed(any_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr.formats.markers.BEAT_SECONDS", 0.05)
    with Marker(any_store, 7) as marker:
        assert snapshots_read(any_store) == [7]
        (first,) = any_store.list("readers/")
        assert first.name == marker.name
        until = time.monotonic() + 60
        while (now := next(iter(any_store.list("readers/")))).modified == first.modified:  # S3 counts whole seconds
            assert time.monotonic() < until
            time.sleep(0.05)
        assert now.name == first.name
        with Marker(any_store, 12):
            assert snapshots_read(any_store) == [7, 12]
    assert list(any_store.list("readers/")) == []


def test_hearts_end_with_their_markers(store: LocalStore) -> None:
    before = threading.enumerate()
    for _ in range(3):
        Marker(store, 1).close()
    assert [thread for thread in threading.enumerate() if thread not in before] == []


def test_a_marker_that_is_let_go_is_soon_gone(store: LocalStore) -> None:
    Marker(store, 1).let_go()
    until = time.monotonic() + 60
    while snapshots_read(store):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_store_that_cannot_be_written_is_read_without_a_marker_and_one_warning_says_so(
    store: LocalStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpr.formats.markers.BEAT_SECONDS", 0.01)
    folder = Path(store.url)
    folder.mkdir()
    (folder / "readers").write_bytes(b"")  # a file where the folder would be: every write of a marker fails
    with caplog.at_level(logging.WARNING), Marker(store, 3):
        time.sleep(0.05)
    (record,) = [record for record in caplog.records if record.name == "dpr.formats.markers"]
    assert "snapshot 3 is read without a marker" in record.getMessage()
    assert store.url in record.getMessage()


def test_a_store_that_was_moved_is_not_made_anew_and_its_marker_is_renewed_when_it_is_back(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpr.formats.markers.BEAT_SECONDS", 0.01)
    folder = Path(store.url)
    store.put(layout.snapshot(3), b"{}")
    with Marker(store, 3) as marker:
        folder.rename(folder.with_name("moved"))
        time.sleep(0.1)
        assert not folder.exists()
        folder.with_name("moved").rename(folder)
        (folder / marker.name).unlink()  # as garbage collection does with a marker that was not renewed for long
        until = time.monotonic() + 60
        while snapshots_read(store) != [3]:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_marker_counts_until_its_reader_was_silent_for_long(store: LocalStore) -> None:
    with Marker(store, 7) as marker:
        now = store_time(store)
        assert [reader.lives for reader in find_readers(store, now + SILENT_SECONDS - 60)] == [True]
        assert [reader.lives for reader in find_readers(store, now + SILENT_SECONDS + 60)] == [False]
        (reader,) = find_readers(store, now)
        assert (reader.marker.name, f"pid {os.getpid()}," in reader.who) == (marker.name, True)


def test_a_marker_of_a_process_that_ended_on_this_machine_does_not_count(store: LocalStore) -> None:
    subprocess.run((sys.executable, "-c", READ_AND_END, store.url), check=True)
    (marker,) = Path(store.url, "readers").iterdir()
    assert snapshots_read(store) == []
    content = json.loads(marker.read_text())
    content["process"]["host"] = "elsewhere"
    marker.with_name("00000002-elsewhere.json").write_text(json.dumps(content))
    assert snapshots_read(store) == [2]  # nobody here can know what happened there


def test_a_marker_of_another_version_counts_by_its_name_and_age(store: LocalStore) -> None:
    name = layout.reader(7, "0123456789abcdef")
    store.put(name, b'{"of": "another version"}')
    (reader,) = find_readers(store, store_time(store))
    assert (reader.snapshot, reader.lives, reader.who) == (7, True, name)
    assert not next(iter(find_readers(store, store_time(store) + 2 * SILENT_SECONDS))).lives
