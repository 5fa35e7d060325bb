"""What a corpus file is, by its first bytes: its format, whether it is gzipped, whether it has the columns needed."""

import gzip
import io
import json
import zlib
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from dpr.corpus.files import read_head
from dpr.corpus.parquet import PARQUET_MAGIC, check_names, check_parquet
from dpr.corpus.rows import InputFile, ReadFormat
from dpr.corpus.tsv import TSV_COLUMNS, UnusableLineError, split_tsv
from dpr.errors import CorpusError
from dpr.recipe import Columns, CorpusConfig

GZIP_MAGIC: Final = b"\x1f\x8b"
DOCUMENT_SUFFIXES: Final = (".txt", ".md")
UTF8_BOM: Final = b"\xef\xbb\xbf"
BEIR_COLUMNS: Final = Columns(id="_id", title="title", text="text")

_HEAD_BYTES: Final = 2**20
_SAMPLE_LINES: Final = 100


@dataclass(frozen=True)
class Kind:
    """What a file is."""

    format: ReadFormat
    gzipped: bool = False
    columns: tuple[str, ...] = ()
    """Header of a `dpr-tsv` file."""


def detect(file: InputFile, corpus: CorpusConfig) -> Kind:
    """The kind of `file`, checked against the format and columns of the recipe.

    Raises CorpusError for an empty file, one of another format than the recipe's, and a missing column.
    """
    if corpus.format == "documents" or (corpus.format == "auto" and file.path.lower().endswith(DOCUMENT_SUFFIXES)):
        return Kind("documents")
    if file.size_bytes == 0:
        raise CorpusError(f"corpus file {file.path} is empty (0 bytes); remove it or put passages in it")
    head = read_head(file, _HEAD_BYTES)
    if corpus.format == "parquet" or (corpus.format == "auto" and head.startswith(PARQUET_MAGIC)):
        check_parquet(file, corpus.columns)
        return Kind("parquet")
    gzipped = head.startswith(GZIP_MAGIC)
    if gzipped:
        head = _unpacked(file, head)
    elif file.path.endswith(".gz"):
        raise CorpusError(f"corpus file {file.path} is not gzip, as its name says; it begins with {head[:8]!r}")
    lines = _first_lines(head)
    is_whole = len(head) < _HEAD_BYTES
    if is_whole and not lines:
        raise CorpusError(f"corpus file {file.path} holds no lines but empty ones; remove it or put passages in it")
    kind = _line_kind(file, corpus, lines, gzipped)
    if is_whole and kind.columns and len(lines) == 1:
        raise CorpusError(f"corpus file {file.path} holds a header and no passages; remove it or put passages in it")
    return kind


def _line_kind(file: InputFile, corpus: CorpusConfig, lines: list[str], gzipped: bool) -> Kind:
    header = _tsv_header(lines)
    if corpus.format == "dpr-tsv" or (corpus.format == "auto" and set(header) >= set(TSV_COLUMNS)):
        if missing := [name for name in TSV_COLUMNS if name not in header]:
            raise CorpusError(
                f"corpus file {file.path} has no column {missing[0]!r} in its first line {lines[:1]}; "
                "dpr-tsv needs the tab-separated header id, text, title"
            )
        return Kind("dpr-tsv", gzipped, header)
    objects = [document for line in lines if (document := _json_object(line)) is not None]
    if not objects:
        said = "is of no known format" if corpus.format == "auto" else f"is not {corpus.format}"
        raise CorpusError(
            f"corpus file {file.path} {said}: none of its first lines is a JSON object (the first is "
            f"{(lines or [''])[0][:60]!r}); formats are dpr-tsv, beir, jsonl, parquet, documents, python-docs"
        )
    names = list(dict.fromkeys(name for document in objects for name in document))
    is_guessed = corpus.format == "auto" and corpus.columns == Columns()
    is_beir = corpus.format == "beir" or (is_guessed and "id" not in names and "_id" in names)
    # BEIR allows passages without a title; a mapped title that never comes up is a mapping gone wrong
    columns = BEIR_COLUMNS.model_copy(update={"title": None}) if is_beir else corpus.columns
    check_names(file.path, columns, names)
    return Kind("beir" if is_beir else "jsonl", gzipped)


def _tsv_header(lines: list[str]) -> tuple[str, ...]:
    try:
        return tuple(split_tsv(lines[0])) if lines else ()
    except UnusableLineError:
        return ()


def _unpacked(file: InputFile, head: bytes) -> bytes:
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
    """The first non-empty lines; of a longer file the last one is left out, since it may be cut."""
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
