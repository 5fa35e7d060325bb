"""Loose rows: rows of segments with their vectors, for questions to be compared with one by one.

One object holds them: segment number, row, distance from the centroid of the nearest list, vector. So a searcher
fetches them in one request, wherever they lie in their segments.

Shapes: N rows, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.formats.objects import fetch_object, put_object, read_table
from dpr.formats.records import ObjectRef
from dpr.formats.stored_vectors import Vectors, vector_column, vectors_of
from dpr.store import Store
from dpr.store.temporary import temporary_folder

COLUMNS = ["segment", "row", "distance", "embedding"]


@dataclass(frozen=True)
class LooseRows:
    """Rows, in ascending order of segment and row."""

    segments_N: npt.NDArray[np.uint32]
    rows_N: npt.NDArray[np.uint32]
    distances_N: npt.NDArray[np.float32]
    """How far each is from the centroid of its list (`dpr.index.part.Coded`), if it is far; 0 if it is not."""
    vectors_ND: Vectors

    def __len__(self) -> int:
        return len(self.rows_N)

    @classmethod
    def of_segment(cls, number: int, rows_N: npt.NDArray[np.int64], vectors_ND: Vectors) -> Self:
        """Return rows of one segment that are not far."""
        segments_N = np.full(len(rows_N), number, np.uint32)
        return cls(segments_N, rows_N.astype(np.uint32), np.zeros(len(rows_N), np.float32), vectors_ND)

    @classmethod
    def joined(cls, several: Sequence["LooseRows"], dim: int) -> Self:
        """Return the rows of several sets, which must differ."""
        none = LooseRows.of_segment(0, np.empty(0, np.int64), np.empty((0, dim), np.float16))
        sets = [none, *several]
        segments_N, rows_N = (np.concatenate([getattr(s, name) for s in sets]) for name in ("segments_N", "rows_N"))
        order_N = np.lexsort((rows_N, segments_N))
        distances_N = np.concatenate([s.distances_N for s in sets])
        vectors_ND = np.concatenate([s.vectors_ND for s in sets])
        return cls(segments_N[order_N], rows_N[order_N], distances_N[order_N], vectors_ND[order_N])

    def only(self, chosen_N: npt.NDArray[np.bool_]) -> "LooseRows":
        """Return those that a mask (N,) chooses."""
        return LooseRows(
            self.segments_N[chosen_N], self.rows_N[chosen_N], self.distances_N[chosen_N], self.vectors_ND[chosen_N]
        )

    def farthest(self, most: int) -> "LooseRows":
        """Return the `most` farthest of them; of equally far ones, the first."""
        chosen_N = np.zeros(len(self), np.bool_)
        chosen_N[np.argsort(-self.distances_N, kind="stable")[:most]] = True
        return self.only(chosen_N)

    def in_segment(self, number: int) -> "LooseRows":
        """Return the same rows as those of segment `number`."""
        return LooseRows(np.full_like(self.segments_N, number), self.rows_N, self.distances_N, self.vectors_ND)

    def put(self, store: Store, stem: str) -> ObjectRef | None:
        """Store the rows and return their reference; None, and nothing stored, if there are none."""
        if not len(self):
            return None
        columns = [pa.array(self.segments_N), pa.array(self.rows_N), pa.array(self.distances_N)]
        with temporary_folder() as folder:
            path = Path(folder, "loose.parquet")
            pq.write_table(pa.table([*columns, vector_column(self.vectors_ND)], COLUMNS), path)
            return put_object(store, stem, path)


def read_loose(store: Store, ref: ObjectRef | None, dim: int) -> LooseRows:
    """Return stored rows, verified; none for None."""
    return LooseRows.joined([], dim) if ref is None else read_loose_file(fetch_object(store, ref))


def read_loose_file(path: Path) -> LooseRows:
    """Return the rows of a fetched object."""
    table = read_table(path, COLUMNS)
    segments, rows, distances = (table[name].to_numpy() for name in COLUMNS[:-1])
    return LooseRows(segments, rows, distances, vectors_of(table))
