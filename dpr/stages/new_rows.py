"""Rows of the corpus that no segment holds yet: where their texts are, their hashes, and why they are new.

Shapes: N rows.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dpr.corpus.rows import Slice
from dpr.formats.gathered import gather_table
from dpr.recipe import CorpusConfig
from dpr.stages.held_rows import CorpusRows, Mask, Rows
from dpr.stages.passages import HASHES, TextSource, passages_at
from dpr.stages.scan import ScanResult
from dpr.stages.why_new import Before, reasons_of
from dpr.store import Store


def text_source(slices: Sequence[Slice], scans: Sequence[ScanResult], number: int) -> TextSource:
    """Return where the texts of a slice are."""
    return TextSource(number, slices[number], scans[number].passages)


def read_new_rows(
    store: Store, config: CorpusConfig, sources: Sequence[TextSource], corpus: CorpusRows, wanted: Mask, before: Before
) -> Rows:
    """Return the corpus rows that are wanted, with the content hash of each; `sources` are those of all slices."""
    numbers = np.flatnonzero(np.bincount(corpus.slice[wanted])).astype(np.int32)
    bounds = zip(*(np.searchsorted(corpus.slice, numbers, side).tolist() for side in ("left", "right")), strict=True)
    positions = [corpus.position[start:stop][wanted[start:stop]] for start, stop in bounds]
    counts = [len(positions_N) for positions_N in positions]

    def read(place: int) -> pa.Table:
        return passages_at(store, config, sources[numbers[place]], positions[place], HASHES.names)

    hashes = gather_table(counts, read, HASHES, lambda place: sources[numbers[place]].slice.path)
    slices_N = np.repeat(numbers, counts)
    keys = hashes["key"].chunk(0)
    return Rows(
        slices_N,
        np.concatenate([np.empty(0, np.int64), *positions]),
        keys,
        hashes["content_hash"].chunk(0),
        reasons_of(store, before, slices_N, corpus.id_hash.filter(pa.array(wanted)), keys),
    )
