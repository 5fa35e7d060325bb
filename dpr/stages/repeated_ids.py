"""Passages with the id of an earlier one: the run stops if there are too many, else they are quarantined.

Shapes: N rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from dpr.corpus.reading import read_again
from dpr.corpus.rows import Slice
from dpr.errors import CorpusError
from dpr.formats.objects import put_object
from dpr.formats.quarantine import QuarantinedRow, write_quarantine
from dpr.formats.records import ObjectRef
from dpr.recipe import CorpusConfig
from dpr.stages.held_rows import CorpusRows, Mask
from dpr.store import Store
from dpr.store.temporary import temporary_folder


def too_many_duplicates(corpus: CorpusRows, slices: Sequence[Slice], repeated: Mask, passages: int) -> CorpusError:
    """Return the error of a run in which too many passages have the id of an earlier one.

    `repeated` marks their first rows (N,).
    """
    example = int(np.argmax(repeated))
    slice_ = slices[corpus.slice[example]]
    return CorpusError(
        f"{int(repeated.sum())} of {passages} passages have the id of an earlier one, more unusable rows than the "
        "recipe allows (limits); nothing was published: look at columns.id, at the first of them (position "
        f"{slice_.input_position(int(corpus.position[example])):,} of {slice_.path}), and for files that are in the "
        "corpus twice"
    )


def read_repeated(
    slices: Sequence[Slice], config: CorpusConfig, corpus: CorpusRows, repeated: Mask
) -> Iterator[QuarantinedRow]:
    """Yield the later passages of each id, with their raw bytes read again from the corpus."""
    for number in np.unique(corpus.slice[repeated]).tolist():
        positions = set(corpus.position[repeated & (corpus.slice == number)].tolist())
        for row in read_again(slices[number], config, positions):
            if row.passage is not None:
                reason = f"duplicate id: an earlier passage has {row.passage.id!r}"
                yield QuarantinedRow(row.source, slices[number].input_position(row.position), reason, row.raw)


def put_duplicates(store: Store, stem: str, rows: Iterable[QuarantinedRow]) -> ObjectRef:
    """Store rows with a repeated id."""
    with temporary_folder() as folder:
        path = Path(folder, "duplicates.parquet")
        write_quarantine(path, rows)
        return put_object(store, stem, path)
