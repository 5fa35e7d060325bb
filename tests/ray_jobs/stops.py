"""Steps that stop a worker on Ray in the middle of a unit. Workers import this module, not the tests with Ray Data."""

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dpr.store
from dpr.store import LocalStore


class _Stops(LocalStore):
    """Stops its process before the first matching object of all workers is created."""

    pattern: str
    folder: Path

    def put_if_absent(self, name: str, data: bytes) -> bool:
        self._stop_before(name)
        return super().put_if_absent(name, data)

    def put_file_if_absent(self, name: str, path: Path) -> bool:
        self._stop_before(name)
        return super().put_file_if_absent(name, path)

    def _stop_before(self, name: str) -> None:
        if re.search(self.pattern, name) and not (self.folder / "stopped").exists():
            draft = self.folder / f"draft-{os.getpid()}"
            draft.write_text(str(os.getpid()))
            os.link(draft, self.folder / "stopped")  # another worker that is as far fails here, and is repeated
            os.kill(os.getpid(), signal.SIGSTOP)


@dataclass(frozen=True)
class MakeStopping:
    """Makes a step's operator, in a worker whose stores are `_Stops` from then on."""

    make: Callable[[], Callable[[Any], Any]]
    pattern: str
    folder: Path

    def __call__(self) -> Callable[[Any], Any]:
        _Stops.pattern, _Stops.folder = self.pattern, self.folder
        dpr.store.LocalStore = _Stops  # type: ignore[misc]  # in this process alone
        operator = self.make()

        def call(unit: Any) -> Any:
            result = operator(unit)
            stopped = self.folder / "stopped"
            if stopped.exists() and stopped.read_text() == str(os.getpid()):
                (self.folder / "finished").touch()
            return result

        return call
