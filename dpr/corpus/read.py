"""Reading one slice of the corpus, whatever its format."""

from collections.abc import Iterator, Set

from dpr.corpus.documents import read_documents
from dpr.corpus.lines import read_lines
from dpr.corpus.parquet import read_parquet
from dpr.corpus.python_docs import read_python_docs
from dpr.corpus.rows import Row, Slice
from dpr.recipe import CorpusConfig


def read_slice(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Every row of the slice exactly once, in order, with positions that grow, in bounded memory.

    Raises CorpusError, possibly after some rows, if a file is damaged or is not what it was when the slice was planned.
    """
    if slice_.format == "parquet":
        return read_parquet(slice_, corpus)
    if slice_.format == "documents":
        return read_documents(slice_, corpus)
    if slice_.format == "python-docs":
        return read_python_docs(slice_, corpus)
    return read_lines(slice_, corpus)


def read_again(slice_: Slice, corpus: CorpusConfig, positions: Set[int]) -> Iterator[Row]:
    """The rows at these positions, as they stand in the corpus; CorpusError if its file has changed since the plan."""
    return (row for row in read_slice(slice_, corpus) if row.position in positions)
