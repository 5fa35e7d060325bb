"""The formats in which the field keeps questions, each found by looking at its first bytes.

- JSON: a list of objects, objects one after another, or one a line (JSONL). An object is a question of a collection
  (`question`, `answers`), of BEIR (`_id`, `text`, `metadata.answers`), of NQ-open (`question`, `answer`), or of DPR's
  training files (`question`, `answers`, `positive_ctxs`).
- DPR's `*-qas.csv`: `question TAB list of answers`, quoted as CSV, where the list is a Python literal.
- Queries in two columns, `id TAB text`, as MS MARCO has them.
- TREC topics: `<top>` with `<num>`, `<title>` and `<desc>`, or XML with `<topic number="…">`.
"""

import ast
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from typing import Literal

from dpr.corpus.json_values import iter_values
from dpr.corpus.rows import is_utf8
from dpr.errors import RecipeError
from dpr.evaluate.text_files import open_bytes, read_lines, read_text

MAX_VALUE_BYTES = 64 << 20
"""Largest JSON object: DPR's training files have a hundred passages with each question."""
_TOPIC = re.compile(r"<(top|topic)\b([^>]*)>(.*?)</\1\s*>", re.IGNORECASE | re.DOTALL)
_FIELD = re.compile(r"<(\w+)[^>]*>([^<]*)")
_NUMBER = re.compile(r"""(?:number|id)\s*=\s*["']([^"']+)["']""", re.IGNORECASE)
_LABEL = re.compile(r"^\s*(?:number|topic|description)\s*:\s*", re.IGNORECASE)
_TITLES = ("title", "query", "question", "desc", "description")
"""Fields of a topic that hold its question, the first that has a text."""


Form = Literal["question", "query", "dpr"]
"""`question`: the user states the kind of its answers; `query`: qrels judge passages for it, and answers of its own are
strings; `dpr`: its answers are strings."""


@dataclass(frozen=True)
class FileQuestion:
    """A question as its file has it."""

    place: str
    """File and line, for errors."""
    id: str
    """Empty where the file has none."""
    text: str
    answers: tuple[str, ...] = ()
    """The answers in the file."""
    passages: tuple[str, ...] = ()
    """Ids of passages that answer it, where the file names them as such."""
    form: Form = "question"


def read_file_questions(path: str) -> Iterator[FileQuestion]:
    """Yield the questions of a file in any of the formats; RecipeError, with the line, for anything else."""
    first = next(read_lines(path), None)
    if first is None:
        return
    start = first[1].lstrip()
    if start[:1] == "<":
        yield from _topics(path)
    elif start[:1] in ("{", "["):
        yield from _json_values(path) if start[:1] == "[" or start == "{" else _json_lines(path)
    elif "\t" in start:
        yield from _tab_separated(path)
    else:
        raise RecipeError(
            f"{path}, line {first[0]} is not JSON, nor another format of questions; docs/formats.md lists those that "
            f"are read: {start[:70]!r}"
        )


def _json_lines(path: str) -> Iterator[FileQuestion]:
    for number, line in read_lines(path):
        yield _from_json(line, f"{path}, line {number}")


def _json_values(path: str) -> Iterator[FileQuestion]:
    with open_bytes(path) as file:
        for number, (_, value, is_cut) in enumerate(iter_values(file, MAX_VALUE_BYTES), 1):
            place = f"{path}, value {number}"
            if is_cut:
                raise RecipeError(f"{place} is longer than {MAX_VALUE_BYTES:,} bytes, which no question is")
            yield _from_json(value.decode(), place)


