"""What a corpus file is: its format, whether it is gzipped, whether it has the columns that the recipe names."""

import gzip
import io
import json
import zlib
from itertools import islice
from typing import IO, Any, Final

from dpr.corpus.input_files import open_unchanged
from dpr.corpus.parquet import PARQUET_MAGIC, check_names, parquet_kind
from dpr.corpus.rows import FileKind, InputFile
from dpr.corpus.tsv import TSV_COLUMNS, UnusableLineError, split_tsv
from dpr.errors import CorpusError
from dpr.recipe import Columns, CorpusConfig

GZIP_MAGIC: Final = b"\x1f\x8b"
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
DOCUMENT_SUFFIXES: Final = (".txt", ".md")
UTF8_BOM: Final = b"\xef\xbb\xbf"
BEIR_COLUMNS: Final = Columns(id="_id", title="title", text="text")

_HEAD_BYTES: Final = 2**20
_SAMPLE_LINES: Final = 100


def is_document(file: InputFile, corpus: CorpusConfig) -> bool:
    """Tell whether a file is read as one document, which the recipe or the file's name decides."""
    return corpus.format == "documents" or (corpus.format == "auto" and file.path.lower().endswith(DOCUMENT_SUFFIXES))


def detect(file: InputFile, corpus: CorpusConfig) -> FileKind:
    """Open a file that is not a document and find out its kind, checked against the format and columns of the recipe.

    Reads the footer of Parquet, or the first MiB of anything else. Raises CorpusError for an empty file, a
    format that is not the recipe's, a missing column, and a file that changed since it was listed.
    """
    if file.size_bytes == 0:
        raise CorpusError(f"corpus file {file.path} is empty (0 bytes); remove it or put passages in it")
    with open_unchanged(file.path, file.identity, cache="none") as stream:
        if corpus.format == "parquet":
            return parquet_kind(file, stream, corpus.columns)
        # the head is read in one piece, since some HTTP servers send a file from its beginning only; for a file with
        # a Parquet suffix, the magic bytes are enough, since the footer is read next
        is_named_parquet = corpus.format == "auto" and file.path.lower().endswith(PARQUET_SUFFIXES)
        head = _read_up_to(stream, len(PARQUET_MAGIC) if is_named_parquet else _HEAD_BYTES)
        if corpus.format == "auto" and head.startswith(PARQUET_MAGIC):
            return parquet_kind(file, stream, corpus.columns)
        head += _read_up_to(stream, _HEAD_BYTES - len(head))
    return _kind_of_lines(file, corpus, head)


def _read_up_to(stream: IO[bytes], length: int) -> bytes:
    """Read `length` bytes, or up to the end of the file; one read of a remote file may return fewer."""
    pieces = bytearray()
    while len(pieces) < length and (piece := stream.read(length - len(pieces))):
        pieces += piece
    return bytes(pieces)


def _kind_of_lines(file: InputFile, corpus: CorpusConfig, head: bytes) -> FileKind:
    gzipped = head.startswith(GZIP_MAGIC)
    if gzipped:
        head = _unpacked(file, head)
    elif file.path.endswith(".gz"):
        raise CorpusError(f"corpus file {file.path} is not gzip, as its name says; it begins with {head[:8]!r}")
    lines = _first_lines(head)
    is_whole = len(head) < _HEAD_BYTES
    if is_whole and not lines:
        raise CorpusError(f"corpus file {file.path} has only empty lines; remove it or put passages in it")
    header = _tsv_header(lines)
    if corpus.format == "dpr-tsv" or (corpus.format == "auto" and set(header) >= set(TSV_COLUMNS)):
        _check_tsv(file, header, lines, is_whole=is_whole)
        return FileKind(format="dpr-tsv", gzipped=gzipped, columns=header)
    return _json_kind(file, corpus, lines, gzipped=gzipped)


def _check_tsv(file: InputFile, header: tuple[str, ...], lines: list[str], *, is_whole: bool) -> None:
    if missing := [name for name in TSV_COLUMNS if name not in header]:
        raise CorpusError(
            f"corpus file {file.path} has no column {missing[0]!r} in its first line {lines[:1]}; "
            "dpr-tsv needs the tab-separated header id, text, title"
        )
    if is_whole and len(lines) == 1:
        raise CorpusError(f"corpus file {file.path} holds a header and no passages; remove it or put passages in it")


def _json_kind(file: InputFile, corpus: CorpusConfig, lines: list[str], *, gzipped: bool) -> FileKind:
    objects = [document for line in lines if (document := _json_object(line)) is not None]
    if not objects:
        problem = "is of no known format" if corpus.format == "auto" else f"is not {corpus.format}"
        raise CorpusError(
            f"corpus file {file.path} {problem}: none of its first lines is a JSON object (the first is "
            f"{(lines or [''])[0][:60]!r}); formats are dpr-tsv, beir, jsonl, parquet, documents"
        )
    names = list(dict.fromkeys(name for document in objects for name in document))
    is_guessed = corpus.format == "auto" and corpus.columns == Columns()
    is_beir = corpus.format == "beir" or (is_guessed and "id" not in names and "_id" in names)
    # BEIR allows passages without a title; elsewhere a title that no line has is a mistake in the recipe
    columns = BEIR_COLUMNS.model_copy(update={"title": None}) if is_beir else corpus.columns
    check_names(file.path, columns, names)
    return FileKind(format="beir" if is_beir else "jsonl", gzipped=gzipped)


def _tsv_header(lines: list[str]) -> tuple[str, ...]:
    try:
        return tuple(split_tsv(lines[0])) if lines else ()
    except UnusableLineError:
        return ()


def _unpacked(file: InputFile, head: bytes) -> bytes:
    """Unpack the first bytes of a gzipped file, to at most `_HEAD_BYTES`."""
    unpacked = bytearray()
    with gzip.open(io.BytesIO(head)) as stream:
        try:
            while len(unpacked) < _HEAD_BYTES and (chunk := stream.read1(2**16)):
                unpacked += chunk
        except (gzip.BadGzipFile, zlib.error) as error:
            raise CorpusError(f"corpus file {file.path} is damaged gzip ({error}); fetch it again") from error
        except EOFError as error:
            if len(head) == file.size_bytes:
                raise CorpusError(f"corpus file {file.path} is gzip that ends too early; fetch it again") from error
    return bytes(unpacked[:_HEAD_BYTES])


def _first_lines(head: bytes) -> list[str]:
    """Return the first non-empty lines; the last one of a longer file is left out, since it may be incomplete."""
    lines = head.removeprefix(UTF8_BOM).split(b"\n")
    if len(head) == _HEAD_BYTES:
        del lines[-1]
    texts = (line.decode("utf-8", "replace").removesuffix("\r") for line in lines if line and not line.isspace())
    return list(islice(texts, _SAMPLE_LINES))


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
