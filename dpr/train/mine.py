"""Hard negatives: passages that a search finds for a question and that do not answer it (paper, section 3.2).

Left out are the passages that are known to answer the question, those that contain one of its answers, and, with a
margin, those that score nearly as high as the best right passage: many of them are right, and nobody has judged them.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TextIO

from dpr.evaluate.answers import has_answer, names_passage
from dpr.fingerprint import content_hash
from dpr.formats.quarantine import QuarantinedRow
from dpr.plurals import counted
from dpr.search.hits import Hit
from dpr.train.examples import Read, TrainingExample, TrainingPassage, no_example

QUESTIONS_AT_ONCE = 64
"""Questions whose hits are in memory with their texts."""
Search = Callable[[Sequence[str], int], Sequence[Sequence[Hit]]]
"""Questions, and how many hits of each are wanted."""


@dataclass(frozen=True)
class Mining:
    """Which hits are kept."""

    depth: int = 100
    """Hits that are considered."""
    most: int = 30
    """Hard negatives of a question, the best hits first."""
    margin: float | None = None
    """A hit must score lower than the best right hit by at least this. Where no hit is right, no hit is known to do so.
    None: any score will do."""


@dataclass
class Mined:
    """Counts of what was written and left out, for people."""

    questions: int = 0
    negatives: int = 0
    without: int = 0
    """Questions that have no hard negative."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Hits by the reason why they are not negatives."""
    unusable: int = 0
    """Rows of the data that give no example."""

    def describe(self) -> str:
        """Return all counts in one sentence."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
        negatives, questions = counted(self.negatives, "hard negative"), counted(self.questions, "question")
        text = f"{negatives} for {questions}, {self.without:,} of them without any"
        text += f"; hits left out: {reasons}" if reasons else ""
        return f"{text}; {counted(self.unusable, 'unusable row')}" if self.unusable else text


@dataclass
class _Known:
    """What answers a question, as all of its examples say."""

    hashes: set[bytes] = field(default_factory=set)
    """Content hashes of passages."""
    ids: set[str] = field(default_factory=set)
    """Ids of passages, or of documents that were split into passages."""
    answers: dict[str, None] = field(default_factory=dict)

    def add(self, example: TrainingExample) -> None:
        self.hashes |= {passage.hash for passage in example.positives}
        self.ids |= {passage.id for passage in example.positives if passage.id is not None}
        self.answers |= dict.fromkeys(example.answers)

    def is_right(self, hit: Hit) -> bool:
        """Return whether a hit is a passage that is known to answer, or a part of such a document."""
        return names_passage(self.ids, hit.id) or content_hash(hit.title, hit.text) in self.hashes


def mine(read: Iterable[Read], search: Search, mining: Mining, out: TextIO) -> Mined:
    """Write each example with hard negatives as DPR's training JSON; those that it has already are replaced.

    Raises RecipeError if no example is usable.
    """
    mined, reasons = Mined(), Counter[str]()
    examples = []
    for each in read:
        if isinstance(each, QuarantinedRow):
            mined.unusable += 1
            reasons[each.reason.partition(":")[0]] += 1
        else:
            examples.append(replace(each, negatives=()))  # those of DPR's files are many
    if not examples:
        raise no_example("training data", reasons)
    known: dict[str, _Known] = defaultdict(_Known)
    for example in examples:
        known[example.question].add(example)
    separator = "[\n"
    for first in range(0, len(examples), QUESTIONS_AT_ONCE):
        some = examples[first : first + QUESTIONS_AT_ONCE]
        for example, hits in zip(some, search([each.question for each in some], mining.depth), strict=True):
            negatives = list(_negatives(example, hits, known[example.question], mining, mined))
            mined.questions += 1
            mined.negatives += len(negatives)
            mined.without += not negatives
            out.write(separator + json.dumps(_document(example, negatives), ensure_ascii=False))
            separator = ",\n"
    out.write("\n]\n")
    return mined


def _negatives(
    example: TrainingExample, hits: Sequence[Hit], known: _Known, mining: Mining, mined: Mined
) -> Iterator[Hit]:
    """Yield the hits that are hard negatives of an example, at most `mining.most`; count those left out before them."""
    best = max((hit.score for hit in hits if known.is_right(hit)), default=-math.inf)
    found = 0
    for hit in hits:
        if found == mining.most:
            break
        reason = ""
        if known.is_right(hit):
            reason = "known to answer"
        elif has_answer(known.answers, hit.text):
            reason = "with an answer in them"
        elif hit.text.split() == example.question.split():
            reason = "that are the question"
        elif mining.margin is not None and hit.score > best - mining.margin:
            reason = "within the margin"
        if reason:
            mined.left_out[reason] = mined.left_out.get(reason, 0) + 1
        else:
            found += 1
            yield hit


def _document(example: TrainingExample, negatives: Sequence[Hit]) -> Mapping[str, object]:
    return {
        "question": example.question,
        "answers": list(example.answers),
        "positive_ctxs": [_context(each) for each in example.positives],
        "negative_ctxs": [],
        "hard_negative_ctxs": [
            {"title": hit.title, "text": hit.text, "passage_id": hit.id, "score": hit.score} for hit in negatives
        ],
    }


def _context(passage: TrainingPassage) -> Mapping[str, object]:
    context: dict[str, object] = {"title": passage.title, "text": passage.text}
    return context if passage.id is None else {**context, "passage_id": passage.id}
