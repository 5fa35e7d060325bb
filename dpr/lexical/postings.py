"""Lexical parts: the words of one segment as an inverted file, written once.

A lexical part is a safetensors file of seven tensors, which are mapped from disk. Row numbers, counts and the like take
the smallest unsigned type that holds them:

    terms    uint64 [T]      hash of each term that occurs, ascending
    starts   [T + 1]         where the postings of each term start, and where the last ones end
    rows     [P]             postings: row numbers within the segment, term by term, ascending within a term
    counts   [P]             how often the term occurs in that row
    lengths  [N]             how many terms each row has, repetitions included
    order    uint16 [M]      all terms in their order, row after row: the first 16 bits of their hashes
    ends     uint64 [N]      where the terms of each row end in `order`

Parts of pieces of words, and those that were written before pairs counted, lack the last two. A part holds counts and
no scores: these depend on the whole corpus, which changes every night.

Shapes: N rows, T terms, P postings, M terms of all rows, repetitions included.
"""

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from dpr.errors import IntegrityError
from dpr.formats.tensor_file import TensorPlace, read_tensor_header
from dpr.lexical.analysis import Analyzer, Hashes, NumberedTerms, short_hashes
from dpr.store.mapped_files import map_file

TYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64}
MEMORY_TIMES = 20
"""Memory that inverting takes, as a multiple of the compressed texts' size; 18 was measured."""
Unsigned = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Postings:
    """The inverted file of one segment."""

    terms: Hashes
    starts: Unsigned
    rows: Unsigned
    counts: Unsigned
    lengths: Unsigned
    order: npt.NDArray[np.uint16] | None = None
    ends: Unsigned | None = None


def invert(texts: Iterable[str], analyzer: Analyzer) -> Postings:
    """Return the postings of texts, one a row. The same texts give the same postings."""
    numbered = NumberedTerms(analyzer)
    numbers_M, lengths_N = numbered.number(texts)
    rows = max(1, len(lengths_N))
    hashes = numbered.hashes
    terms_T, order = np.unique(hashes, return_inverse=True)
    rows_M = np.repeat(np.arange(len(lengths_N)), lengths_N)
    keys_P, counts_P = np.unique(order[numbers_M] * rows + rows_M, return_counts=True)
    starts_T1 = np.searchsorted(keys_P, np.arange(len(terms_T) + 1) * rows)
    postings = Postings(terms_T, *map(_smallest, (starts_T1, keys_P % rows, counts_P, lengths_N)))
    if not analyzer.keeps_order:
        return postings
    return replace(postings, order=short_hashes(hashes)[numbers_M], ends=np.cumsum(lengths_N).astype(np.uint64))


def _smallest(values: npt.NDArray[np.int64]) -> Unsigned:
    smallest: Unsigned = values.astype(np.min_scalar_type(int(values.max(initial=0))))
    return smallest


def write_postings(postings: Postings, path: Path) -> None:
    """Write a lexical part. Equal postings give equal bytes."""
    save_file({name: array for name, array in vars(postings).items() if array is not None}, path)


def map_postings(path: Path, rows: int, name: str) -> Postings:
    """Map a lexical part of a segment with `rows` rows; its checksum was verified.

    Raises IntegrityError, with `name`, if it is not such a part.
    """
    try:
        data = map_file(path, is_given_back=False)  # each question reads a little of nearly all pages
        with path.open("rb") as file:
            tensors = read_tensor_header(file).tensors
        names = [field.name for field in fields(Postings) if field.default is MISSING or field.name in tensors]
        arrays = {name: _array(data, tensors[name]) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{name} is not a lexical part; delete it and its record, and run again") from error
    postings = Postings(**arrays)
    if len(postings.lengths) != rows or len(postings.starts) != len(postings.terms) + 1:
        raise IntegrityError(f"{name} has {len(postings.lengths)} rows, and its segment {rows}; run again")
    order, ends = postings.order, postings.ends
    if order is not None and (ends is None or len(ends) != rows or len(order) != ends.max(initial=0)):
        raise IntegrityError(
            f"{name} is not a lexical part: its order of terms does not end where its last row does; run again"
        )
    return postings


def _array(data: npt.NDArray[np.uint8], place: TensorPlace) -> npt.NDArray[Any]:
    return np.asarray(data[place.start : place.stop]).view(TYPES[place.dtype])
