"""Parts without their dead rows, of which a range of lists is gathered at a time.

Shapes: P parts, L lists, l lists of a range, N vectors, n vectors of a range of lists, B bytes of a code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from dpr.errors import IntegrityError
from dpr.index.hardware import Codes
from dpr.index.kinds import core
from dpr.index.part import PartFile
from dpr.index.row_ids import index_ids


@dataclass(frozen=True)
class PartRef:
    """A part to be merged."""

    segment_number: int
    file: Path
    """A part file whose checksum was verified."""
    rows: int
    """Rows of the segment, dead ones included."""
    dead_rows: npt.NDArray[np.uint32]
    """Rows to leave out, ascending."""
    codebook_sha256: str
    """Digest of the codebook's bytes; a part that was coded with another codebook is refused."""


class LivePart:
    """A part without its dead rows, read range by range."""

    def __init__(self, codebook: faiss.Index, ref: PartRef) -> None:
        name = f"the part of segment {ref.segment_number}"
        self.segment_number, self.dead_rows = ref.segment_number, ref.dead_rows
        self.file = PartFile(ref.file, name, ref.codebook_sha256)
        found = (self.file.ntotal, len(self.file.list_starts_L) - 1, self.file.code_bytes)
        inner = core(codebook)
        expected = (ref.rows, inner.nlist if isinstance(inner, faiss.IndexIVF) else 1, inner.code_size)
        if found != expected:
            raise IntegrityError(
                f"{name} has {found[0]} rows, {found[1]} lists and {found[2]} bytes a code; segment and codebook have "
                f"{expected[0]}, {expected[1]} and {expected[2]}, so build it again"
            )
        dead = ref.dead_rows.astype(np.int64)
        if len(dead) and not (dead[-1] < ref.rows and (np.diff(dead) > 0).all()):
            raise IntegrityError(
                f"the {len(dead)} dead rows of segment {ref.segment_number} are not ascending numbers below "
                f"{ref.rows}; store its deletion set again"
            )
        self.live_rows = ref.rows - len(dead)

    def live_sizes(self) -> npt.NDArray[np.int64]:
        """Return the live vectors in each list (L,)."""
        starts_L = self.file.list_starts_L.astype(np.int64)
        sizes_L = starts_L[1:] - starts_L[:-1]
        if not len(self.dead_rows):
            return sizes_L
        lists_N = np.repeat(np.arange(len(sizes_L)), sizes_L)
        is_dead_N = np.isin(self.file.rows(), self.dead_rows)
        return sizes_L - np.bincount(lists_N[is_dead_N], minlength=len(sizes_L))


def gather(parts: Sequence[LivePart], first: int, last: int) -> tuple[npt.NDArray[np.int64], Codes]:
    """Return ids (n,) and codes (n, B) of lists `first` to `last`, list by list and, within a list, part by part.

    Each part is read with few calls, and all are put in order at once: with hundreds of parts, Python's own work for
    each of them dominates the time.
    """
    if not parts:
        return np.empty(0, np.int64), np.empty((0, 0), np.uint8)
    starts_Pl = np.stack([part.file.list_starts_L[first : last + 1] for part in parts]).astype(np.int64)
    sizes_Pl = np.diff(starts_Pl)
    rows_n, codes_nB = _read(parts, starts_Pl[:, 0], sizes_Pl.sum(axis=1))
    ids_n = np.empty(len(rows_n), np.int64)
    live_n = np.ones(len(rows_n), np.bool_)
    ends_P = np.cumsum(sizes_Pl.sum(axis=1)).tolist()
    for part, start, end in zip(parts, [0, *ends_P], ends_P, strict=False):
        ids_n[start:end] = index_ids(part.segment_number, rows_n[start:end])
        if len(part.dead_rows):
            live_n[start:end] = ~np.isin(rows_n[start:end], part.dead_rows)
    order_n = _list_order(sizes_Pl)
    order_n = order_n[live_n[order_n]]
    return np.take(ids_n, order_n), np.take(codes_nB, order_n, axis=0)


def _read(
    parts: Sequence[LivePart], starts_P: npt.NDArray[np.int64], sizes_P: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint32], Codes]:
    """Read from position `start` of the list order of each part on; return rows (n,) and codes (n, B), part by part."""
    rows_n = np.empty(sizes_P.sum(), np.uint32)
    codes_nB = np.empty((len(rows_n), parts[0].file.code_bytes), np.uint8)
    end = 0
    for part, start, size in zip(parts, starts_P.tolist(), sizes_P.tolist(), strict=True):
        part.file.read_into(start, rows_n[end : end + size], codes_nB[end : end + size])
        end += size
    return rows_n, codes_nB


def _list_order(sizes_Pl: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the places of vectors in the order of lists, given their order by parts, from the sizes of both."""
    starts_Pl = np.cumsum(sizes_Pl).reshape(sizes_Pl.shape) - sizes_Pl
    sizes_lP = sizes_Pl.T.ravel()
    shifts_lP = starts_Pl.T.ravel() - (np.cumsum(sizes_lP) - sizes_lP)
    return np.repeat(shifts_lP, sizes_lP) + np.arange(sizes_lP.sum())
