"""Detect what a corpus file is: its format, its compression, and the role of its fields."""

import codecs
import io
import json
from collections.abc import Iterator
from itertools import islice
from typing import IO, Final

from dpr.corpus.arrow_files import arrow_kind
from dpr.corpus.delimited import delimited_kind, is_delimited
from dpr.corpus.fields import fields_of, has_default_names, missing_extra
from dpr.corpus.input_files import open_unchanged
from dpr.corpus.json_values import iter_values
from dpr.corpus.parquet import parquet_kind
from dpr.corpus.rich_documents import RICH_SUFFIXES, missing_library
from dpr.corpus.rows import FileKind, InputFile
from dpr.corpus.signatures import (
    ARROW_MAGIC,
    ARROW_STREAM_MAGIC,
    COMPRESSED_SUFFIXES,
    PARQUET_MAGIC,
    UTF8_BOM,
    Compression,
    archive_of,
    compression_of,
    looks_like,
)
from dpr.corpus.unpacking import unpacked_head
from dpr.errors import OtherFileError
from dpr.recipe import CorpusConfig

PARQUET_SUFFIXES: Final = (".parquet", ".pq")
DOCUMENT_SUFFIXES: Final = (".txt", ".md", *RICH_SUFFIXES)

_HEAD_BYTES: Final = 2**20
_SAMPLE_LINES: Final = 100


def is_document(file: InputFile, corpus: CorpusConfig) -> bool:
    """Return whether a file is read as one document, which the recipe or the file's name decides."""
    return corpus.format == "documents" or (corpus.format == "auto" and file.path.lower().endswith(DOCUMENT_SUFFIXES))


def document_kind(file: InputFile) -> FileKind:
    """Return the kind of a document; OtherFileError if the library that reads it is not installed."""
    if advice := missing_library(file.path):
        raise OtherFileError(f"corpus file {file.path} needs a library that is not installed: {advice}")
    return FileKind(format="documents")


def detect(file: InputFile, corpus: CorpusConfig) -> FileKind:
    """Open a file that is not a document and find its kind, checked against the format and columns of the recipe.

    Reads the footer of Parquet, or the first MiB of anything else. Raises CorpusError for a format that is not known or
    not the recipe's, a missing column, and a file that changed since it was listed.
    """
    if file.size_bytes == 0:
        return FileKind(format="empty", reason="it is empty (0 bytes)")
    with open_unchanged(file.path, file.identity, cache="none") as stream:
        # the head is read in one piece, since some HTTP servers send a file from its beginning only; for a file with
        # a Parquet suffix, the magic bytes are enough, since the footer is read next
        is_parquet = corpus.format in ("parquet", "iceberg", "delta")
        is_named_parquet = corpus.format == "auto" and file.path.lower().endswith(PARQUET_SUFFIXES)
        head = _read_up_to(stream, len(ARROW_MAGIC) if is_parquet or is_named_parquet else _HEAD_BYTES)
        if head.startswith(PARQUET_MAGIC) and (is_parquet or corpus.format == "auto"):
            return parquet_kind(file, stream, corpus)
        if head.startswith((ARROW_MAGIC, ARROW_STREAM_MAGIC)) and corpus.format in ("arrow", "auto"):
            return arrow_kind(file, stream, corpus)
        head += _read_up_to(stream, _HEAD_BYTES - len(head))
    if is_parquet or corpus.format == "arrow":
        raise OtherFileError(
            f"corpus file {file.path} is not {'Parquet' if is_parquet else 'Arrow'} or is damaged: it is "
            f"{looks_like(head)}; fetch it again, or set corpus.format to what it is"
        )
    return _kind_of_text(file, corpus, head)


def _read_up_to(stream: IO[bytes], length: int) -> bytes:
    """Read `length` bytes, or up to the end of the file; one read of a remote file may return fewer."""
    pieces: list[bytes] = []
    while (left := length - sum(map(len, pieces))) and (piece := stream.read(left)):
        pieces.append(piece)
    return b"".join(pieces)  # of a single piece, which is the rule, no copy is made


