"""Parquet corpora: the footer is checked, row groups are cut into slices, and rows are read in batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from dpr.corpus.input_files import open_unchanged
from dpr.corpus.rows import FileKind, InputFile, Row, Slice, checked_row, unusable_row
from dpr.errors import CorpusError
from dpr.recipe import Columns, CorpusConfig

PARQUET_MAGIC: Final = b"PAR1"
_BATCH_ROWS: Final = 1024
_STREAM_BYTES: Final = 4 * 2**20


def parquet_kind(file: InputFile, stream: IO[bytes], columns: Columns) -> FileKind:
    """Read the footer of an open file and return its kind, with the size of each row group.

    Raises CorpusError unless the file is undamaged Parquet that has the mapped columns, of types that can hold them.
    """
    with _damage_errors(file.path):
        parquet = _parquet_file(stream)
        schema, metadata = parquet.schema_arrow, parquet.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    check_names(file.path, columns, schema.names)
    for role, name in _roles(columns):
        held = schema.field(name).type
        held = held.value_type if pa.types.is_dictionary(held) else held
        if not (_is_text(held) or (role == "id" and pa.types.is_integer(held))):
            allowed = "strings or integers" if role == "id" else "strings"
            raise CorpusError(
                f"corpus file {file.path} has {held} in column {name!r}; columns.{role} must name one of {allowed}"
            )
    return FileKind(
        format="parquet",
        row_group_rows=tuple(group.num_rows for group in groups),
        row_group_bytes=tuple(group.total_byte_size for group in groups),
    )


def check_names(path: str, columns: Columns, names: list[str]) -> None:
    """Raise CorpusError if a mapped column is not among `names`."""
    for role, name in _roles(columns):
        if names.count(name) != 1:
            without = " (null: passages have no titles)" if role == "title" else ""
            raise CorpusError(
                f"corpus file {path} has no column {name!r}, only {names}; set columns.{role} in the recipe{without}"
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
                )
            )
            start, held_bytes = number + 1, 0
    return slices


def read_parquet(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield the rows of a slice; CorpusError if the file is damaged or does not hold the rows that its footer says."""
    names = [name for _, name in _roles(corpus.columns)]
    with _opened(slice_.path, slice_.identity) as parquet:
        counts = [parquet.metadata.row_group(number).num_rows for number in range(slice_.stop)]
        first = position = sum(counts[: slice_.start])
        groups = range(slice_.start, slice_.stop)
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=list(dict.fromkeys(names))):
            values = {name: _values(batch.column(name)) for name in batch.schema.names}
            yield from _batch_rows(slice_.path, position, values, corpus)
            position += batch.num_rows
    if position - first != sum(counts[slice_.start :]):
        raise CorpusError(
            f"corpus file {slice_.path} has {position - first} rows in row groups [{slice_.start}, {slice_.stop}), "
            f"but its footer says {sum(counts[slice_.start :])}; write it again"
        )


def _batch_rows(path: str, position: int, values: dict[str, list[Any]], corpus: CorpusConfig) -> Iterator[Row]:
    columns, names = corpus.columns, tuple(values)
    ids, texts = values[columns.id], values[columns.text]
    titles = values[columns.title] if columns.title is not None else [None] * len(ids)
    rows = zip(zip(*values.values(), strict=True), zip(ids, titles, texts, strict=True), strict=True)
    for number, (stored, fields) in enumerate(rows, position):
        place, row = (path, number), (names, stored)
        if _Undecoded in map(type, fields):
            yield unusable_row(place, row, "bad UTF-8")
        else:
            yield checked_row(place, row, fields, corpus.max_passage_chars)


class _Undecoded(str):
    """Text decoded from bytes that are not UTF-8: each invalid byte is half of a surrogate pair."""


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_integer(column.type):
        try:
            return list(column.cast(pa.large_string()).to_pylist())
        except (UnicodeDecodeError, pa.ArrowInvalid):  # at least one value is not UTF-8
            return [None if data is None else _decoded(data) for data in column.cast(pa.large_binary()).to_pylist()]
    return list(column.to_pylist())


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _Undecoded(data.decode("utf-8", "surrogateescape"))


def _is_text(held: pa.DataType) -> bool:
    types = pa.types
    strings = types.is_string(held) or types.is_large_string(held) or types.is_string_view(held)
    binaries = types.is_binary(held) or types.is_large_binary(held) or types.is_binary_view(held)
    return bool(strings or binaries or types.is_null(held))


def _roles(columns: Columns) -> list[tuple[str, str]]:
    pairs = (("id", columns.id), ("title", columns.title), ("text", columns.text))
    return [(role, name) for role, name in pairs if name is not None]


@contextmanager
def _opened(path: str, identity: str) -> Iterator[pq.ParquetFile]:
    with open_unchanged(path, identity, cache="none") as file, _damage_errors(path):
        yield _parquet_file(file)


def _parquet_file(file: IO[bytes]) -> pq.ParquetFile:
    # without pre-buffering, no row group is held whole; page checksums are verified if the file has them
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=_STREAM_BYTES, page_checksum_verification=True)


@contextmanager
def _damage_errors(path: str) -> Iterator[None]:
    """Turn pyarrow's errors about a damaged file into CorpusError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        problem = " ".join(str(error).split())
        raise CorpusError(f"corpus file {path} is not Parquet or is damaged ({problem}); fetch it again") from error
