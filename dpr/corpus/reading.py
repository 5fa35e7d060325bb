"""Reading one slice of the corpus, whatever its format."""

from collections.abc import Iterator, Set

from dpr.corpus.documents import read_documents
from dpr.corpus.lines import read_lines
from dpr.corpus.parquet import read_parquet
from dpr.corpus.rows import Row, Slice
from dpr.recipe import CorpusConfig


def read_slice(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield every row of the slice once, in the order of the input, with growing positions and in bounded memory.

    Raises CorpusError, possibly after some rows, if a file is damaged or has changed since the slice was planned.
    """
    if slice_.format == "parquet":
        return read_parquet(slice_, corpus)
    if slice_.format == "documents":
        return read_documents(slice_, corpus)
    return read_lines(slice_, corpus)


def read_again(slice_: Slice, corpus: CorpusConfig, positions: Set[int]) -> Iterator[Row]:
    """Yield the rows at these positions again; CorpusError if a file has changed since the slice was planned."""
    return (row for row in read_slice(slice_, corpus) if row.position in positions)
