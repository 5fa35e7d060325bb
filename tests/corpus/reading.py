"""Reading a whole corpus, as the tests do it."""

from pathlib import Path
from typing import Any

from dpr.corpus.plan import plan_slices
from dpr.corpus.read import read_slice
from dpr.corpus.rows import Row
from dpr.recipe import CorpusConfig


def read(path: Path | str | list[str], **fields: Any) -> list[Row]:
    """All rows of the corpus at `path`; `fields` of the recipe are taken as they are, below its bounds too."""
    where = path if isinstance(path, list) else str(path)
    corpus = CorpusConfig(path=where).model_copy(update=fields)
    return [row for slice_ in plan_slices(corpus) for row in read_slice(slice_, corpus)]