def _kind_of_text(file: InputFile, corpus: CorpusConfig, head: bytes) -> FileKind:
    compression, is_whole = compression_of(head), len(head) == file.size_bytes
    if compression is None:
        _check_suffix(file, head)
    else:
        head = unpacked_head(head, compression, _HEAD_BYTES, is_whole=is_whole, path=file.path)
        is_whole = is_whole and len(head) < _HEAD_BYTES
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise OtherFileError(f"corpus file {file.path} is UTF-16 text; save it as UTF-8")
    if archive := archive_of(head):  # all lines but the first of a file in the archive would be read
        raise OtherFileError(f"corpus file {file.path} is {archive}; unpack it, and name the folder or the files")
    lines = _first_lines(head, is_whole=is_whole)
    if is_whole and not lines:
        return FileKind(format="empty", reason="it has only empty lines")
    if corpus.format in ("csv", "tsv", "dpr-tsv"):
        if lines and _json_object(lines[0]) is not None:
            raise OtherFileError(f"corpus file {file.path} is not {corpus.format}: its first line is a JSON object")
        return delimited_kind(file, corpus, head, compression, is_csv=corpus.format == "csv", is_whole=is_whole)
    if corpus.format == "auto" and (is_csv := is_delimited(file.path, lines)) is not None:
        return delimited_kind(file, corpus, head, compression, is_csv=is_csv, is_whole=is_whole)
    return _json_kind(file, corpus, head, lines, compression)


def _check_suffix(file: InputFile, head: bytes) -> None:
    """Raise CorpusError if an uncompressed file has the name of a compressed one."""
    for suffix, compression in COMPRESSED_SUFFIXES.items():
        if file.path.endswith(suffix):
            raise OtherFileError(
                f"corpus file {file.path} is not {compression}, as its name says; it is {looks_like(head)}"
            )


def _json_kind(
    file: InputFile, corpus: CorpusConfig, head: bytes, lines: list[str], compression: Compression | None
) -> FileKind:
    of_lines = [document for line in lines if (document := _json_object(line)) is not None]
    objects, format_ = of_lines, "jsonl"
    # an array, and an object that is printed over several lines, may have a line that is an object, too
    is_array = head.removeprefix(UTF8_BOM).lstrip()[:1] == b"["
    if corpus.format in ("auto", "json") and (is_array or not lines or 2 * len(of_lines) < len(lines)):
        values = list(_whole_objects(head))
        if values or corpus.format == "json":
            objects, format_ = values, "json"
    if not objects:
        if _is_empty_array(head):
            return FileKind(format="empty", reason="it is an empty array")
        problem = "is of no known format" if corpus.format == "auto" else f"is not {corpus.format}"
        raise OtherFileError(
            f"corpus file {file.path} {problem}: none of its first lines is a JSON object, and it is "
            f"{looks_like(head)}; formats are tsv, csv, jsonl, json, beir, parquet, arrow, documents"
        )
    names = list(dict.fromkeys(name for document in objects for name in document))
    fields = fields_of(file.path, corpus, names)
    if format_ == "jsonl" and (corpus.format == "beir" or (fields.id == "_id" and has_default_names(corpus.columns))):
        format_ = "beir"
    return FileKind.model_validate(
        {
            "format": format_,
            "compression": compression,
            "fields": fields,
            "missing_extra": missing_extra(file.path, corpus, names),
        }
    )


def _first_lines(head: bytes, *, is_whole: bool) -> list[str]:
    """Return the first non-empty lines; the last one of a longer file is left out, since it may be incomplete."""
    lines = (line for line in io.BytesIO(head.removeprefix(UTF8_BOM)) if is_whole or line.endswith(b"\n"))
    texts = (line.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r") for line in lines if line.strip())
    return list(islice(texts, _SAMPLE_LINES))


def _whole_objects(head: bytes) -> Iterator[dict[str, object]]:
    """Yield the first objects of a JSON document of which `head` is the beginning."""
    for _, data, _ in islice(iter_values(io.BytesIO(head), _HEAD_BYTES), _SAMPLE_LINES):
        if (document := _json_object(data.decode("utf-8", "replace"))) is not None:
            yield document


def _is_empty_array(head: bytes) -> bool:
    return head.removeprefix(UTF8_BOM).split() in ([b"[]"], [b"[", b"]"])


def _json_object(text: str) -> dict[str, object] | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
