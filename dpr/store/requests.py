"""Counts the requests that this process sends to object stores, and the bytes that they move."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

CLASSES = {
    "get_object": "GET",
    "head_object": "GET",
    "list_objects_v2": "LIST",
    "list_buckets": "LIST",
    "delete_object": "DELETE",
    "abort_multipart_upload": "DELETE",
}
"""Method → the class under which it is billed; all others write and are `PUT`."""
REQUEST_CLASSES = ("GET", "PUT", "LIST", "DELETE")
"""The classes, in the order of tables."""
READ_BYTES, WRITTEN_BYTES = "bytes read", "bytes written"

_lock = threading.Lock()
_is_outside: ContextVar[bool] = ContextVar("is_outside", default=False)
_counts: Counter[str] = Counter()
_outside: Counter[str] = Counter()


def count_request(method: str, written_bytes: int) -> None:
    """Count one request by botocore's name of its method, also if it fails, since it is still billed."""
    with _lock:
        counts = _outside if _is_outside.get() else _counts
        counts[CLASSES.get(method, "PUT")] += 1
        counts[WRITTEN_BYTES] += written_bytes


def count_read(read_bytes: int) -> None:
    """Count the bytes of an answer."""
    with _lock:
        (_outside if _is_outside.get() else _counts)[READ_BYTES] += read_bytes


@contextmanager
def outside_of_stages() -> Iterator[None]:
    """Count requests within the block as work outside of stages, also if a stage runs meanwhile."""
    token = _is_outside.set(True)
    try:
        yield
    finally:
        _is_outside.reset(token)


def count_elsewhere(counts: Mapping[str, int]) -> None:
    """Add the counts of another process that worked for this one."""
    with _lock:
        _counts.update(counts)


def take_counts() -> dict[str, int]:
    """Return the counts since the last call: requests by class, and bytes."""
    with _lock:
        taken = _positive(_counts)
        _counts.clear()
    return taken


def move_outside() -> dict[str, int]:
    """Add the counts since the last call to the work outside of stages; return all such counts so far."""
    with _lock:
        _outside.update(_counts)
        _counts.clear()
        return _positive(_outside)


def take_outside() -> dict[str, int]:
    """Return the counts outside of stages, and reset them to zero for the next run of this process."""
    found = move_outside()
    with _lock:
        _outside.clear()
    return found


def _positive(counts: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}
