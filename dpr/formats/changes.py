"""The changes file of a run: the rows of every segment to be made, with one row group for each unit."""

import enum
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.formats import layout
from dpr.formats.objects import damage_explained, put_object
from dpr.formats.records import ObjectRef
from dpr.formats.segment import HASH
from dpr.store import Store
from dpr.store.temporary import temporary_folder


class Reason(enum.IntEnum):
    """Why a row of a segment is made; the file holds the number."""

    NEW = 0
    EDITED = 1
    OTHER_ENCODER = 2
    AGAIN = 3
    MOVED = 4

    @property
    def label(self) -> str:
        """Return its name in reports."""
        return self.name.lower().replace("_", " ")

    @property
    def sentence(self) -> str:
        """Return what it means."""
        return _SENTENCES[self]


_SENTENCES = {
    Reason.NEW: "the previous snapshot had no passage with its id",
    Reason.EDITED: "its title, text, windows or extra columns differ from those in the previous snapshot",
    Reason.OTHER_ENCODER: "the store had no snapshot of this encoder, and vectors of different encoders never meet",
    Reason.AGAIN: "it was in the corpus of the previous snapshot, and in no segment: the encoder had refused it",
    Reason.MOVED: "its segment was joined with others or had lost too many rows",
}
_NONE = np.zeros(len(Reason), np.int64)
SCHEMA = pa.schema(
    [
        pa.field("slice", pa.int32(), nullable=False),  # number of the slice with the text; MISSING: the source has it
        pa.field("position", pa.int64(), nullable=False),  # the row's position in that slice
        pa.field("key", HASH, nullable=False),
        pa.field("content_hash", HASH, nullable=False),
        pa.field("source", pa.int32(), nullable=False),  # number of the segment with the vector; MISSING: embed it
        pa.field("reason", pa.int8(), nullable=False),  # a Reason
    ]
)
_STORED: dict[str, object] = {
    "use_dictionary": ["slice", "source", "reason"],
    "write_page_checksum": True,
    # hashes do not compress
    "compression": {
        "slice": "snappy",
        "position": "snappy",
        "key": "none",
        "content_hash": "none",
        "source": "snappy",
        "reason": "snappy",
    },
}


def changes_table(
    slices_N: npt.NDArray[np.integer[Any]],
    positions_N: npt.NDArray[np.integer[Any]],
    keys: pa.FixedSizeBinaryArray,
    content_hashes: pa.FixedSizeBinaryArray,
    sources_N: npt.NDArray[np.integer[Any]],
    reasons_N: npt.NDArray[np.integer[Any]],
) -> pa.Table:
    """Return rows of a changes file from its columns."""
    columns = [slices_N, positions_N, keys, content_hashes, sources_N, reasons_N]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def write_changes(path: Path, units: list[pa.Table]) -> None:
    """Write a changes file with one row group for each unit."""
    with pq.ParquetWriter(path, SCHEMA, **_STORED) as writer:
        for table in units:
            writer.write_table(table, row_group_size=table.num_rows)


def put_changes(store: Store, run_id: str, units: list[pa.Table]) -> ObjectRef | None:
    """Store the changes file of a run and return its reference; None if there is no unit."""
    if not units:
        return None
    with temporary_folder() as folder:
        path = Path(folder, "changes.parquet")
        write_changes(path, units)
        return put_object(store, layout.changes(run_id), path)


def count_reasons(tables: Iterable[pa.Table]) -> dict[str, int]:
    """Return the rows of some units by the label of their reason."""
    counts = sum((np.bincount(table["reason"].to_numpy(), minlength=len(Reason)) for table in tables), start=_NONE)
    return {Reason(number).label: count for number, count in enumerate(counts.tolist()) if count}


def read_unit(file: Path | BinaryIO, group: int) -> pa.Table:
    """Return the rows of one unit."""
    with damage_explained(file):
        # the columns of a row group lie side by side, and are fetched together
        return pq.ParquetFile(file, page_checksum_verification=True, pre_buffer=True).read_row_group(group)
