"""One line of DPR's TSV (psgs_w100.tsv): csv's tab dialect with doubled quotes."""

import csv
from typing import Final

TSV_COLUMNS: Final = ("id", "text", "title")
"""DPR's header; other orders and further columns are read too."""


class UnusableLineError(Exception):
    """A line that has no fields; the message is the reason."""


def split_tsv(line: str) -> list[str]:
    """The fields of one line without its end, as DPR's own reader (Python's csv) splits it.

    Raises UnusableLineError if a quote is left open: fields that go on in the next line cannot be read in slices.
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
    if fields[-1].endswith("\n"):  # the quoted field took in the end of the line
        raise UnusableLineError("broken quoting: a quote is not closed on its line")
    return fields
