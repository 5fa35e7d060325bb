"""The loss of the index against exact search, and its confidence bound.

A question is answered if its answer is among the first hits; a sentence of a passage, if that passage is. What exact
search answers and the index does not is lost.

Shapes: Q questions, S sentences, s some of them, K hits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dpr.evaluate.significance import share_at_most
from dpr.formats import MISSING
from dpr.formats.gate_report import GateReport, IndexLoss
from dpr.index.truth import Ids
from dpr.index.tune import Tuned
from dpr.plurals import counted
from dpr.search.vector_search import VectorSearch
from dpr.stages.find_truth import Truth
from dpr.stages.question_halves import MIN_HALF

IsAnswered = npt.NDArray[np.bool_]
"""Whether each question is answered (Q,)."""


class Answered(NamedTuple):
    """The rank of the first hit that answers each question; None: none does."""

    by_index: list[int | None]
    exactly: list[int | None]

    def loss(self, some_q: npt.NDArray[np.int64], at: int) -> IndexLoss:
        """Return the loss by the index on some questions within the first hits."""
        return loss_of("questions", *(_within(ranks, at)[some_q] for ranks in self))


def loss_of_sentences(
    truth: Truth, search: VectorSearch, sentences_s: npt.NDArray[np.int64], found_QK: Ids, true_QK: Ids
) -> list[IndexLoss]:
    """Return the loss by the index on some sentences, given their rows among the questions; none without sentences.

    A sentence is left out if its passage is no longer live where it was drawn.
    """
    own_ids_Q = np.full(len(true_QK), MISSING)
    own_ids_Q[len(true_QK) - len(truth.own_ids_S) :] = truth.own_ids_S
    sentences_s = sentences_s[own_ids_Q[sentences_s] != MISSING]
    if not len(sentences_s):
        return []
    own_s1 = search.passages(own_ids_Q[sentences_s, None])
    by_index, exactly = ((search.passages(ids_QK[sentences_s]) == own_s1).any(axis=1) for ids_QK in (found_QK, true_QK))
    return [loss_of("sentences", by_index, exactly)]


def loss_of(kind: str, by_index_Q: IsAnswered, exactly_Q: IsAnswered) -> IndexLoss:
    """Count the questions that only one of both searches answers."""
    lost, won = int((exactly_Q & ~by_index_Q).sum()), int((by_index_Q & ~exactly_Q).sum())
    questions = len(exactly_Q)
    return IndexLoss(
        kind=kind, questions=questions, lost=lost, won=won, at_most=round(share_at_most(lost, questions), 9)
    )


def _within(ranks: Sequence[int | None], k: int) -> IsAnswered:
    """Return whether questions are answered within the first k hits (Q,), from the ranks of their answers."""
    return np.array([rank is not None and rank <= k for rank in ranks], np.bool_)


def describe_loss(loss: IndexLoss, at: int) -> str:
    """Return one sentence on the loss that was measured, and its upper bound with a confidence of 95%."""
    points = 100 * (loss.lost - loss.won) / max(1, loss.questions)
    return (
        f"the index loses {points:.2f} points of top-{at} on {loss.questions:,} {loss.kind} ({loss.lost:,} lost, "
        f"{loss.won:,} won), and at most {100 * loss.at_most:.2f} with a confidence of 95%"
    )


def describe_settings(report: GateReport, deeper: Tuned | None, at: int) -> str:
    """Return the chosen settings, the recall of new passages, the uncertainty, and the loss by the index."""
    sentences = [report.settings]
    if deeper is not None:
        more, found = deeper.settings, f"recall@{deeper.settings.at} {deeper.recall:.4f}"
        sentences.append(f"for up to {more.at} hits nprobe {more.nprobe} and rescore {more.rescore}: {found}")
    if report.new_recall is not None:
        sentences.append(
            f"recall of new passages {report.new_recall:.4f}, measured with {counted(report.new_sentences, 'sentence')}"
        )
    if report.questions < 2 * MIN_HALF:
        error = 2 * (report.recall * (1 - report.recall) / max(1, report.measured_on)) ** 0.5
        error = max(error, share_at_most(0, report.measured_on))  # if every one was found, this bound applies
        questions = counted(report.questions, "question")
        sentences.append(f"measured with only {questions}, so recall is known to ± {error:.2f}")
    sentences += [describe_loss(loss, at) for loss in report.losses]
    return "; ".join(sentences)
