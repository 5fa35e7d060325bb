"""Parquet corpora: the footer is checked, row groups are cut into slices, and rows are read in batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dpr.corpus.batches import BATCH_ROWS, batch_rows, fields_of_schema, wanted_columns
from dpr.corpus.fields import missing_extra
from dpr.corpus.input_files import open_unchanged
from dpr.corpus.rows import FileKind, InputFile, Row, Slice
from dpr.errors import CorpusError
from dpr.recipe import CorpusConfig

_STREAM_BYTES: Final = 4 * 2**20


def parquet_kind(file: InputFile, stream: IO[bytes], corpus: CorpusConfig) -> FileKind:
    """Read the footer of an open file and return its kind, with the size of each row group.

    Raises CorpusError unless the file is undamaged Parquet that has the mapped columns, of types that can hold them.
    """
    with damage_errors(file.path, "Parquet"):
        parquet = _parquet_file(stream)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    if not any(group.num_rows for group in groups):
        return FileKind(format="empty", reason="it has no rows")
    return FileKind(
        format="parquet",
        fields=fields_of_schema(file.path, corpus, schema),
        missing_extra=missing_extra(file.path, corpus, schema.names),
        row_group_rows=tuple(group.num_rows for group in groups),
        row_group_bytes=tuple(group.total_byte_size for group in groups),
    )


def parquet_slices(file: InputFile, kind: FileKind, slice_bytes: int) -> list[Slice]:
    """Cut a file into runs of whole row groups of about `slice_bytes` each; none if it has no rows."""
    pairs = zip(kind.row_group_rows, kind.row_group_bytes, strict=True)
    sizes_bytes = [size_bytes if rows else 0 for rows, size_bytes in pairs]
    all_bytes = sum(sizes_bytes)
    slices: list[Slice] = []
    start, held_bytes = 0, 0
    for number, size_bytes in enumerate(sizes_bytes):
        held_bytes += size_bytes
        if held_bytes and (held_bytes >= slice_bytes or number == len(sizes_bytes) - 1):
            slices.append(
                Slice(
                    path=file.path,
                    format="parquet",
                    start=start,
                    stop=number + 1,
                    size_bytes=file.size_bytes * held_bytes // all_bytes,
                    identity=file.identity,
                    fields=kind.fields,
                )
            )
            start, held_bytes = number + 1, 0
    return slices


def read_parquet(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield the rows of a slice; CorpusError if the file is damaged or does not hold the rows that its footer says."""
    with _opened(slice_.path, slice_.identity) as parquet:
        counts = [parquet.metadata.row_group(number).num_rows for number in range(slice_.stop)]
        first = position = sum(counts[: slice_.start])
        groups = range(slice_.start, slice_.stop)
        names = wanted_columns(slice_.fields, corpus, parquet.schema_arrow)
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=names):
            yield from batch_rows(slice_.path, position, batch, slice_.fields, corpus)
            position += batch.num_rows
    if position - first != sum(counts[slice_.start :]):
        raise CorpusError(
            f"corpus file {slice_.path} has {position - first} rows in row groups [{slice_.start}, {slice_.stop}), "
            f"but its footer says {sum(counts[slice_.start :])}; write it again"
        )


@contextmanager
def _opened(path: str, identity: str) -> Iterator[pq.ParquetFile]:
    with open_unchanged(path, identity, cache="none") as file, damage_errors(path, "Parquet"):
        yield _parquet_file(file)


def _parquet_file(file: IO[bytes]) -> pq.ParquetFile:
    # without pre-buffering, no row group is held whole; page checksums are verified if the file has them
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=_STREAM_BYTES, page_checksum_verification=True)


@contextmanager
def damage_errors(path: str, what: str) -> Iterator[None]:
    """Turn pyarrow's errors about a damaged file into CorpusError; `what` names the format."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        problem = " ".join(str(error).split())
        raise CorpusError(f"corpus file {path} is not {what} or is damaged ({problem}); fetch it again") from error
