"""Planning a scan: from the corpus of a recipe to slices that can be read independently of each other."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from dpr.corpus.detect import DOCUMENT_SUFFIXES, Kind, detect
from dpr.corpus.documents import document_slices
from dpr.corpus.files import Found, find_files
from dpr.corpus.parquet import parquet_slices
from dpr.corpus.python_docs import python_docs_slice
from dpr.corpus.rows import InputFile, Slice
from dpr.errors import CorpusError
from dpr.recipe import CorpusConfig, CorpusFormat

_THREADS: Final = 16  # they wait for first bytes, of object stores above all
_LINES: Final = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_SUFFIXES: Final[dict[CorpusFormat, tuple[str, ...]]] = {
    "dpr-tsv": (".tsv", ".tsv.gz"),
    "beir": ("/corpus.jsonl", "/corpus.jsonl.gz"),
    "jsonl": _LINES,
    "parquet": (".parquet", ".pq"),
    "documents": DOCUMENT_SUFFIXES,
}


def plan_slices(corpus: CorpusConfig) -> list[Slice]:
    """What to read, as slices in a stable order (sorted by path within each path of the recipe).

    Looks at the names, sizes and first bytes of files and at Parquet footers, and reads no passage. Raises CorpusError
    if there is no file, an empty one, one of another format than the recipe or the other files have, or a missing
    column.
    """
    if corpus.format == "python-docs":
        return [python_docs_slice()]
    paths = [corpus.path] if isinstance(corpus.path, str) else corpus.path
    seen: set[str] = set()
    slices: list[Slice] = []
    formats: dict[str, str] = {}
    for path in paths:
        found = find_files(path)
        files = [file for file in _chosen(path, found, corpus.format) if file.path not in seen]
        seen.update(file.path for file in files)
        kinds = _kinds(files, corpus)
        for file, kind in zip(files, kinds, strict=True):
            formats.setdefault(kind.format, file.path)
        slices += _slices(found.root, files, kinds, corpus.slice_bytes)
    if len(formats) > 1:
        first, second = list(formats.items())[:2]
        raise CorpusError(
            f"corpus {corpus.path} mixes formats: {first[1]} is {first[0]}, {second[1]} is {second[0]}; "
            "set corpus.format, or give a path that holds one of them"
        )
    if not slices:
        raise CorpusError(f"corpus {corpus.path} is empty: its files hold no rows; put passages in it")
    return slices


def _chosen(path: str, found: Found, wanted: CorpusFormat) -> list[InputFile]:
    """Files of a folder that can be part of the corpus; a file or glob stands for all that it names."""
    if not found.is_folder:
        return found.files
    suffixes = _SUFFIXES.get(wanted) or tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
    chosen = [file for file in found.files if file.path.lower().endswith(suffixes)]
    if wanted == "auto":
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
    if twice := {path for path in paths if f"{path}.gz" in paths}:
        raise CorpusError(f"corpus folder {path} holds both {min(twice)} and the same with .gz; remove one of them")
    return chosen


def _kinds(files: list[InputFile], corpus: CorpusConfig) -> list[Kind]:
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(lambda file: detect(file, corpus), files))


def _slices(root: str, files: list[InputFile], kinds: list[Kind], slice_bytes: int) -> list[Slice]:
    documents = [file for file, kind in zip(files, kinds, strict=True) if kind.format == "documents"]
    slices = document_slices(root, documents, slice_bytes) if any(file.size_bytes for file in documents) else []
    for file, kind in zip(files, kinds, strict=True):
        if kind.format == "parquet":
            slices += parquet_slices(file, slice_bytes)
        elif kind.format != "documents":
            slices += _line_slices(file, kind, slice_bytes)
    return slices


def _line_slices(file: InputFile, kind: Kind, slice_bytes: int) -> list[Slice]:
    # gzip can only be read from its beginning
    step = file.size_bytes if kind.gzipped else slice_bytes
    return [
        Slice(
            file.path, kind.format, start, min(start + step, file.size_bytes), file.identity, kind.gzipped, kind.columns
        )
        for start in range(0, file.size_bytes, step)
    ]


def slice_bytes(slices: Sequence[Slice]) -> list[int]:
    """How many bytes each slice reads; of a Parquet file its row groups' share, of Python's own docs none."""
    groups: dict[str, int] = {}
    for slice_ in slices:
        groups[slice_.path] = max(groups.get(slice_.path, 0), slice_.stop)

    def size(slice_: Slice) -> int:
        if slice_.format == "parquet":
            file_bytes = int(slice_.identity.partition("-")[0])
            return file_bytes * (slice_.stop - slice_.start) // groups[slice_.path]
        return slice_.stop - slice_.start + sum(file.size_bytes for file in slice_.files)

    return [size(slice_) for slice_ in slices]