def _from_json(text: str, place: str) -> FileQuestion:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{place} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{place} is not a JSON object: {text[:80]!r}")
    metadata = document.get("metadata")
    inside = metadata if isinstance(metadata, dict) else {}
    question = _first(document, "question", "query", "text")
    answers = _first(document, "answers", "answer")
    answers = inside.get("answers", []) if answers is None else answers
    contexts = document.get("positive_ctxs")
    if isinstance(answers, list) and not all(map(_is_answer, answers)):
        raise RecipeError(
            f"{place}: an answer is a text that is not blank, or a number; got {json.dumps(answers)[:70]}"
        )
    if not isinstance(question, str) or not question.strip() or not is_utf8(question) or not isinstance(answers, list):
        raise RecipeError(
            f'{place}: a question is {{"question": text, "answers": […]}}, and a query of BEIR {{"_id": id, "text": '
            f'text}}, whose metadata may have "answers": […]; got {text[:70]!r}'
        )
    return FileQuestion(
        place,
        _name(_first(document, "_id", "id", "qid", "query_id", "question_id")),
        question,
        tuple(map(str, answers)),
        tuple(_passage_names(contexts, place)),
        "dpr" if contexts is not None else "query" if "_id" in document and "question" not in document else "question",
    )


def _first(document: dict[str, object], *names: str) -> object:
    return next((document[name] for name in names if document.get(name) is not None), None)


def _is_answer(value: object) -> bool:
    """Return whether a value can be an answer. A blank one would be in every passage, or in none."""
    return isinstance(value, (int, float)) or (isinstance(value, str) and bool(value.strip()))


def _name(value: object) -> str:
    return "" if value is None else str(value)


def _passage_names(contexts: object, place: str) -> Iterator[str]:
    """Yield the ids of DPR's positive passages; passages without an id are skipped."""
    if contexts is None:
        return
    if not isinstance(contexts, list) or not all(isinstance(context, dict) for context in contexts):
        raise RecipeError(f"{place}: positive_ctxs is a list of passages as DPR's training files have it")
    for context in contexts:
        name = _first(context, "passage_id", "psg_id")
        if name is not None:
            yield str(name)


def _tab_separated(path: str) -> Iterator[FileQuestion]:
    for number, line in read_lines(path):
        place = f"{path}, line {number}"
        # MS MARCO's texts contain unpaired quotation marks, so only DPR's lines are read as CSV
        fields = next(csv.reader([line], delimiter="\t")) if line.rstrip().endswith(("]", ']"')) else line.split("\t")
        if len(fields) != 2 or not all(field.strip() and is_utf8(field) for field in fields):
            raise RecipeError(
                f"{place}: a line is `question TAB list of answers` as in DPR's files, or `id TAB question`; "
                f"got {line[:70]!r}"
            )
        if fields[1].lstrip().startswith("["):
            yield FileQuestion(place, "", fields[0], _literal_list(fields[1], place), form="dpr")
        else:
            yield FileQuestion(place, fields[0].strip(), fields[1], form="query")


def _literal_list(text: str, place: str) -> tuple[str, ...]:
    """Return a list that is written as a Python literal: DPR's files have single quotes, which JSON does not allow."""
    try:
        answers = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise RecipeError(f"{place}: the answers are not a list like ['one', 'two']: {text[:70]!r}") from error
    if not isinstance(answers, list) or not all(map(_is_answer, answers)):
        raise RecipeError(
            f"{place}: the answers are not a list of texts like ['one', 'two'], none of which is blank: {text[:70]!r}"
        )
    return tuple(map(str, answers))


def _topics(path: str) -> Iterator[FileQuestion]:
    text = read_text(path)
    found = 0
    for found, topic in enumerate(_TOPIC.finditer(text), 1):
        fields = {name.lower(): _LABEL.sub("", unescape(value)).strip() for name, value in _FIELD.findall(topic[3])}
        number = _NUMBER.search(topic[2])
        name = number[1] if number else fields.get("num", fields.get("number", ""))
        question = next((fields[field] for field in _TITLES if fields.get(field)), "")
        if not name or not question:
            raise RecipeError(
                f"{path}, topic {found}: a topic has a number and a title or description; got {topic[0][:70]!r}"
            )
        yield FileQuestion(f"{path}, topic {found}", name, " ".join(question.split()), form="query")
    if not found:
        raise RecipeError(f"{path} looks like TREC topics, and has no <top> or <topic> that is closed")
