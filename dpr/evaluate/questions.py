"""Questions with known answers, in any of the formats of the field (`dpr.evaluate.question_formats`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import regex

from dpr.corpus.hashes import places
from dpr.errors import RecipeError
from dpr.evaluate.qrels import Qrels, find_qrels, read_qrels
from dpr.evaluate.question_formats import FileQuestion, read_file_questions
from dpr.evaluate.text_files import first_file, folder_of, is_folder
from dpr.fingerprint import fingerprint, id_hash
from dpr.plurals import counted
from dpr.recipe import GateConfig

AnswerKind = Literal["ids", "strings", "regex"]


@dataclass(frozen=True)
class Question:
    """A question and its answers: passage ids, or strings or regular expressions that its passages contain."""

    text: str
    answers: tuple[str, ...]
    id: str = ""
    """Its id in the file, or its number there."""
    grades: tuple[int, ...] = ()
    """How relevant each answer is, where qrels state it; else all are equal."""

    @property
    def relevance(self) -> Mapping[str, int]:
        """How relevant each passage is that answers the question."""
        return dict(zip(self.answers, self.grades or [1] * len(self.answers), strict=True))


@dataclass(frozen=True)
class QuestionSet:
    """Questions; `answers` says what their answers are."""

    questions: tuple[Question, ...]
    answers: AnswerKind
    notes: tuple[str, ...] = ()
    """Sentences on what was left out of the files."""

    @property
    def gate_id(self) -> str:
        """Fingerprint of the question texts, under which exact neighbours are cached."""
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
    found = read_questions(gate.questions, gate.qrels, gate.answers)
    return draw(found, gate.max_questions, seed)


def draw(found: QuestionSet, most: int, seed: int) -> QuestionSet:
    """Return at most `max_questions` of the questions, in their order, drawn at random with `seed`."""
    if len(found.questions) <= most:
        return found
    chosen = np.sort(np.random.default_rng(seed).choice(len(found.questions), most, replace=False))
    return replace(found, questions=tuple(found.questions[row] for row in chosen.tolist()))


def read_questions(path: str, qrels: str | None, answers: AnswerKind | None = None) -> QuestionSet:
    """Return the questions of a file, or of a BEIR folder, with their answers.

    `qrels`: a file, or a folder of them; None: those beside the file, if its questions have no answers of their own.
    `answers`: the kind of answers; None: as qrels or the format determine, else ids. Raises RecipeError as
    `load_questions`.
    """
    file = path
    if is_folder(path):
        queries = first_file([f"{path.rstrip('/')}/queries.jsonl"])
        if queries is None:
            raise RecipeError(f"{path} has no queries.jsonl or queries.jsonl.gz; a BEIR folder has one")
        file = queries
    found = list(read_file_questions(file))
    judged = None
    if found and (qrels is not None or found[0].form == "query"):
        judged = read_qrels(find_qrels(folder_of(file), qrels))
    kind = answers or ("strings" if judged is None and any(each.form == "dpr" for each in found) else "ids")
    if judged is not None:
        questions, notes = _judged(found, judged, kind)
    else:
        questions, notes = _answered(found, kind)
    if not questions:
        why = "".join(f"; {note}" for note in notes)
        raise RecipeError(f"questions {path} hold no question with an answer{why}; give at least one")
    if kind == "regex":
        _check_patterns(questions)
    return QuestionSet(tuple(questions), kind, tuple(notes))


def _judged(entries: Sequence[FileQuestion], qrels: Qrels, kind: AnswerKind) -> tuple[list[Question], list[str]]:
    """Return the questions that qrels judge; their answers are those that the qrels name, or strings of their own."""
    questions: dict[str, Question] = {}
    without, irrelevant = [], []
    for each in entries:
        if each.id not in qrels:
            continue
        if each.id in questions:
            raise RecipeError(f"{each.place}: an earlier question has the id {each.id!r}, too; ids must be distinct")
        passages = qrels[each.id]
        if not passages:
            irrelevant.append(each.id)
        elif kind == "ids":
            questions[each.id] = Question(each.text, tuple(passages), each.id, tuple(passages.values()))
        elif each.answers:
            questions[each.id] = Question(each.text, each.answers, each.id)
        else:
            without.append(each.id)
    notes = []
    found = questions.keys() | {*without, *irrelevant}
    if absent := [name for name in qrels if name not in found]:
        notes.append(_left_out(len(absent), "judged query id", "of qrels not among the questions", absent[0]))
    if irrelevant:
        why = "left out, since qrels judge no passage relevant (score above 0)"
        notes.append(_left_out(len(irrelevant), "question", why, irrelevant[0]))
    if without:
        notes.append(_left_out(len(without), "question", "without an answer left out", without[0]))
    return list(questions.values()), notes


def _answered(entries: Sequence[FileQuestion], kind: AnswerKind) -> tuple[list[Question], list[str]]:
    """Return questions with the answers of their own file."""
    questions, without = [], []
    has_ids = len({each.id for each in entries}) == len(entries)
    for number, each in enumerate(entries, 1):
        right = each.passages if kind == "ids" and each.form == "dpr" else each.answers
        name = each.id if has_ids and each.id else str(number)
        if right:
            questions.append(Question(each.text, right, name))
        elif each.answers:
            without.append(name)
        else:
            raise RecipeError(
                f'{each.place}: a question is {{"question": text, "answers": […]}} with at least one answer, or is '
                f"judged by qrels; got {each.text[:70]!r} without any"
            )
    if without and not questions:
        raise RecipeError(
            f"{entries[0].place}: the answers are strings, and no passage is named by its id; state that: "
            "gate.answers: strings, or --answers strings"
        )
    note = _left_out(len(without), "question", "without a passage left out", without[0]) if without else ""
    return questions, [note] if note else []


def _left_out(count: int, noun: str, why: str, example: str) -> str:
    return f"{counted(count, noun)} {why}, such as {example!r}"


def _check_patterns(questions: Sequence[Question]) -> None:
    for question in questions:
        for answer in question.answers:
            try:
                regex.compile(answer)
            except regex.error as error:
                raise RecipeError(
                    f"question {question.id}: the answer {answer[:70]!r} is not a regular expression ({error})"
                ) from error


def unknown_ids(answers: Sequence[str], id_hashes: pa.FixedSizeBinaryArray) -> list[str]:
    """Return the answers that are neither ids of passages nor of documents (a document's first passage is `ID#0`).

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
    """Say how many of the ids that answer questions are not in the corpus, with an example.

    Raises RecipeError if none is: then nothing can be measured.
    """
    if len(unknown) == answers:
        raise RecipeError(
            f"none of the {answers:,} passage ids that answer questions is in the corpus, such as {unknown[0]!r}; name "
            "the questions and qrels of this corpus, or say that answers are strings"
        )
    return (
        f"{len(unknown):,} of {answers:,} passage ids that answer questions are not in the corpus, such as "
        f"{unknown[0]!r}; questions that have no other answer count as not answered"
    )
