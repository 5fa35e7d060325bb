"""Lance tables: a fragment is a slice, known by its data files and deletions, so it is read again if they change."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from dpr.corpus.batches import BATCH_ROWS, batch_rows, fields_of_schema, wanted_columns
from dpr.corpus.rows import Row, Slice
from dpr.errors import CorpusError
from dpr.fingerprint import fingerprint
from dpr.recipe import CorpusConfig


def lance_slices(path: str, corpus: CorpusConfig, library: Any) -> tuple[int, list[Slice]]:
    """Return the newest version of a table, and one slice a fragment; CorpusError if a column is missing."""
    table = library.dataset(path)
    fields = fields_of_schema(path, corpus, table.schema)
    names = wanted_columns(fields, corpus, table.schema)
    if lost := [name for name in corpus.columns.extra if name not in names]:
        raise CorpusError(f"corpus {path} has no column {lost[0]!r}; correct columns.extra in the recipe")
    slices = [
        Slice(
            path=path,
            format="lance",
            start=fragment.fragment_id,
            stop=fragment.fragment_id + 1,
            size_bytes=sum(file.file_size_bytes or 0 for file in fragment.metadata.files),
            identity=_identity(fragment),
            fields=fields,
        )
        for fragment in table.get_fragments()
    ]
    return table.version, slices


def read_lance(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """Yield the live rows of a fragment; CorpusError if it has changed since the run was planned."""
    table = import_module("lance").dataset(slice_.path)
    fragment = table.get_fragment(slice_.start)
    if fragment is None or _identity(fragment) != slice_.identity:
        raise CorpusError(
            f"corpus {slice_.path} changed while it was being scanned (its fragment {slice_.start} is another now); "
            "start the run again when nothing writes to it"
        )
    heads = dict.fromkeys(
        name if name in table.schema.names else name.partition(".")[0]
        for name in wanted_columns(slice_.fields, corpus, table.schema)
    )
    position = 0
    for batch in fragment.to_batches(columns=list(heads), batch_size=BATCH_ROWS):
        yield from batch_rows(slice_.path, position, batch, slice_.fields, corpus)
        position += batch.num_rows


def _identity(fragment: Any) -> str:
    """Return a fingerprint of a fragment's rows: its data files, and which rows are deleted."""
    document = fragment.metadata.to_json()
    files = [[file["path"], file["fields"]] for file in document["files"]]
    deletions = document["deletion_file"] or {}
    return fingerprint(
        [files, document["physical_rows"], deletions.get("id"), deletions.get("read_version"), document.get("overlays")]
    )
