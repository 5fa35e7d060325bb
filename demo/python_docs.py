"""Make a corpus of Python's own documentation, which is on every machine: language topics and library docstrings.

    python -m demo.python_docs .demo/corpus.jsonl

It holds the topics of `pydoc_data`, and every docstring of at least MIN_WORDS words of a public module, class, function
or method of the standard library. A shorter one ("Return the size of a file.") is added to the entry of its class or
module as "name: docstring". So nothing is lost, and no passage is a single phrase. A paragraph that several topics hold
stays in the shortest of them. An entry begins with its signature. It is split into passages of whole paragraphs, up to
100 words; a title says where the entry belongs.
"""

import argparse
import importlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from demo.docstrings import Doc, stdlib_docstrings
from dpr.corpus.rows import Passage
from dpr.corpus.split import split_words

MIN_WORDS: Final = 12
PASSAGE_WORDS: Final = 100
MAX_SUMMARY_WORDS: Final = 15
"""Words of the first sentence of a module or class that go into the titles of its members."""
_PARAGRAPHS: Final = re.compile(r"\n\s*\n")
_FILE_NAME: Final = re.compile(r"^\w+\.py\s+-+\s+")
"""At the beginning of some modules: `functools.py - Tools for …`."""
_FIRST_SENTENCE: Final = re.compile(r".+?[.!?](?=\s+[A-Z]|$)|.+")
_SENTENCE_ENDS: Final = re.compile(r"(?<=[.!?:])\s+(?=[A-Z\"*`])")
_SIGNATURE: Final = re.compile(r"->|\w\(|[=~]{3}")
"""Marks a first line that does not say what a thing is for."""
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

    An id is `entry#number`, where the entry is a qualified name (`itertools.chain`) or a topic (`topic:with`). A title
    is a topic's name and heading, or a qualified name with a sentence on the modules and the class that hold it.
    """
    docs = stdlib_docstrings()
    for name, text in python_entries(docs).items():
        title = _topic_title(name) if name.startswith("topic:") else _title_of(name, docs)
        for number, passage in enumerate(split_paragraphs(text)):
            yield Passage(f"{name}#{number}", title, passage)


def split_paragraphs(text: str) -> Iterator[str]:
    """Yield passages of whole paragraphs. A paragraph that is too long for one ends in the middle, after a sentence."""
    held: list[str] = []
    for part in _parts(text):
        words = part.split()
        if held and len(held) + len(words) > PASSAGE_WORDS:
            yield " ".join(held)
            held = []
        held += words
    if held:
        yield " ".join(held)


def _parts(text: str) -> Iterator[str]:
    """Yield paragraphs; of a long one its sentences, and of a long sentence (a program) a hundred words each."""
    for paragraph in _PARAGRAPHS.split(text):
        is_long = len(paragraph.split()) > PASSAGE_WORDS
        for part in _SENTENCE_ENDS.split(paragraph) if is_long else [paragraph]:
            yield from split_words(part, PASSAGE_WORDS, overlap=0)


def python_entries(docs: dict[str, Doc]) -> dict[str, str]:
    """Return entry name → text: the topics and then the docstrings, both sorted by name."""
    entries = {f"topic:{name}": text for name, text in sorted(_without_repeats(_topics()).items())}
    long = {name: doc for name, doc in docs.items() if len(doc.text.split()) >= MIN_WORDS}
    joined: dict[str, list[str]] = {}
    for name, doc in docs.items():
        parent, _, own = name.rpartition(".")
        if name not in long:
            joined.setdefault(parent or name, []).append(f"{own}: {doc.text}" if parent else doc.text)
    for name in sorted(long.keys() | joined.keys()):
        text = "\n\n".join(["\n".join(long.get(name, ())), *joined.get(name, [])]).strip()
        if len(text.split()) >= MIN_WORDS:
            entries[name] = text
    return entries


def _topics() -> dict[str, str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return {name: _UNDERLINES.sub("", text) for name, text in topics.items()}


def _without_repeats(topics: dict[str, str]) -> dict[str, str]:
    """Keep each paragraph once, in the shortest topic that holds it: "with" is also a part of "compound"."""
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        paragraphs = {" ".join(paragraph.split()): paragraph for paragraph in _PARAGRAPHS.split(topics[name])}
        new = [text for words, text in paragraphs.items() if words not in seen]
        seen |= paragraphs.keys()
        if sum(len(text.split()) for text in new) >= MIN_WORDS:
            kept[name] = "\n\n".join(new)
    return kept


def _topic_title(name: str) -> str:
    own = name.removeprefix("topic:")
    heading = _topics()[own].strip().partition("\n")[0]
    return own if heading.lower() == own else f"{own}: {heading}"


def _title_of(name: str, docs: dict[str, Doc]) -> str:
    """Return `csv.Sniffer (CSV parsing and writing.)`: a name, and what contains it."""
    parts = name.split(".")
    holders = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    sentences = [sentence for holder in holders if holder in docs and (sentence := _first_sentence(docs[holder].text))]
    shown = name.removeprefix("builtins.")
    return f"{shown} ({' '.join(sentences)})" if sentences else shown


def _first_sentence(doc: str) -> str:
    """Return the first words of a docstring, up to the end of a sentence; "" if it begins with a signature."""
    found = _FIRST_SENTENCE.match(_FILE_NAME.sub("", " ".join(_PARAGRAPHS.split(doc.strip())[0].split())))
    if found is None or _SIGNATURE.search(found[0]):
        return ""
    return " ".join(found[0].split()[:MAX_SUMMARY_WORDS])


def main() -> None:
    """Write the corpus to the file that the command line names."""
    parser = argparse.ArgumentParser(description="Write Python's own documentation as a JSONL corpus.")
    parser.add_argument("out", type=Path, help="file to write (JSONL of id, title, text)")
    path: Path = parser.parse_args().out
    print(f"{path} was written" if write_corpus(path) else f"{path} is up to date")


if __name__ == "__main__":
    main()
