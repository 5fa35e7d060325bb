"""Questions with known answers: JSONL written for a collection, or a BEIR folder with relevance judgements."""

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from dpr.errors import RecipeError
from dpr.fingerprint import fingerprint
from dpr.recipe import GateConfig


@dataclass(frozen=True)
class Question:
    """A question and what answers it: passage ids, or strings that must stand in the passage."""

    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a gate; `answers` says what their answers are."""

    questions: tuple[Question, ...]
    answers: str

    @property
    def gate_id(self) -> str:
        """Fingerprint of the question texts: what exact truth is cached under."""
        return fingerprint([question.text for question in self.questions])

    @property
    def texts(self) -> list[str]:
        return [question.text for question in self.questions]


def load_questions(gate: GateConfig, seed: int) -> QuestionSet | None:
    """Return the questions of a gate, at most `max_questions`, drawn with `seed`; None if the recipe names none.

    Raises RecipeError with file and line for what cannot be read or has no answers.
    """
    if gate.questions is None:
        return None
    path = Path(gate.questions)
    found = _read_beir(path, gate) if path.is_dir() else _read_jsonl(path)
    if not found:
        raise RecipeError(f"gate.questions {path} holds no question with an answer; give at least one")
    if len(found) > gate.max_questions:
        chosen = np.sort(np.random.default_rng(seed).choice(len(found), gate.max_questions, replace=False))
        found = [found[row] for row in chosen]
    return QuestionSet(tuple(found), gate.answers)


def _read_jsonl(path: Path) -> list[Question]:
    questions = []
    for number, line in enumerate(_lines(path), 1):
        document = _json_object(line, path, number)
        text, answers = document.get("question"), document.get("answers")
        if not isinstance(text, str) or not isinstance(answers, list) or not answers:
            raise RecipeError(
                f'{path}, line {number}: a question is {{"question": text, "answers": […]}}, got {line[:70]!r}'
            )
        questions.append(Question(text, tuple(map(str, answers))))
    return questions


def _read_beir(folder: Path, gate: GateConfig) -> list[Question]:
    relevant: dict[str, list[str]] = defaultdict(list)
    qrels = Path(gate.qrels) if gate.qrels else folder / "qrels.test.tsv.gz"
    rows = csv.DictReader(_lines(qrels), delimiter="\t")
    for row in rows:
        try:
            if float(row["score"]) > 0:
                relevant[row["query-id"]].append(row["corpus-id"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"{qrels} is not a BEIR qrels file (query-id, corpus-id, score): {error}") from error
    queries = next((p for p in (folder / "queries.jsonl", folder / "queries.jsonl.gz") if p.exists()), None)
    if queries is None:
        raise RecipeError(f"{folder} has no queries.jsonl or queries.jsonl.gz; a BEIR folder has one")
    questions = []
    for number, line in enumerate(_lines(queries), 1):
        document = _json_object(line, queries, number)
        if document.get("_id") in relevant:
            strings = (document.get("metadata") or {}).get("answers", [])
            answers = relevant[document["_id"]] if gate.answers == "ids" else strings
            if not isinstance(document.get("text"), str) or not isinstance(answers, list):
                raise RecipeError(
                    f'{queries}, line {number}: a query is {{"_id": id, "text": text}}, and its metadata has '
                    f'"answers": […] if gate.answers is strings; got {line[:70]!r}'
                )
            questions.append(Question(document["text"], tuple(map(str, answers))))
    return [question for question in questions if question.answers]


def _lines(path: Path) -> Iterator[str]:
    try:
        with cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            for line in file:
                if text := line.decode().rstrip("\r\n"):
                    yield text
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RecipeError(f"gate questions {path} cannot be read: {error}") from error


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}, line {number} is not a JSON object: {line[:80]!r}")
    return document
