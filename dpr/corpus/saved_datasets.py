"""Folders that Hugging Face `datasets` writes with `save_to_disk`: state.json names the data files of each."""

import json
from typing import Any, Final

from dpr.corpus.input_files import Found, open_unchanged
from dpr.corpus.rows import InputFile
from dpr.errors import CorpusError

_STATE: Final = "/state.json"
DESCRIPTIONS: Final = (_STATE, "/dataset_info.json", "/dataset_dict.json")
"""Suffixes of files that describe a data set and hold no rows."""


def data_files(found: Found) -> list[InputFile] | None:
    """Return the data files of the data sets in a folder; None if there is no data set.

    Raises CorpusError if a state.json cannot be read, or names a file that is not there or an order of rows of its own.
    """
    by_path = {file.path: file for file in found.files}
    states = [file for file in found.files if file.path.endswith(_STATE)]
    named = [(state, _read(state)) for state in states]
    saved = [(state, document) for state, document in named if document is not None]
    if not saved:
        return None
    files: list[InputFile] = []
    for state, document in saved:
        if document.get("_indices_data_files") or document.get("_indices_files"):
            raise CorpusError(
                f"corpus data set {state.path.removesuffix(_STATE)} keeps its rows in an order of its own; save it "
                "again after flatten_indices()"
            )
        for entry in document["_data_files"]:
            path = f"{state.path.removesuffix(_STATE)}/{entry['filename']}"
            if path not in by_path:
                raise CorpusError(
                    f"corpus file {path} is not there, but {state.path} names it; save the data set again"
                )
            files.append(by_path[path])
    return files


def _read(state: InputFile) -> dict[str, Any] | None:  # the JSON of another library
    """Return a state.json; None if it is not that of a data set."""
    with open_unchanged(state.path, state.identity) as file:
        try:
            document = json.loads(file.read())
        except (ValueError, RecursionError):
            return None
    is_state = isinstance(document, dict) and isinstance(document.get("_data_files"), list)
    names = (
        [entry.get("filename") if isinstance(entry, dict) else None for entry in document["_data_files"]]
        if is_state
        else []
    )
    return document if is_state and all(isinstance(name, str) for name in names) else None
