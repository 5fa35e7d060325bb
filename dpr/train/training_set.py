"""All examples of a training, tokenised, in memory: each distinct question and passage once.

An example takes about 4 bytes a token: 60,000 questions with 30 passages each are about a gigabyte.

Shapes: E questions, N passages, T tokens; R rows that belong to questions, in all.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpr.encoder.spec import EncoderSpec
from dpr.encoder.tokens import TokenBatch, TowerTokenizer
from dpr.formats.quarantine import QuarantinedRow, QuarantineWriter
from dpr.plurals import by_reason, counted
from dpr.train.examples import Read, TrainingExample, TrainingPassage, no_example

KEPT_NEGATIVES = 30
"""Hard negatives of a question that are kept, the first ones."""
_TEXTS_PER_CALL = 1024
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Belonging:
    """Which passages belong to each question."""

    rows_R: Rows
    offsets: Rows
    """(E + 1,): those of question e stand from offsets[e] to offsets[e + 1]."""

    def of(self, question: int) -> Rows:
        """Return the passages of one question."""
        return self.rows_R[self.offsets[question] : self.offsets[question + 1]]


@dataclass(frozen=True)
class Counts:
    """Counts of the input, for people and for the model card."""

    examples: int
    """Rows that gave an example."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """Rows that gave none, by reason."""
    notes: tuple[str, ...] = ()
    """Sentences on what else was left out."""


@dataclass(frozen=True)
class TrainingSet:
    """Questions and passages as tokens, and which passages belong to each question."""

    questions: tuple[str, ...]
    question_tokens: TokenBatch
    passage_tokens: TokenBatch
    positives: Belonging
    """All passages that are known to answer a question, whichever of its examples says so."""
    negatives: Belonging
    """Hard negatives, none of which is a known positive."""
    answers: tuple[tuple[str, ...], ...]
    """Texts that answer each question, of all its examples: a passage that contains one is not a negative."""
    digest: str
    """Digest of all questions and passages, and of which belong together."""
    counts: Counts

    def __len__(self) -> int:
        return len(self.questions)

    def describe(self) -> str:
        """Describe the set, for people."""
        counts = self.counts
        questions, passages = counted(len(self), "question"), counted(len(self.passage_tokens), "passage")
        text = f"{questions} and {passages} from {counted(counts.examples, 'example')}"
        return f"{text}; {by_reason(counts.quarantined, 'unusable row')}" if counts.quarantined else text


def collect(
    read: Iterable[Read], spec: EncoderSpec, quarantine: Path, most: int | None = None, source: str = "training data"
) -> TrainingSet:
    """Return the training set that examples make, at most the first `most` questions.

    Unusable rows are written to the file `quarantine`, if there are any. Raises RecipeError, which says what the
    `source` of the examples is, if no example is usable.
    """
    collector = _Collector(spec)
    reasons: Counter[str] = Counter()
    with QuarantineWriter(quarantine) as writer:
        for each in read:
            if isinstance(each, QuarantinedRow):
                writer.add(each)
                reasons[each.reason.partition(":")[0]] += 1
            elif collector.may_add(each, most):
                collector.add(each)
            else:
                break
    if not collector.examples:
        raise no_example(source, reasons)
    return collector.finished(reasons)


class _Collector:
    """Merges examples of the same question, and tokenises each text once."""

    def __init__(self, spec: EncoderSpec) -> None:
        self.examples = 0
        self._questions: dict[str, int] = {}
        self._positives: list[dict[int, None]] = []
        self._negatives: list[dict[int, None]] = []
        self._answers: list[dict[str, None]] = []
        self._passages = _Passages(TowerTokenizer(spec.passage))
        self._question_tokenizer = TowerTokenizer(spec.question)
        self._left_out = self._absent = self._too_many = 0

    def may_add(self, example: TrainingExample, most: int | None) -> bool:
        """Return whether an example belongs to the first `most` questions."""
        return most is None or len(self._questions) < most or example.question in self._questions

    def add(self, example: TrainingExample) -> None:
        self.examples += 1
        self._left_out += example.left_out
        self._absent += example.absent
        row = self._questions.setdefault(example.question, len(self._questions))
        if row == len(self._positives):
            self._positives.append({})
            self._negatives.append({})
            self._answers.append({})
        self._answers[row] |= dict.fromkeys(example.answers)
        self._positives[row] |= dict.fromkeys(map(self._passages.row, example.positives))
        room = max(0, KEPT_NEGATIVES - len(self._negatives[row]))
        self._negatives[row] |= dict.fromkeys(map(self._passages.row, example.negatives[:room]))
        self._too_many += len(example.negatives[room:])

    def finished(self, reasons: Counter[str]) -> TrainingSet:
        contradicted = 0
        for right, wrong in zip(self._positives, self._negatives, strict=True):
            for row in wrong.keys() & right.keys():
                del wrong[row]
                contradicted += 1
        texts = tuple(self._questions)
        positives, negatives = belonging(self._positives), belonging(self._negatives)
        answers = tuple(map(tuple, self._answers))
        notes = {
            "passages left out because they have no text": self._left_out,
            "judged passages left out because the corpus lacks them": self._absent,
            f"hard negatives left out because their question has {KEPT_NEGATIVES} others": self._too_many,
            "hard negatives left out because another example of their question has them as positives": contradicted,
        }
        return TrainingSet(
            questions=texts,
            question_tokens=_tokenised(self._question_tokenizer, texts),
            passage_tokens=self._passages.tokens(),
            positives=positives,
            negatives=negatives,
            answers=answers,
            digest=_digest([*texts, *chain.from_iterable(answers)], self._passages.hashes, positives, negatives),
            counts=Counts(
                self.examples, reasons, tuple(f"{what}: {count:,}" for what, count in notes.items() if count)
            ),
        )


class _Passages:
    """Gives each distinct passage a row, and tokenises it; texts are dropped when they are tokenised."""

    def __init__(self, tokenizer: TowerTokenizer) -> None:
        self._tokenizer = tokenizer
        self._rows: dict[bytes, int] = {}
        self._waiting: list[TrainingPassage] = []
        self._pieces: list[TokenBatch] = []

    @property
    def hashes(self) -> Iterable[bytes]:
        """Content hashes, in the order of the rows."""
        return self._rows

    def row(self, passage: TrainingPassage) -> int:
        if passage.hash not in self._rows:
            self._rows[passage.hash] = len(self._rows)
            self._waiting.append(passage)
            if len(self._waiting) == _TEXTS_PER_CALL:
                self._tokenise()
        return self._rows[passage.hash]

    def tokens(self) -> TokenBatch:
        self._tokenise()
        return _joined(self._pieces)

    def _tokenise(self) -> None:
        if self._waiting:
            titles, texts = [each.title for each in self._waiting], [each.text for each in self._waiting]
            self._pieces.append(self._tokenizer.passages(titles, texts))
            self._waiting = []


def _tokenised(tokenizer: TowerTokenizer, questions: Sequence[str]) -> TokenBatch:
    firsts = range(0, len(questions), _TEXTS_PER_CALL)
    return _joined([tokenizer.questions(questions[first : first + _TEXTS_PER_CALL]) for first in firsts])


def _joined(pieces: Sequence[TokenBatch]) -> TokenBatch:
    lengths = np.concatenate([piece.lengths() for piece in pieces])
    return TokenBatch(
        np.concatenate([piece.ids_T for piece in pieces]),
        np.concatenate([piece.types_T for piece in pieces]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)]),
        np.concatenate([piece.lost_N for piece in pieces]),
    )


def belonging(rows: Sequence[Collection[int]]) -> Belonging:
    """Return the rows that belong to each question."""
    flat = np.array([row for each in rows for row in each], np.int64)
    return Belonging(flat, np.cumsum([0, *map(len, rows)], dtype=np.int64))


def _digest(texts: Sequence[str], hashes: Iterable[bytes], *belongings: Belonging) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in _pieces_of(texts, hashes, belongings):
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()


def _pieces_of(texts: Sequence[str], hashes: Iterable[bytes], belongings: Sequence[Belonging]) -> Iterator[bytes]:
    yield from (text.encode() for text in texts)
    yield from hashes
    for each in belongings:
        yield each.rows_R.tobytes()
        yield each.offsets.tobytes()
