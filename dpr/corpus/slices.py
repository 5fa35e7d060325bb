"""Planning a scan: from the corpus of a recipe to slices that can be read independently of each other."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from dpr.corpus.detect import DOCUMENT_SUFFIXES, PARQUET_SUFFIXES, detect, is_document
from dpr.corpus.documents import document_slices
from dpr.corpus.input_files import Found, find_files
from dpr.corpus.parquet import parquet_slices
from dpr.corpus.rows import FileKind, InputFile, Slice
from dpr.errors import CorpusError
from dpr.fingerprint import fingerprint
from dpr.recipe import CorpusConfig, CorpusFormat
from dpr.store import PARALLEL_READS

_JSONL_SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_SUFFIXES: Final[dict[CorpusFormat, tuple[str, ...]]] = {
    "dpr-tsv": (".tsv", ".tsv.gz"),
    "beir": ("/corpus.jsonl", "/corpus.jsonl.gz"),
    "jsonl": _JSONL_SUFFIXES,
    "parquet": PARQUET_SUFFIXES,
    "documents": DOCUMENT_SUFFIXES,
}
_DOCUMENT: Final = FileKind(format="documents")
_NOTHING_KNOWN: Final[Mapping[str, FileKind]] = MappingProxyType({})


@dataclass(frozen=True)
class CorpusPlan:
    """What to read, and what was found out about the files on the way."""

    slices: list[Slice]
    """In a stable order: by path of the recipe, then by path of the file, then by position in it."""
    kinds: dict[str, FileKind]
    """The kinds of files that have to be opened to know them, by `kind_key`; pass it as `known` on the next night."""


@dataclass(frozen=True)
class _Folder:
    """The corpus files below one folder, sorted by path."""

    root: str
    files: list[InputFile]


def plan_slices(corpus: CorpusConfig, known: Mapping[str, FileKind] = _NOTHING_KNOWN) -> CorpusPlan:
    """List the corpus, find out what each file is, and cut the files into slices.

    A file whose kind is in `known` (`CorpusPlan.kinds` of an earlier night) is listed and not opened. Of every other
    file the beginning is read, or the footer if it is Parquet. Raises CorpusError if there is no file, a file is empty,
    its format differs from that of the recipe or of the other files, or a column is missing.
    """
    folders = _list_folders(corpus)
    files = [file for folder in folders for file in folder.files]
    keys = {file.path: kind_key(file, corpus) for file in files if not is_document(file, corpus)}
    found = _detect_all([file for file in files if file.path in keys and keys[file.path] not in known], corpus)
    remembered = {key: found.get(path) or known[key] for path, key in keys.items()}
    kinds = {file.path: remembered[keys[file.path]] if file.path in keys else _DOCUMENT for file in files}
    _check_one_format(corpus, kinds)
    slices = [slice_ for folder in folders for slice_ in _folder_slices(folder, kinds, corpus.slice_bytes)]
    if not slices:
        raise CorpusError(f"corpus {corpus.path} is empty: its files hold no rows; put passages in it")
    return CorpusPlan(slices, remembered)


def kind_key(file: InputFile, corpus: CorpusConfig) -> str:
    """Return the fingerprint of everything that decides the kind of a file: the file, and how the recipe reads it."""
    recipe = corpus.model_dump(mode="json", include={"format", "columns"})
    return fingerprint({"path": file.path, "identity": file.identity, "recipe": recipe})


def _list_folders(corpus: CorpusConfig) -> list[_Folder]:
    """List the files of each path of the recipe; a file that several paths name belongs to the first of them."""
    listed: set[str] = set()
    folders: list[_Folder] = []
    for path in [corpus.path] if isinstance(corpus.path, str) else corpus.path:
        found = find_files(path)
        files = [file for file in _corpus_files(path, found, corpus.format) if file.path not in listed]
        listed.update(file.path for file in files)
        folders.append(_Folder(found.root, files))
    return folders


def _corpus_files(path: str, found: Found, format_: CorpusFormat) -> list[InputFile]:
    """Choose the files of a folder that can be part of the corpus; a file or a glob stands for all that it names."""
    if not found.is_folder:
        return found.files
    suffixes = _SUFFIXES.get(format_) or tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
    chosen = [file for file in found.files if file.path.lower().endswith(suffixes)]
    if format_ == "auto":
        # a BEIR folder also holds queries, which are JSONL too
        beir = {found.root + suffix for suffix in _SUFFIXES["beir"]}
        chosen = [file for file in chosen if file.path in beir] or chosen
    if not chosen:
        names = ", ".join(suffix.replace(".", "*.", 1) if suffix.startswith(".") else suffix[1:] for suffix in suffixes)
        raise CorpusError(
            f"corpus folder {path} has {len(found.files)} files but none is named like {names}; "
            "give a file or a glob to read files of other names"
        )
    paths = {file.path for file in chosen}
    if packed_too := {path for path in paths if f"{path}.gz" in paths}:
        raise CorpusError(
            f"corpus folder {path} holds both {min(packed_too)} and the same with .gz; remove one of them"
        )
    return chosen


def _detect_all(files: list[InputFile], corpus: CorpusConfig) -> dict[str, FileKind]:
    """Find out the kinds of files, by path, opening many files at a time."""
    with ThreadPoolExecutor(PARALLEL_READS) as threads:
        kinds = threads.map(lambda file: detect(file, corpus), files)
        return dict(zip((file.path for file in files), kinds, strict=True))


def _check_one_format(corpus: CorpusConfig, kinds: Mapping[str, FileKind]) -> None:
    """Raise CorpusError if the files, by path, are of more than one format."""
    first_paths: dict[str, str] = {}
    for path, kind in kinds.items():
        first_paths.setdefault(kind.format, path)
    if len(first_paths) > 1:
        (format_, path), (other_format, other_path) = list(first_paths.items())[:2]
        raise CorpusError(
            f"corpus {corpus.path} mixes formats: {path} is {format_}, {other_path} is {other_format}; "
            "set corpus.format, or give a path that holds one of them"
        )


def _folder_slices(folder: _Folder, kinds: Mapping[str, FileKind], slice_bytes: int) -> list[Slice]:
    documents = [file for file in folder.files if kinds[file.path].format == "documents"]
    slices = document_slices(folder.root, documents, slice_bytes) if any(f.size_bytes for f in documents) else []
    for file in folder.files:
        kind = kinds[file.path]
        if kind.format == "parquet":
            slices += parquet_slices(file, kind, slice_bytes)
        elif kind.format != "documents":
            slices += _line_slices(file, kind, slice_bytes)
    return slices


def _line_slices(file: InputFile, kind: FileKind, slice_bytes: int) -> list[Slice]:
    # gzip can only be read from its beginning
    step = file.size_bytes if kind.gzipped else slice_bytes
    bounds = [(start, min(start + step, file.size_bytes)) for start in range(0, file.size_bytes, step)]
    return [
        Slice(
            path=file.path,
            format=kind.format,
            start=start,
            stop=stop,
            size_bytes=stop - start,
            identity=file.identity,
            gzipped=kind.gzipped,
            columns=kind.columns,
        )
        for start, stop in bounds
    ]
