"""One line of DPR's TSV (psgs_w100.tsv): fields between tabs, quoted as Python's csv does it."""

import csv
from typing import Final

TSV_COLUMNS: Final = ("id", "text", "title")
"""The columns that a header needs, in any order; it may have others too."""


class UnusableLineError(Exception):
    """A line that cannot be split into fields; the message is the reason."""


def split_tsv(line: str) -> list[str]:
    """Split one line, without its end, into the fields that DPR's own reader (Python's csv) finds.

    Raises UnusableLineError if a quote is left open, since a field that goes on in the next line cannot be read in
    slices.
    """
    line = line.removesuffix("\r")
    if '"' not in line:
        return line.split("\t")
    if len(line) > csv.field_size_limit():
        csv.field_size_limit(len(line))
    try:
        fields = next(csv.reader([line + "\n"], delimiter="\t"))
    except csv.Error as error:
        raise UnusableLineError(f"broken quoting: {error}") from None
    if fields[-1].endswith("\n"):  # the quoted field includes the end of the line
        raise UnusableLineError("broken quoting: a quote is not closed on its line")
    return fields
