"""Arrow IPC files and streams, as Hugging Face `datasets` saves them: read batch by batch, a file in one slice."""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import IO

import pyarrow as pa

from dpr.corpus.batches import BATCH_ROWS, batch_rows, fields_of_schema, wanted_columns
from dpr.corpus.fields import missing_extra
from dpr.corpus.input_files import open_unchanged
from dpr.corpus.parquet import damage_errors
from dpr.corpus.rows import FileKind, InputFile, Row, Slice
from dpr.corpus.signatures import ARROW_MAGIC
from dpr.recipe import CorpusConfig


def arrow_kind(file: InputFile, stream: IO[bytes], corpus: CorpusConfig) -> FileKind:
    """Read the schema of an open file and return its kind; CorpusError unless it has the mapped columns."""
    with damage_errors(file.path, "Arrow"):
        schema, batches = _read(stream)
        if not any(batch.num_rows for batch in batches):
            return FileKind(format="empty", reason="it has no rows")
    return FileKind(
        format="arrow",
        fields=fields_of_schema(file.path, corpus, schema),
        missing_extra=missing_extra(file.path, corpus, schema.names),
    )


def read_arrow(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield the rows of a file; CorpusError if it is damaged."""
    position = 0
    with _opened(slice_.path, slice_.identity) as file:
        schema, batches = _read(file)
        names = {
            name.partition(".")[0] if name not in schema.names else name
            for name in wanted_columns(slice_.fields, corpus, schema)
        }
        for batch in batches:
            batch = _checked(batch, names)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                piece = batch.slice(start, BATCH_ROWS)
                yield from batch_rows(slice_.path, position, piece, slice_.fields, corpus)
                position += piece.num_rows


@contextmanager
def _opened(path: str, identity: str) -> Iterator[IO[bytes]]:
    with open_unchanged(path, identity) as file, damage_errors(path, "Arrow"):
        yield file


def _read(file: IO[bytes]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Return the schema and the batches of an IPC file, or of a stream."""
    file.seek(0)
    is_file = file.read(len(ARROW_MAGIC)) == ARROW_MAGIC
    file.seek(0)
    if not is_file:
        stream = pa.ipc.open_stream(pa.PythonFile(file, "r"))
        return stream.schema, iter(stream)
    reader = pa.ipc.open_file(pa.PythonFile(file, "r"))
    return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))


def _checked(batch: pa.RecordBatch, names: Set[str]) -> pa.RecordBatch:
    """Return some columns of a batch; ArrowInvalid if they are damaged, since Arrow trusts what a file says.

    Whether text is UTF-8 is left open: that concerns single rows.
    """
    batch = batch.select([name for name in batch.schema.names if name in names])
    for column in batch.columns:
        is_large = pa.types.is_large_string(column.type)
        bytes_type = pa.large_binary() if is_large else pa.binary() if pa.types.is_string(column.type) else None
        (column.cast(bytes_type) if bytes_type else column).validate(full=True)
    return batch
