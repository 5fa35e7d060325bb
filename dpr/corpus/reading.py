"""Reading one slice of the corpus, whatever its format."""

from collections.abc import Callable, Iterator, Set
from typing import Final

from dpr.corpus.arrow_files import read_arrow
from dpr.corpus.documents import read_documents
from dpr.corpus.json_rows import read_json
from dpr.corpus.lance_fragments import read_lance
from dpr.corpus.lines import read_lines
from dpr.corpus.long_texts import split_long
from dpr.corpus.parquet import read_parquet
from dpr.corpus.rows import ReadFormat, Row, Slice
from dpr.corpus.tsv import read_csv
from dpr.recipe import CorpusConfig

_READERS: Final[dict[ReadFormat, Callable[[Slice, CorpusConfig], Iterator[Row]]]] = {
    "dpr-tsv": read_lines,
    "csv": read_csv,
    "beir": read_lines,
    "jsonl": read_lines,
    "json": read_json,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "lance": read_lance,
    "documents": read_documents,
}


def read_slice(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield every row of the slice once, in the order of the input, with growing positions and in bounded memory.

    Where long texts are split, each window is a row.

    Raises CorpusError, possibly after some rows, if a file is damaged or has changed since the slice was planned.
    """
    rows = _READERS[slice_.format](slice_, corpus)
    return rows if slice_.windows is None else split_long(rows, slice_.windows)


def read_again(slice_: Slice, corpus: CorpusConfig, positions: Set[int]) -> Iterator[Row]:
    """Yield the rows at these positions again; CorpusError if a file has changed since the slice was planned."""
    inputs = {slice_.input_position(position) for position in positions}
    rows = (row for row in _READERS[slice_.format](slice_, corpus) if row.position in inputs)
    if slice_.windows is None:
        return rows
    return (row for row in split_long(rows, slice_.windows) if row.position in positions)
