"""Walking local folders: links are followed, and what several names lead to is listed once."""

import os
from collections.abc import Iterator

from dpr.errors import CorpusError


def find_local(root: str, max_depth: int | None = None) -> list[str]:
    """Return the paths of all files below the folder `root`, sorted; with `max_depth` 1, those directly in it.

    Linked files and folders are followed. A file that several names lead to is listed once, by a name without links if
    there is one. So loops do no harm. Raises OSError for a folder that may not be read, and CorpusError for a link that
    leads nowhere.
    """
    found: dict[str, str] = {}
    seen = {os.path.realpath(root)}
    linked_folders, linked_files = [(root, 0)], list[str]()
    while linked_folders:
        waiting = linked_folders
        linked_folders = []
        for folder, depth in sorted(waiting):
            for path, below, kind in _entries(folder, depth, max_depth, seen):
                if kind == "file":
                    found.setdefault(os.path.realpath(path), path)
                elif os.path.isdir(path):
                    linked_folders.append((path, below))
                else:
                    linked_files.append(path)
        linked_folders = [(path, depth) for path, depth in sorted(linked_folders) if _is_new(path, seen)]
    for path in sorted(linked_files):
        if not os.path.exists(path):
            raise CorpusError(f"corpus file {path} is a link to what is not there; mend the link or remove it")
        found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def _entries(folder: str, depth: int, max_depth: int | None, seen: set[str]) -> Iterator[tuple[str, int, str]]:
    """Yield path, depth and kind (`file` or `link`) of what is below a folder, links not followed."""
    if depth == max_depth:
        return
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_symlink():
            yield entry.path, depth + 1, "link"
        elif entry.is_dir():
            if _is_new(entry.path, seen):
                yield from _entries(entry.path, depth + 1, max_depth, seen)
        else:
            yield entry.path, depth + 1, "file"


def _is_new(folder: str, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    is_new = real not in seen
    seen.add(real)
    return is_new
