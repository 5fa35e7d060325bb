"""Quarantine: rows that could not be used, kept with their position, the reason, and their raw bytes."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from dpr.formats.objects import damage_explained

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("raw", pa.binary(), nullable=False),
    ]
)
_STORED: dict[str, object] = {"compression": "zstd", "write_page_checksum": True}
_MAX_HELD_ROWS = 1_000
_MAX_HELD_BYTES = 8 << 20


class QuarantinedRow(NamedTuple):
    """One unusable row: its file, its position there (byte offset or row number), the reason, its bytes."""

    source: str
    position: int
    reason: str
    raw: bytes


class QuarantineWriter:
    """Writes rows to a Parquet file as they come, in bounded memory; a context manager. Without rows, no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._held: list[QuarantinedRow] = []
        self._held_bytes = 0
        self.rows = 0

    def add(self, row: QuarantinedRow) -> None:
        """Add one row, which is written with the next batch."""
        self.rows += 1
        self._held.append(row)
        self._held_bytes += len(row.raw)
        if len(self._held) >= _MAX_HELD_ROWS or self._held_bytes >= _MAX_HELD_BYTES:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def _flush(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, SCHEMA, **_STORED)
        self._writer.write_table(pa.Table.from_pylist([row._asdict() for row in self._held], schema=SCHEMA))
        self._held, self._held_bytes = [], 0


def write_quarantine(path: Path, rows: Iterable[QuarantinedRow]) -> int:
    """Write rows as Parquet with the columns source, position, reason, raw; returns how many there were."""
    with QuarantineWriter(path) as writer:
        for row in rows:
            writer.add(row)
    return writer.rows


@dataclass(frozen=True)
class Reasons:
    """Why the rows of a quarantine file could not be used."""

    counts: Counter[str]
    """Rows by reason; what follows a colon, which differs from row to row, is left out."""
    examples: dict[str, QuarantinedRow]
    """The first row of each reason."""


def join_quarantine(path: Path, files: Iterable[Path | BinaryIO]) -> Reasons:
    """Write the rows of several quarantine files into one, in bounded memory; returns their reasons."""
    reasons = Reasons(Counter(), {})
    with pq.ParquetWriter(path, SCHEMA, **_STORED) as writer:
        for batch in _batches(files):
            writer.write_batch(batch)
            kinds = [reason.partition(":")[0] for reason in batch["reason"].to_pylist()]
            reasons.counts.update(kinds)
            for kind in set(kinds) - reasons.examples.keys():
                row = batch.slice(kinds.index(kind), 1).to_pylist()[0]
                reasons.examples[kind] = QuarantinedRow(**row)
    return reasons


def _batches(files: Iterable[Path | BinaryIO]) -> Iterator[pa.RecordBatch]:
    for file in files:
        with damage_explained(file):
            yield from pq.ParquetFile(file, page_checksum_verification=True).iter_batches(_MAX_HELD_ROWS)
