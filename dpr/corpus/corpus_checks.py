"""Checks of a corpus as a whole, once its files are known."""

import os
from collections.abc import Iterable, Mapping
from typing import Final

from dpr.corpus.fields import missing_extra
from dpr.corpus.folders import name_some
from dpr.corpus.rows import FileKind, LeftOut, Slice
from dpr.errors import CorpusError, RecipeError
from dpr.hidden_names import is_hidden_name
from dpr.plurals import counted
from dpr.recipe import CorpusConfig

NO_FORMAT: Final = ("empty", "unreadable")
"""Values of `FileKind.format` for files that hold no rows for us."""


def check_apart(store: str, folders: Iterable[str]) -> None:
    """Raise RecipeError if a store lies in one of the folders whose files are read, unless it is hidden there."""
    for folder in folders:
        if "://" in store + folder:
            continue
        inside = os.path.relpath(os.path.realpath(store), os.path.realpath(folder)).split(os.sep)
        if inside[0] != os.pardir and not any(is_hidden_name(name) for name in inside if name != os.curdir):
            raise RecipeError(
                f"field store is {store}, which is in the folder {folder} of corpus.path, so the next run would read "
                "it as passages; name a folder outside of it"
            )


def check_left_out(
    corpus: CorpusConfig, slices: list[Slice], left_out: list[LeftOut], kinds: Mapping[str, FileKind]
) -> None:
    """Raise CorpusError if nothing is left to read, or if the recipe wants all files to be read and some are not."""
    if corpus.strict and left_out:
        raise CorpusError(
            f"corpus {corpus.path} has {counted(len(left_out), 'file')} left unread, and corpus.strict is true: "
            f"{name_some(left_out)}; remove them, or name what to read in corpus.path"
        )
    if slices:
        return
    if left_out and not kinds:
        raise CorpusError(f"corpus {corpus.path} has no file that can be read: {name_some(left_out)}")
    reason = next((f" ({path}: {kind.reason})" for path, kind in kinds.items() if kind.reason), "")
    raise CorpusError(f"corpus {corpus.path} is empty: its files hold no rows{reason}; put passages in it")


def check_extra(corpus: CorpusConfig, kinds: Mapping[str, FileKind]) -> None:
    """Raise CorpusError if no file has an extra column that the recipe names."""
    with_rows = {path: kind for path, kind in kinds.items() if kind.format not in NO_FORMAT}
    missing = [
        set(missing_extra(path, corpus, ()) if kind.format == "documents" else kind.missing_extra)
        for path, kind in with_rows.items()
    ]
    if missing and (nowhere := set.intersection(*missing)):
        raise CorpusError(
            f"corpus {corpus.path} has no column {min(nowhere)!r} in any file; correct columns.extra in the recipe"
        )


def check_one_format(corpus: CorpusConfig, kinds: Mapping[str, FileKind]) -> None:
    """Raise CorpusError if the files, by path, are of more than one format."""
    first_paths: dict[str, str] = {}
    for path, kind in kinds.items():
        if kind.format not in NO_FORMAT:
            # JSON is JSON, however its objects are divided into lines
            first_paths.setdefault("jsonl" if kind.format == "json" else kind.format, path)
    if len(first_paths) > 1:
        (format_, path), (other_format, other_path) = list(first_paths.items())[:2]
        raise CorpusError(
            f"corpus {corpus.path} mixes formats: {path} is {format_}, {other_path} is {other_format}; "
            "set corpus.format, or give a path that holds one of them"
        )
