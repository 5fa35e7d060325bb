"""Which files of a folder belong to the corpus, and why the others do not."""

from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from dpr.corpus.detect import DOCUMENT_SUFFIXES, PARQUET_SUFFIXES
from dpr.corpus.input_files import Found
from dpr.corpus.rich_documents import RICH_SUFFIXES
from dpr.corpus.rows import InputFile, LeftOut
from dpr.corpus.saved_datasets import DESCRIPTIONS, data_files
from dpr.corpus.signatures import COMPRESSED_SUFFIXES
from dpr.errors import CorpusError
from dpr.recipe import CorpusFormat

_JSON_SUFFIXES: Final = (".jsonl", ".ndjson", ".json")
_SUFFIXES: Final[dict[CorpusFormat, tuple[str, ...]]] = {
    "dpr-tsv": (".tsv",),
    "tsv": (".tsv",),
    "csv": (".csv",),
    "beir": _JSON_SUFFIXES,
    "jsonl": _JSON_SUFFIXES,
    "json": _JSON_SUFFIXES,
    "parquet": PARQUET_SUFFIXES,
    "arrow": (".arrow", ".feather"),
}
_ALL_SUFFIXES: Final = tuple({suffix: None for suffixes in _SUFFIXES.values() for suffix in suffixes})
_DATA_SUFFIXES: Final = tuple(suffix for suffix in _ALL_SUFFIXES if suffix != ".json")
"""Not .json, since such a file may describe others."""
_ABOUT: Final = ("readme", "license", "licence", "changelog", "contributing", "citation", "notice", "authors")
"""Names of files that describe a folder; beside data they are not documents of a corpus."""
MAX_NAMED: Final = 5


class Chosen(NamedTuple):
    """The files of a folder, divided."""

    files: list[InputFile]
    """Those to try."""
    left_out: list[LeftOut]
    """Those to leave out without opening them."""
    is_listed: bool
    """Whether the folder says itself which files belong to it, so that others may lie in it, too."""


def choose_files(path: str, found: Found, format_: CorpusFormat) -> Chosen:
    """Divide the files of a folder. Raises CorpusError if none is to be tried."""
    saved = data_files(found)
    if saved is not None:
        named = {file.path for file in saved}
        others = [file for file in found.files if file.path not in named and not file.path.endswith(DESCRIPTIONS)]
        left_out = [LeftOut(path=file.path, reason="it is not named in state.json") for file in others]
        return Chosen(saved, left_out, is_listed=True)
    # a BEIR folder also holds queries, which are JSONL, too
    beir = {f"{found.root}/corpus.jsonl{packed}" for packed in ("", *COMPRESSED_SUFFIXES)}
    is_beir = format_ in ("auto", "beir") and any(file.path in beir for file in found.files)
    if is_beir:
        chosen = [file for file in found.files if file.path in beir]
        left_out = [
            LeftOut(
                path=file.path,
                reason="in a BEIR folder (one with corpus.jsonl), no other file belongs to the corpus",
            )
            for file in found.files
            if file.path not in beir
        ]
    else:
        reasons = {file.path: _other_format(file.path, format_) for file in found.files}
        chosen = [file for file in found.files if not reasons[file.path]]
        left_out = [LeftOut(path=name, reason=reason) for name, reason in reasons.items() if reason]
    if not chosen:
        raise CorpusError(
            f"corpus folder {path} has no file that corpus.format ({format_}) can be: {name_some(left_out)}; "
            "give a file or a glob to read files whatever their names"
        )
    _check_packed({file.path for file in chosen}, path)
    return Chosen(chosen, left_out, is_listed=is_beir)


def without_abouts(files: Collection[InputFile], documents: Collection[str]) -> list[LeftOut]:
    """Return those of a folder's documents that describe the data beside them: README.md, LICENSE.txt, any PDF, …"""
    reason = "it describes the data beside it; set corpus.format to documents to read it"
    return [
        LeftOut(path=file.path, reason=reason)
        for file in files
        if file.path in documents
        and (PurePosixPath(file.path).stem.lower().startswith(_ABOUT) or file.path.lower().endswith(RICH_SUFFIXES))
    ]


def is_data(path: str) -> bool:
    """Return whether a file is named as data, so that it is an error if it cannot be read."""
    return unpacked_name(path).endswith(_DATA_SUFFIXES)


def unpacked_name(path: str) -> str:
    """Return a path in lower case, without the suffix of its compression."""
    name = path.lower()
    return next((name.removesuffix(suffix) for suffix in COMPRESSED_SUFFIXES if name.endswith(suffix)), name)


def name_some(left_out: Collection[LeftOut]) -> str:
    """Return the first few files that were left out, with their reasons, and how many more there are."""
    named = "; ".join(f"{file.path}: {file.reason}" for file in list(left_out)[:MAX_NAMED])
    more = len(left_out) - MAX_NAMED
    return f"{named}; and {more:,} more" if more > 0 else named


def _other_format(path: str, format_: CorpusFormat) -> str:
    """Return why a file is not tried: by its name it is of another format than the recipe's."""
    if format_ == "auto":
        return ""
    name = unpacked_name(path)
    if format_ == "documents":
        return "" if name.endswith(DOCUMENT_SUFFIXES) else f"its name does not end in {', '.join(DOCUMENT_SUFFIXES)}"
    others = tuple(suffix for suffix in _ALL_SUFFIXES if suffix not in _SUFFIXES[format_])
    return f"its name is not that of {format_}, which corpus.format says" if name.endswith(others) else ""


def _check_packed(paths: Collection[str], folder: str) -> None:
    """Raise CorpusError if a file exists both plain and compressed: its passages would be read twice."""
    for path in sorted(paths):
        suffix = next((suffix for suffix in COMPRESSED_SUFFIXES if path.endswith(suffix)), None)
        if suffix is not None and path.removesuffix(suffix) in paths:
            raise CorpusError(
                f"corpus folder {folder} holds both {path.removesuffix(suffix)} and the same with {suffix}; "
                "remove one of them"
            )
