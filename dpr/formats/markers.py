"""Markers that say who reads which snapshot, so that garbage collection keeps what it names.

A reader puts a marker, `readers/NUMBER-READER.json`, and puts the same bytes again every minute; closing removes it. As
with the lease, the clocks of two machines are never compared: the age of a marker is the difference of two times of the
store's clock. A marker is dead if it was not renewed for an hour, or if its process ran on this machine and has ended.
"""

import logging
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from dpr.closing import Closing
from dpr.errors import MissingObjectError, StoreError
from dpr.formats import layout
from dpr.formats.records import Document
from dpr.store import ObjectInfo, Store
from dpr.store.process import ProcessName

BEAT_SECONDS = 60.0
SILENT_SECONDS = 3600.0
"""Much longer than the lease's: nobody waits for it, and a reader may be cut off from the store for a while."""

_log = logging.getLogger(__name__)


class _Content(Document):
    """The content of a marker."""

    process: ProcessName
    since: str


class Marker(Closing):
    """This process reads a snapshot; a context manager that ends with the reading.

    A store that cannot be written is read without a marker, with one warning in the log.
    """

    def __init__(self, store: Store, number: int) -> None:
        self._store, self._number, self.name = store, number, layout.reader(number, uuid.uuid4().hex)
        self._done = threading.Event()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self._content = _Content(process=ProcessName.own(), since=since).to_bytes()
        self._heart: threading.Thread | None = None
        try:
            store.put(self.name, self._content)
        except StoreError as error:
            _log.warning(
                "snapshot %d is read without a marker, so garbage collection does not know of it (%s)", number, error
            )
            return
        self._heart = threading.Thread(target=self._beat_until_done, name="reader", daemon=True)
        self._heart.start()

    def let_go(self) -> None:
        """End the reading without waiting until the marker is gone."""
        self._done.set()

    def close(self) -> None:
        """End the reading; the marker is gone when this returns."""
        self._done.set()
        if self._heart is not None:
            self._heart.join()

    def _beat_until_done(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with suppress(StoreError):  # the next heartbeat may succeed
                if self._is_there():
                    self._store.put(self.name, self._content)
        with suppress(StoreError):  # it expires when it is not renewed
            self._store.delete(self.name)

    def _is_there(self) -> bool:
        """Return whether the store still exists: putting into a folder that was moved would create another one."""
        return self._store.exists(self.name) or self._store.exists(layout.snapshot(self._number))


@dataclass(frozen=True)
class Reader:
    """A marker as found in a store."""

    snapshot: int
    marker: ObjectInfo
    lives: bool
    """Whether it counts."""
    who: str


def find_readers(store: Store, now: float) -> list[Reader]:
    """Return all markers of a store; `now` is the time by its clock."""
    readers = []
    for info in store.list(layout.READERS):
        if not layout.is_reader(info.name):  # a file of another tool
            continue
        with suppress(MissingObjectError):  # closed this moment
            lives = now - info.modified < SILENT_SECONDS
            try:
                content = _Content.model_validate_json(store.get(info.name))
            except ValidationError:  # of another version: its name says enough
                who = info.name
            else:
                who = f"host {content.process.host}, pid {content.process.pid}, since {content.since}"
                lives = lives and not content.process.has_ended()
            readers.append(Reader(layout.read_number(info.name), info, lives, who))
    return readers
