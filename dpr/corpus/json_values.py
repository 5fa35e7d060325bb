"""JSON that is not lines: an array of objects, one object, or several, each printed over any number of lines.

The values are found by their brackets, one after another, and decoded on their own. So a value that cannot be decoded
affects no other, and one that is too long is skipped without being held in memory.
"""

import re
from collections.abc import Iterator
from typing import IO, Final

from dpr.corpus.signatures import UTF8_BOM

_PIECE_BYTES: Final = 2**20
_NEXT: Final = re.compile(rb'["{}\[\]]')
_NEXT_OUTSIDE: Final = re.compile(rb'["{}\[\],]')
"""Marks outside of all brackets; there, a comma also ends a value: a number or a string."""
_IN_STRING: Final = re.compile(rb'["\\]')
_SPACE: Final = b" \t\r\n,"


def iter_values(file: IO[bytes], max_bytes: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (offset, bytes, whether it was cut) of each value of an array, or of each value of a file without one.

    A longer value is cut to `max_bytes`. Other text between values than white space and commas is a value, too, which
    no decoder accepts. The last value may have lost its end.
    """
    scanner = _Scanner(file, max_bytes)
    while (found := scanner.next_value()) is not None:
        yield found


class _Scanner:
    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file, self._max_bytes = file, max_bytes
        self._data, self._at, self._offset = b"", 0, 0
        """The part of a file that is in memory, the place in it, and the offset of its first byte in the file."""
        self._is_begun = self._is_array = False

    def next_value(self) -> tuple[int, bytes, bool] | None:
        """Return the next value as `iter_values` has it; None at the end."""
        while True:
            first = self._skip_space()
            if first == b"":
                return None
            if not self._is_begun:
                self._is_begun, self._is_array = True, first == b"["
                if self._is_array:
                    self._at += 1
                    continue
            if first == b"]" and self._is_array:
                self._at, self._is_array = self._at + 1, False
                continue
            return self._value()

    def _skip_space(self) -> bytes:
        """Go to the next byte that is not white space, and return it; nothing at the end."""
        while True:
            while self._at < len(self._data) and self._data[self._at : self._at + 1] in _SPACE:
                self._at += 1
            if self._at < len(self._data):
                return self._data[self._at : self._at + 1]
            if not self._fill():
                return b""

    def _fill(self) -> bool:
        """Replace what is in memory, all of which was read, by the next piece of the file."""
        self._offset += len(self._data)
        self._data = self._file.read(_PIECE_BYTES)
        self._at = len(UTF8_BOM) if self._offset == 0 and self._data.startswith(UTF8_BOM) else 0
        return bool(self._data)

    def _value(self) -> tuple[int, bytes, bool]:
        start, held, is_cut, brackets = self._offset + self._at, bytearray(), False, _Brackets()
        while True:
            first = self._at
            self._at = brackets.read(self._data, first)
            held += self._data[first : self._at]
            if len(held) > self._max_bytes:
                del held[self._max_bytes :]
                is_cut = True
            if brackets.is_done or not self._fill():
                return start, bytes(held), is_cut


class _Brackets:
    """Finds the end of a value that may come in several pieces."""

    def __init__(self) -> None:
        self.is_done = False
        self._depth = 0
        self._in_string = self._skips_one = self._is_begun = False

    def read(self, data: bytes, at: int) -> int:
        """Go from `at` to the end of the value, or of the data, and return that place."""
        if self._skips_one and at < len(data):  # the byte after a backslash
            at, self._skips_one = at + 1, False
        while not self.is_done:
            marks = _IN_STRING if self._in_string else _NEXT if self._depth else _NEXT_OUTSIDE
            found = marks.search(data, at)
            self._is_begun |= found is None or found.start() > at
            if found is None:
                return len(data)
            at = self._pass(found[0], found.start(), len(data))
            self._is_begun = True
        return at

    def _pass(self, mark: bytes, at: int, end: int) -> int:
        """Process a mark at a place before `end`, and return the place from which to go on."""
        if mark == b"\\":
            self._skips_one = at + 1 == end
            return min(at + 2, end)
        if mark == b'"':
            self._in_string = not self._in_string
        elif self._depth == 0 and mark in b"]},":  # the mark is not part of this value, unless it is all of the value
            self.is_done = True
            return at + (not self._is_begun)
        else:
            self._depth += 1 if mark in b"{[" else -1
            self.is_done = self._depth == 0
        return at + 1
