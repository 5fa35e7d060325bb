"""Runs as TREC's tools exchange them: a line for each hit, `question Q0 passage rank score tag`."""

import math
from collections import defaultdict
from collections.abc import Sequence

import fsspec
import numpy as np

from dpr.errors import OutputError, RecipeError
from dpr.evaluate.metrics import Judged
from dpr.evaluate.questions import Question
from dpr.evaluate.text_files import read_lines
from dpr.search.hits import Hit

COLUMNS = 6


def read_run(path: str) -> dict[str, list[Hit]]:
    """Return the hits of each question, best first, without texts; RecipeError with the line for anything else.

    The score decides, as in TREC's tools; among equal scores the rank.
    """
    lines: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
    for number, line in read_lines(path):
        fields = line.split("\t") if line.count("\t") == COLUMNS - 1 else line.split()
        try:
            question, _, passage, rank, score, _ = fields
            lines[question].append((-_number(score), int(rank), passage))
        except ValueError as error:
            raise RecipeError(
                f"{path}, line {number} is not one of a TREC run, which has {COLUMNS} columns (question Q0 passage "
                f"rank score tag), where a rank is a whole number and a score is a number: {line[:70]!r}"
            ) from error
    found = {}
    for question, hits in lines.items():
        names = list(dict.fromkeys(passage for _, _, passage in sorted(hits)))
        if len(names) < len(hits):
            raise RecipeError(f"{path} has a passage twice for the question {question!r}; a run names each once")
        ranked = enumerate(sorted(hits), 1)
        found[question] = [Hit(rank, -negative, passage, "", "") for rank, (negative, _, passage) in ranked]
    return found


def _number(text: str) -> float:
    """Return a score; ValueError for one that cannot be ranked."""
    value = float(text)
    if math.isnan(value):
        raise ValueError("not a number")
    return value


def write_run(path: str, tag: str, questions: Sequence[Question], judged: Sequence[Judged]) -> None:
    """Write the answers to questions as a run; raises RecipeError for ids that a run cannot contain.

    TREC's tools order equal scores by id. So an equal score is lowered by the smallest step of float32.
    """
    lines = []
    for question, answer in zip(questions, judged, strict=True):
        lowest = np.float32(np.inf)
        for rank, (passage, score) in enumerate(zip(answer.ids, answer.scores, strict=True), 1):
            for name in (question.id, passage):
                if not name or any(letter.isspace() for letter in name):
                    raise RecipeError(f"the id {name!r} is empty or has white space, so a TREC run cannot hold it")
            lowest = min(np.float32(score), np.nextafter(lowest, np.float32(-np.inf)))
            lines.append(f"{question.id} Q0 {passage} {rank} {lowest!s} {tag}\n")
    try:
        with fsspec.open(path, "w", encoding="utf-8", compression="infer") as file:
            file.writelines(lines)
    except Exception as error:  # fsspec backends raise errors of their own client libraries
        raise OutputError(f"run {path} cannot be written: {' '.join(str(error).split())}; name another file") from error
