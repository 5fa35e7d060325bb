"""Quarantine: rows that could not be used, kept with where they stand, why, and their raw bytes."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("raw", pa.binary(), nullable=False),
    ]
)


class QuarantinedRow(NamedTuple):
    """One unusable row: its file, its position there (byte offset or row number), the reason, its bytes."""

    source: str
    position: int
    reason: str
    raw: bytes


def write_quarantine(path: Path, rows: Iterable[QuarantinedRow]) -> None:
    """Write rows as Parquet with the columns source, position, reason, raw."""
    pq.write_table(pa.Table.from_pylist([row._asdict() for row in rows], schema=SCHEMA), path, compression="zstd")
