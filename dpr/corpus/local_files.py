"""Walking local folders: links are followed, and what several names lead to is listed once."""

import os
from collections.abc import Iterator
from typing import NamedTuple

from dpr.errors import CorpusError


def find_local(root: str, max_depth: int | None = None) -> list[str]:
    """Return the paths of all files below the folder `root`, sorted; with `max_depth` 1, those directly in it.

    Linked files and folders are followed. A file that several names lead to is listed once, by a name without links if
    there is one. So loops do no harm. Raises OSError for a folder that may not be read, and CorpusError for a link that
    leads nowhere.
    """
    found: dict[str, str] = {}
    seen = {os.path.realpath(root)}
    folders, linked_files = [_Folder(root, os.path.realpath(root), 0)], list[str]()
    while folders:
        links: list[tuple[str, int]] = []
        for folder in folders:
            for entry, real, depth in _entries(folder, max_depth, seen):
                if not entry.is_symlink():
                    found.setdefault(real, entry.path)
                elif entry.is_dir():
                    links.append((entry.path, depth))
                else:
                    linked_files.append(entry.path)
        # plain folders come first, so that a folder that is also linked keeps its own name
        folders = [_Folder(path, os.path.realpath(path), depth) for path, depth in sorted(links)]
        folders = [folder for folder in folders if _is_new(folder.real, seen)]
    for path in sorted(linked_files):
        if not os.path.exists(path):
            raise CorpusError(f"corpus file {path} is a link to what is not there; mend the link or remove it")
        found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


class _Folder(NamedTuple):
    path: str
    real: str
    """Its path without links."""
    depth: int


def _entries(folder: _Folder, max_depth: int | None, seen: set[str]) -> Iterator[tuple["os.DirEntry[str]", str, int]]:
    """Yield the files and links below a folder, links not followed: entry, path without links, and depth."""
    if folder.depth == max_depth:
        return
    with os.scandir(folder.path) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        real = os.path.join(folder.real, entry.name)
        if entry.is_dir(follow_symlinks=False):
            if _is_new(real, seen):
                yield from _entries(_Folder(entry.path, real, folder.depth + 1), max_depth, seen)
        elif entry.is_symlink() or entry.is_file():  # a socket or a pipe is no file
            yield entry, real, folder.depth + 1


def _is_new(folder: str, seen: set[str]) -> bool:
    is_new = folder not in seen
    seen.add(folder)
    return is_new
