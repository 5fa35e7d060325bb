"""Keep what Ray prints for itself out of a run's output: it stays in Ray's own logs.

Ray's C++ part prints errors on stderr while a run succeeds, and Ray prints on stdout, where results go, that a worker
died whose unit it then repeats.
"""

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

from ray._private import worker

_LEVEL = "RAY_BACKEND_LOG_LEVEL"
_STDERR = 2
_FEWER_UNITS = "The minimum number of concurrent actors"
"""Ray Data's warning about actors that were started before the number of units was known."""
_REPEATED = re.compile(r"A worker died or was killed|Task \S+ failed\. There are \S+ retries")
"""Messages about a lost worker: either the repeated unit succeeds, or the run's own error says what happened."""


class Message(TypedDict):
    """A message of another process of Ray."""

    lines: list[str]


@contextmanager
def quiet_ray() -> Iterator[None]:
    """Make a Ray that is connected within the block print nothing but what a user has to act on, on stderr.

    A user who sets RAY_BACKEND_LOG_LEVEL wants to read more, and does.
    """
    before = worker.connect, worker.print_to_stdstream
    worker.print_to_stdstream = _show
    if _LEVEL not in os.environ:
        worker.connect = _connect_quietly
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", _FEWER_UNITS, UserWarning)
            yield
    finally:
        worker.connect, worker.print_to_stdstream = before


_connect = worker.connect


def _connect_quietly(*args: Any, **kwargs: Any) -> None:
    """Connect this process, whose C++ part then prints only why it ends the process.

    The level must not apply to Ray's other processes, whose logs would be empty, nor to other programs; and Ray
    announces it on stderr.
    """
    os.environ[_LEVEL] = "fatal"
    try:
        with _stderr_closed():
            _connect(*args, **kwargs)
    finally:
        del os.environ[_LEVEL]


@contextmanager
def _stderr_closed() -> Iterator[None]:
    sys.stderr.flush()
    kept, nowhere = os.dup(_STDERR), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDERR)
    try:
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)
        os.close(nowhere)


def _show(message: Message, ignore_prefix: bool) -> None:  # noqa: ARG001
    """Print a message of Ray's other processes as a line of ours, unless it is about a unit that is repeated."""
    for text in message["lines"]:
        if not _REPEATED.match(text):
            print(f"{'ray':<9} {' '.join(text.split())}", file=sys.stderr, flush=True)
