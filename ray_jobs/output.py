"""Write the output of a command: to terminals of any encoding, to pipes that nobody reads, to disks that are full."""

import io
import json
import sys
from typing import Any, TextIO

from rich.console import Console

from dpr.errors import OutputError

UNREAD = 141
"""Exit code of a program that SIGPIPE ends, as a shell shows it."""
_WIDTH = 80
"""Columns of a terminal that has none (COLUMNS=0): rich would print nothing."""


class _Sink(io.FileIO):
    """The file behind stdout or stderr, which turns the errors of writing into an end of the command.

    After one, it takes all further bytes and drops them, so that Python does not fail on them when it ends.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.fileno(), "wb", closefd=False)
        self._is_lost, self._has_results = False, stream is sys.__stdout__

    def write(self, data: Any) -> int:  # anything that has a buffer
        if not self._is_lost:
            try:
                return super().write(data)
            except BrokenPipeError:
                self._is_lost = True
                raise SystemExit(UNREAD) from None
            except OSError as error:
                self._is_lost = True
                if self._has_results:  # if stderr is full, there is nowhere left to report it
                    raise OutputError(
                        f"the result cannot be written to stdout: {error.strerror}; what the command did is done"
                    ) from error
        return len(data)


def guard_streams() -> None:
    """Replace stdout and stderr of a command by streams that accept any character, as an escape where necessary."""
    for name, real in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            if stream is real:
                file = io.BufferedWriter(_Sink(stream))
                lines = stream.line_buffering
                setattr(sys, name, io.TextIOWrapper(file, stream.encoding, stream.errors, line_buffering=lines))


def console(*, stderr: bool = False) -> Console:
    """Return a console for whole lines, in which brackets are brackets, and names and ids stay whole for scripts."""
    made = Console(stderr=stderr, soft_wrap=True, markup=False)
    made.width = made.width or _WIDTH
    return made


def print_json(document: object) -> None:
    """Print a document as JSON, with escapes where stdout could not take a character."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf8")
    print(json.dumps(document, ensure_ascii=not is_unicode, indent=2))
