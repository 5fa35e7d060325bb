"""Python's own documentation as a corpus that is on every machine: language topics and library docstrings.

Rule: the topics of `pydoc_data`, and every docstring of at least MIN_WORDS words of a public module, class, function or
method of the standard library. Shorter ones ("Return the size of a file.") join the entry of their class or module as
"name: docstring", so nothing is lost and no passage is a mere phrase. All are split into passages of 100 words.
"""

import importlib
import platform
import re
import sys
from collections.abc import Iterator
from typing import Final

from dpr.corpus.docstrings import stdlib_docstrings
from dpr.corpus.rows import Row, Slice, checked_row
from dpr.corpus.split import split_words
from dpr.errors import CorpusError
from dpr.recipe import CorpusConfig

MIN_WORDS: Final = 12
_UNDERLINES: Final = re.compile(r"^\s*([*=~^-])\1{3,}\s*$", re.MULTILINE)


def python_docs_slice() -> Slice:
    """The one slice of this corpus; its identity is the Python that runs."""
    return Slice("python-docs", "python-docs", identity=_identity())


def read_python_docs(slice_: Slice, corpus: CorpusConfig) -> Iterator[Row]:
    """All passages: id `entry#number`, where an entry is a qualified name (`itertools.chain`) or `topic:with`.

    Raises CorpusError if this is another Python than the one that planned the slice.
    """
    if slice_.identity != _identity():
        raise CorpusError(
            f"python-docs was planned with {slice_.identity} and is read with {_identity()}; run one Python everywhere"
        )
    position = 0
    for name, text in python_entries().items():
        title = name.removeprefix("topic:").removeprefix("builtins.")
        for number, passage in enumerate(split_words(text, corpus.passage_words, corpus.overlap_words)):
            fields = f"{name}#{number}", title, passage
            yield checked_row((slice_.path, position), passage.encode(), fields, corpus.max_passage_chars)
            position += 1


def python_entries() -> dict[str, str]:
    """Entry name → text, topics first, each group sorted by name."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    entries = {f"topic:{name}": _UNDERLINES.sub("", topics[name]) for name in sorted(topics)}
    docs = stdlib_docstrings()
    long = {name: doc for name, doc in docs.items() if len(doc.split()) >= MIN_WORDS}
    joined: dict[str, list[str]] = {}
    for name, doc in docs.items():
        parent, _, own = name.rpartition(".")
        if name not in long:
            joined.setdefault(parent or name, []).append(f"{own}: {doc}" if parent else doc)
    for name in sorted(long.keys() | joined.keys()):
        text = "\n".join([*([long[name]] if name in long else []), *joined.get(name, [])])
        if len(text.split()) >= MIN_WORDS:
            entries[name] = text
    return entries


def _identity() -> str:
    return f"{platform.python_implementation()}-{platform.python_version()}-{sys.platform}"
