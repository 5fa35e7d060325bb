"""Write a lexical part: the words of one segment as an inverted file.

The writer of a segment has its texts and writes its words, too; the invert stage makes missing parts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dpr.formats import layout
from dpr.formats.objects import put_object
from dpr.formats.records import ObjectRef
from dpr.lexical.analysis import Analyzer
from dpr.lexical.postings import Postings, invert, write_postings
from dpr.recipe_index import LexicalConfig
from dpr.store import Store
from dpr.store.temporary import temporary_folder


@dataclass(frozen=True)
class WriteWords:
    """Writes the lexical part of a segment under one rule that turns texts into terms."""

    store: Store
    analyzer: Analyzer

    @classmethod
    def of(cls, store: Store, config: LexicalConfig) -> "WriteWords | None":
        """Return the writer for a recipe; None if it does not want an index of words."""
        return cls(store, Analyzer(config)) if config.build else None

    def __call__(self, segment: ObjectRef, postings: Postings) -> ObjectRef:
        """Write the part of a segment with these postings."""
        with temporary_folder() as folder:
            path = Path(folder, "words.safetensors")
            write_postings(postings, path)
            stem = layout.lexical_part(self.analyzer.analysis_id, segment.sha256)
            return put_object(self.store, stem, path)

    def postings(self, texts: Iterable[str]) -> Postings:
        """Return the words of texts, one a row."""
        return invert(texts, self.analyzer)


def indexed_texts(passages: pa.Table) -> Iterator[str]:
    """Yield the text of each row whose words are indexed: title and text, joined by a space."""
    for batch in passages.select(["title", "text"]).to_batches(max_chunksize=10_000):
        titles, texts = batch["title"].to_pylist(), batch["text"].to_pylist()
        yield from (f"{title} {text}" for title, text in zip(titles, texts, strict=True))
