"""Keys of the service: who may ask. Only their hashes are stored, one a line: `NAME ROLE HASH`.

A key is 256 random bits, which nobody can guess, so one round of SHA-256 protects it.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dpr.errors import ServeError
from dpr.store.reasons import reason_of

Role = Literal["search", "admin"]
"""`admin` may also ask for exact search, which takes as long as there are passages."""
ROLES: tuple[Role, ...] = get_args(Role)
KEYS_VARIABLE = "DPR_SERVE_KEYS"
LOOK_SECONDS = 1.0
"""Seconds after which a replica checks whether the file of keys has changed."""
_LINE = re.compile(rf"(?P<name>[\w.-]{{1,64}})\s+(?P<role>{'|'.join(ROLES)})\s+(?P<hash>[0-9a-f]{{64}})", re.ASCII)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """The name and the role of a key."""

    name: str
    role: Role
    sha256: str


def new_key() -> str:
    """Return a new key, which is shown once and stored nowhere."""
    return f"dpr_{secrets.token_urlsafe(32)}"


def key_line(name: str, role: Role, key: str) -> str:
    """Return the line that lets a key in. Raises ServeError for a name that such a line cannot contain."""
    line = f"{name} {role} {_hash(key)}"
    if not _LINE.fullmatch(line):
        raise ServeError(f"{name!r} cannot name a key; use up to 64 letters, digits, and . _ -")
    return line


def parse_keys(text: str, where: str) -> Sequence[Key]:
    """Return the keys of lines; empty ones and those that begin with # are left out.

    Raises ServeError for another line, which it does not show, since it may hold a key; and if there is no key.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ServeError(
                f"line {number} of {where} is not a name, a role ({' or '.join(ROLES)}) and a SHA-256 in hex; "
                "`dpr key NAME` makes such lines"
            )
        role: Role = "admin" if found["role"] == "admin" else "search"
        keys.append(Key(found["name"], role, found["hash"]))
    if not keys:
        raise ServeError(f"{where} has no key, so nobody could ask; `dpr key NAME` makes one")
    return keys


class KeyRing:
    """The accepted keys: those of a file, which is read again when it changes, or those of some lines."""

    def __init__(self, file: Path | None = None, lines: str = "") -> None:
        """Raises ServeError as `parse_keys` does, and for a file that cannot be read."""
        self._file, self._seen, self._look_again = file, (0, 0, 0), 0.0
        self._lock = threading.Lock()
        self.problem = ""
        """Why the file is not used as it is now; empty: it is."""
        self._keys = self._read() if file is not None else parse_keys(lines, f"environment variable {KEYS_VARIABLE}")

    def find(self, presented: str) -> Key | None:
        """Return the key that was presented, None if it is unknown. All are compared, each in constant time."""
        self._refresh()
        presented_hash, found = _hash(presented), None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, presented_hash):
                found = key
        return found

    def _refresh(self) -> None:
        """Read the file if it has changed; an unreadable file changes nothing, and is reported in the log."""
        if self._file is None or time.monotonic() < self._look_again:
            return
        with self._lock:
            self._look_again = time.monotonic() + LOOK_SECONDS
            try:
                if self._stamp() != self._seen:
                    self._keys = self._read()
                    self.problem = ""
            except (OSError, ServeError) as error:
                self._stay(error)

    def _stay(self, error: OSError | ServeError) -> None:
        """Note why a changed file is not used; the log gets each reason once."""
        reason = str(error) if isinstance(error, ServeError) else f"the file of keys {self._file}: {reason_of(error)}"
        problem = f"keys stay as they were, also those that were removed: {reason}"
        if problem != self.problem:
            _log.warning("%s", problem)
        self.problem = problem
        if isinstance(error, OSError):
            self._seen = (0, 0, 0)  # when it is there again, it is read, even if it is the same

    def _read(self) -> Sequence[Key]:
        if self._file is None:
            return self._keys
        try:
            seen = self._stamp()
            text = self._file.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
        except (OSError, ValueError) as error:
            raise ServeError(
                f"the file of keys {self._file} cannot be read: {reason_of(error)}; name a text file that "
                "`dpr key NAME --file FILE` has written"
            ) from error
        self._seen = seen  # a file that could not be read is tried again, since its rights leave no mark here
        return parse_keys(text, str(self._file))

    def _stamp(self) -> tuple[int, int, int]:
        if self._file is None:
            return self._seen
        status = self._file.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino


def add_key(file: Path, name: str, role: Role) -> str:
    """Make a key, add its hash to a file, which only its owner can read if it is new, and return it.

    Raises ServeError for a name that is in the file, or cannot name a key, and for a file that cannot be written.
    """
    key = new_key()
    line = key_line(name, role, key)
    try:
        text = file.read_text(encoding="utf-8-sig") if file.exists() else ""
        if text.strip() and any(known.name == name for known in parse_keys(text, str(file))):
            raise ServeError(f"{file} has a key named {name}; take its line out first, or choose another name")
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as opened:
            opened.write(("" if text.endswith("\n") or not text else "\n") + line + "\n")
    except (OSError, ValueError) as error:
        raise ServeError(f"the file of keys {file} cannot be written: {reason_of(error)}") from error
    return key


def key_ring(file: str | None, lines: str = "") -> KeyRing | None:
    """Return the keys of a file, else those of lines, else those of the environment; None if there are none."""
    lines = lines or os.environ.get(KEYS_VARIABLE, "")
    if file is None and not lines:
        return None
    return KeyRing(Path(file).absolute() if file is not None else None, lines)


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
