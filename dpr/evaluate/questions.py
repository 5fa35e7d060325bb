"""Questions with known answers: JSONL written for a collection, or a BEIR folder with relevance judgements."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpr.corpus.hashes import places
from dpr.corpus.rows import is_utf8
from dpr.errors import RecipeError
from dpr.evaluate.qrels import find_qrels, first_file, read_lines, read_qrels
from dpr.fingerprint import fingerprint, id_hash
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

    @property
    def passage_ids(self) -> tuple[str, ...]:
        """Ids of passages that answer a question, ascending, each once; none if answers are strings."""
        if self.answers != "ids":
            return ()
        return tuple(sorted({answer for question in self.questions for answer in question.answers}))


def load_questions(gate: GateConfig, seed: int) -> QuestionSet | None:
    """Return the questions of a gate, at most `max_questions`, drawn with `seed`; None if the recipe names none.

    Raises RecipeError with file and line for what cannot be read or has no answers.
    """
    if gate.questions is None:
        return None
    path = Path(gate.questions)
    if path.is_dir():
        queries = first_file([path / "queries.jsonl"])
        if queries is None:
            raise RecipeError(f"{path} has no queries.jsonl or queries.jsonl.gz; a BEIR folder has one")
        found = _read_beir(path, queries, gate)
    elif _is_beir(path):
        found = _read_beir(path.parent, path, gate)
    else:
        found = _read_jsonl(path)
    if not found:
        raise RecipeError(f"gate.questions {path} holds no question with an answer; give at least one")
    if len(found) > gate.max_questions:
        chosen = np.sort(np.random.default_rng(seed).choice(len(found), gate.max_questions, replace=False))
        found = [found[row] for row in chosen]
    return QuestionSet(tuple(found), gate.answers)


def unknown_ids(answers: Sequence[str], id_hashes: pa.FixedSizeBinaryArray) -> list[str]:
    """Return the answers that are neither the id of a passage nor of a document, whose first passage is `ID#0`.

    `id_hashes` are those of all passages of the corpus.
    """
    if not answers:
        return []
    known = np.zeros(len(answers), np.bool_)
    for suffix in ("", "#0"):
        hashes = pa.array([id_hash(f"{answer}{suffix}") for answer in answers], id_hashes.type)
        known |= places(hashes, id_hashes) >= 0
    return [answer for answer, is_known in zip(answers, known, strict=True) if not is_known]


def describe_unknown(unknown: Sequence[str], answers: int) -> str:
    """Say how many of so many ids that answer questions are not in the corpus, with an example."""
    return (
        f"{len(unknown):,} of {answers:,} passage ids that answer questions are not in the corpus, such as "
        f"{unknown[0]!r}; questions that have no other answer count as not answered"
    )


def _is_beir(path: Path) -> bool:
    """Tell whether a file holds BEIR's queries, whose answers are in qrels."""
    first = next(read_lines(path), None)
    document = _json_object(first[1], path, first[0]) if first else {}
    return "_id" in document and "question" not in document


def _read_jsonl(path: Path) -> list[Question]:
    questions = []
    for number, line in read_lines(path):
        document = _json_object(line, path, number)
        text, answers = document.get("question"), document.get("answers")
        if not _is_text(text) or not isinstance(answers, list) or not answers:
            raise RecipeError(
                f'{path}, line {number}: a question is {{"question": text, "answers": […]}}, got {line[:70]!r}'
            )
        questions.append(Question(str(text), tuple(map(str, answers))))
    return questions


def _read_beir(folder: Path, queries: Path, gate: GateConfig) -> list[Question]:
    relevant = read_qrels(find_qrels(folder, gate.qrels))
    questions = []
    for number, line in read_lines(queries):
        document = _json_object(line, queries, number)
        name = str(document.get("_id"))
        if name not in relevant:
            continue
        metadata = document.get("metadata")
        strings = metadata.get("answers", []) if isinstance(metadata, dict) else []
        answers = relevant[name] if gate.answers == "ids" else strings
        if not _is_text(document.get("text")) or not isinstance(answers, list):
            raise RecipeError(
                f'{queries}, line {number}: a query is {{"_id": id, "text": text}}, and its metadata has '
                f'"answers": […] if gate.answers is strings; got {line[:70]!r}'
            )
        questions.append(Question(document["text"], tuple(map(str, answers))))
    return [question for question in questions if question.answers]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_utf8(value)


def _json_object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}, line {number} is not a JSON object: {line[:80]!r}")
    return document
