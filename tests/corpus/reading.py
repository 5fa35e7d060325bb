"""Reading a whole corpus in the tests."""

from pathlib import Path
from typing import Any

from dpr.corpus.reading import read_slice
from dpr.corpus.rows import Row
from dpr.corpus.slices import plan_slices
from dpr.recipe import CorpusConfig


def read(path: Path | str | list[str], **fields: Any) -> list[Row]:
    """Return all rows of the corpus at `path`; `fields` of the recipe are not checked, so they may break its bounds."""
    where = path if isinstance(path, list) else str(path)
    corpus = CorpusConfig(path=where).model_copy(update=fields)
    return [row for slice_ in plan_slices(corpus).slices for row in read_slice(slice_, corpus)]
