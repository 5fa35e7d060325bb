"""The place of a row in the corpus, in terms that help to find it in an editor."""

import fsspec

MAX_READ_BYTES = 64 * 2**20
"""A row further into its file is named by its offset: to count lines, everything before it must be read."""
_PIECE_BYTES = 2**20


def describe_place(source: str, position: int, raw: bytes) -> str:
    """Return "line 3 of FILE" for a row whose bytes `raw` are at the offset `position` of its (unpacked) file.

    Otherwise return "row 3 of FILE", where `position` counts from 0. A file that can no longer be read is no error.
    """
    if position > MAX_READ_BYTES:
        return f"position {position:,} of {source}"
    try:
        with fsspec.open(source, "rb", compression="infer") as file:
            lines = 1
            for start in range(0, position, _PIECE_BYTES):
                lines += file.read(min(_PIECE_BYTES, position - start)).count(b"\n")
            if raw and file.read(len(raw)) == raw:
                return f"line {lines:,} of {source}"
    except Exception:  # whatever fsspec's backends raise: the place is only an example in another error's sentence
        return f"position {position:,} of {source}"
    return f"row {position + 1:,} of {source}"
