"""A training example: a question, passages that answer it, and hard negatives, which only seem to answer it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from dpr.corpus.rows import MAX_RAW_BYTES, is_utf8
from dpr.errors import RecipeError
from dpr.fingerprint import content_hash
from dpr.formats.quarantine import QuarantinedRow
from dpr.plurals import by_reason


@dataclass(frozen=True)
class TrainingPassage:
    """A passage of an example."""

    text: str
    title: str = ""
    id: str | None = None

    @cached_property
    def hash(self) -> bytes:
        """Content hash: passages of the same title and text are one passage, whatever their ids."""
        return content_hash(self.title, self.text)


@dataclass(frozen=True)
class TrainingExample:
    """One question with its positive and negative passages."""

    question: str
    positives: tuple[TrainingPassage, ...]
    """Passages that answer it, at least one."""
    negatives: tuple[TrainingPassage, ...] = ()
    """Hard negatives: passages that a search finds although they do not answer it."""
    answers: tuple[str, ...] = ()
    left_out: int = 0
    """Passages of the input that have no text."""
    absent: int = 0
    """Passages that are judged relevant and are not in the corpus."""


Read = TrainingExample | QuarantinedRow
"""The result of an input row: an example, or the reason why it gives none."""
Place = tuple[str, int]
"""A file, and the position in it: byte offset or row number."""


def no_example(source: str, reasons: Counter[str]) -> RecipeError:
    """Return the error of data from `source` of which no row is usable, with the `reasons`."""
    why = by_reason(reasons) if reasons else "there are no rows"
    return RecipeError(f"{source} hold no usable example ({why}); docs/formats.md says what is read")


class UnusableExampleError(Exception):
    """A row that gives no example; the message is the reason, without values, so that rows are counted by it."""


def checked(
    question: object,
    positives: Sequence[TrainingPassage],
    negatives: Sequence[TrainingPassage],
    answers: tuple[str, ...] = (),
) -> TrainingExample:
    """Return the example made of these.

    Raises UnusableExampleError if they contradict each other, or a part is missing.

    Passages without text are left out and counted, unless no positive passage remains.
    """
    if not isinstance(question, str) or not question.strip():
        raise UnusableExampleError("no question")
    if not positives:
        raise UnusableExampleError("no positive passage")
    passages = (*positives, *negatives)
    if not all(map(is_utf8, chain((question, *answers), *((each.title, each.text) for each in passages)))):
        raise UnusableExampleError("half of a surrogate pair")
    usable, against = _distinct(positives), _distinct(negatives)
    if not usable:
        raise UnusableExampleError("no positive passage has a text")
    if {each.hash for each in usable} & {each.hash for each in against}:
        raise UnusableExampleError("a passage is both positive and negative")
    if any(_same(question, each.text) for each in against):
        raise UnusableExampleError("the question is its own negative")
    left_out = sum(not each.text.strip() for each in passages)
    return TrainingExample(question, usable, against, answers, left_out)


def unusable(place: Place, reason: str, raw: bytes) -> QuarantinedRow:
    """Return the row at a place, which gives no example."""
    return QuarantinedRow(*place, reason, raw[:MAX_RAW_BYTES])


def _distinct(passages: Sequence[TrainingPassage]) -> tuple[TrainingPassage, ...]:
    """Return the passages that have a text, each once."""
    return tuple({each.hash: each for each in passages if each.text.strip()}.values())


def _same(a: str, b: str) -> bool:
    return a.split() == b.split()
