"""Walking local folders: links are followed, and a file with several names is listed once."""

import os
from typing import Literal, NamedTuple

from dpr.errors import CorpusError
from dpr.hidden_names import is_hidden_name


def find_local(root: str, max_depth: int | None = None) -> list[str]:
    """Return the paths of all files below the folder `root`, sorted; with `max_depth` 1, those directly in it.

    Linked files and folders are followed. A file that several names lead to is listed once: by a name that is not
    hidden if there is one, and of these by one without links. So loops do no harm, and files in a hidden folder are
    found by a link to it. Raises OSError for a folder that may not be read, and CorpusError for a broken link, unless
    it is hidden.
    """
    walk = _Walk(max_depth)
    hidden = walk.below([_Entry(root, os.path.realpath(root), 0, "folder")])
    walk.below(hidden, is_hidden=True)
    return sorted(walk.found.values())


class _Entry(NamedTuple):
    path: str
    real: str
    """Its path without links; of a link, where the link itself stands."""
    depth: int
    kind: Literal["folder", "file", "link"]


class _Walk:
    def __init__(self, max_depth: int | None) -> None:
        self._max_depth = max_depth
        self._seen: set[str] = set()
        """Folders that were listed, by their paths without links."""
        self.found: dict[str, str] = {}
        """Path without links of each file → the path that it is listed by."""

    def below(self, entries: list[_Entry], *, is_hidden: bool = False) -> list[_Entry]:
        """Find the files among `entries` and below them; return the hidden entries below them, which were not searched.

        `is_hidden`: the entries are hidden themselves, and so is all that is below them.
        """
        hidden: list[_Entry] = []
        links = list[_Entry]()
        linked_files = list[_Entry]()
        waiting = list(entries)
        while waiting or links:
            if not waiting:
                # plain folders come first, so that a folder that is also linked keeps its own name
                followed = map(_followed, sorted(links, reverse=True))
                waiting, links = [], []
                for link in followed:
                    (waiting if link.kind == "folder" else linked_files).append(link)
                continue
            entry = waiting.pop()
            if entry.kind == "link":
                links.append(entry)
            elif entry.kind == "file":
                self.found.setdefault(entry.real, entry.path)
            else:
                for inside in self._inside(entry):
                    name = os.path.basename(inside.path)
                    (hidden if not is_hidden and is_hidden_name(name) else waiting).append(inside)
        for file in sorted(linked_files):
            if os.path.exists(file.path):
                self.found.setdefault(file.real, file.path)
            elif not is_hidden:
                raise CorpusError(f"corpus file {file.path} is a broken link; repair or remove it")
        return hidden

    def _inside(self, folder: _Entry) -> list[_Entry]:
        """Return the entries of a folder, if it was not listed before and does not lie too deep."""
        if folder.depth == self._max_depth or folder.real in self._seen:
            return []
        self._seen.add(folder.real)
        with os.scandir(folder.path) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name, reverse=True)
        kinds = [(entry, _kind(entry)) for entry in ordered]
        depth = folder.depth + 1
        return [_Entry(entry.path, os.path.join(folder.real, entry.name), depth, kind) for entry, kind in kinds if kind]


def _kind(entry: "os.DirEntry[str]") -> Literal["folder", "file", "link"] | None:
    """Return the kind of a folder's entry; None for a socket or a pipe, which is not a file."""
    if entry.is_symlink():
        return "link"
    return "folder" if entry.is_dir() else "file" if entry.is_file() else None


def _followed(link: _Entry) -> _Entry:
    """Return the target of a link under the link's name."""
    return link._replace(real=os.path.realpath(link.path), kind="folder" if os.path.isdir(link.path) else "file")
