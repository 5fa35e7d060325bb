"""Make a corpus of Python's own documentation, which is on every machine: language topics and library docstrings.

    python -m demo.python_docs .demo/corpus.jsonl

It holds the topics of `pydoc_data`, and every docstring of at least MIN_WORDS words of a public module, class, function
or method of the standard library. A shorter one ("Return the size of a file.") is added to the entry of its class or
module as "name: docstring". So nothing is lost, and no passage is a single phrase. All entries are split into passages
of 100 words.
"""

import argparse
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from demo.docstrings import stdlib_docstrings
from dpr.corpus.rows import Passage
from dpr.corpus.split import split_words

MIN_WORDS: Final = 12
PASSAGE_WORDS: Final = 100
_UNDERLINES: Final = re.compile(r"^\s*([*=~^-])\1{3,}\s*$", re.MULTILINE)


def write_corpus(path: Path) -> bool:
    """Write the corpus as JSONL, unless the file holds it already; return whether it was written.

    An unchanged corpus keeps its file, and so its modification time: the next run of the recipe has nothing to do.
    Raises CorpusError if Python's sources are not installed.
    """
    lines = (json.dumps(passage._asdict(), ensure_ascii=False) + "\n" for passage in python_passages())
    data = "".join(lines).encode()
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(data)
    unfinished.replace(path)
    return True


def python_passages() -> Iterator[Passage]:
    """Yield all passages.

    An id is `entry#number`, where the entry is a qualified name (`itertools.chain`) or a topic (`topic:with`).
    """
    for name, text in python_entries().items():
        title = name.removeprefix("topic:").removeprefix("builtins.")
        for number, passage in enumerate(split_words(text, PASSAGE_WORDS, overlap=0)):
            yield Passage(f"{name}#{number}", title, passage)


def python_entries() -> dict[str, str]:
    """Return entry name → text: the topics and then the docstrings, both sorted by name."""
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


def main() -> None:
    """Write the corpus to the file that the command line names."""
    parser = argparse.ArgumentParser(description="Write Python's own documentation as a JSONL corpus.")
    parser.add_argument("out", type=Path, help="file to write (JSONL of id, title, text)")
    path: Path = parser.parse_args().out
    print(f"{path} was written" if write_corpus(path) else f"{path} is up to date")


if __name__ == "__main__":
    main()
