"""Exact nearest neighbours by brute force, in bounded memory, and recall against them.

A pair of a question and a vector has one score, to the bit, however the work is cut and wherever it is done
(`dpr.index.products`). Equal scores rank by lower id.

Shapes: Q questions, q questions of one slice, K neighbours, N rows, D dimensions, C candidates.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from dpr.formats import MISSING
from dpr.index.cpu_shortlist import CpuShortlists
from dpr.index.hardware import CPU, Hardware
from dpr.index.products import Half, slices
from dpr.index.shortlist import Pairs, Questions, Shortlists, padded, score

Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


def exact_topk(
    questions_QD: Scores, blocks: Iterable[tuple[Ids, Half]], k: int, hardware: Hardware = CPU
) -> tuple[Scores, Ids]:
    """Return the k nearest vectors: (scores_QK float32, ids_QK int64), best first; -inf and -1 where there are fewer.

    `blocks` yields ids (N,) int64 and vectors (N, D) float16; ids must differ. All hardware gives the same result.
    Memory holds the result, one block of about 100 MB (12 MB for up to 32 questions on CPUs), and the scores of 512
    questions with it (on a GPU 1,024).
    """
    if not len(questions_QD) or not k:
        return empty_topk(len(questions_QD), k)
    questions = Questions.scaled(questions_QD)
    with _shortlists(questions, k, hardware) as shortlists:
        step = shortlists.slice_questions
        best = [RunningTopk(some.stop - some.start, k) for some in slices(len(questions_QD), step)]
        for ids_N in _full_blocks(blocks, shortlists):

            def add(some: slice, pairs: Pairs, ids_N: Ids = ids_N) -> None:
                scores_qC, rows_qC = padded(pairs, score(questions, some, pairs, shortlists.vector))
                best[some.start // step].add(scores_qC, np.where(rows_qC < 0, MISSING, ids_N[rows_qC]))

            shortlists.find(len(ids_N), lambda some: best[some.start // step].floors(), add)
    found = [running.best() for running in best]
    return np.concatenate([scores for scores, _ in found]), np.concatenate([ids for _, ids in found])


@contextlib.contextmanager
def _shortlists(questions: Questions, k: int, hardware: Hardware) -> Iterator[Shortlists]:
    if hardware.device is not None:
        from dpr.index.torch_shortlist import TorchShortlists

        yield TorchShortlists(questions, k, hardware.device)
        return
    with ThreadPoolExecutor(hardware.cpu_threads()) as pool:
        yield CpuShortlists(questions, k, pool)


def _full_blocks(blocks: Iterable[tuple[Ids, Half]], shortlists: Shortlists) -> Iterator[Ids]:
    """Fill the block of `shortlists` repeatedly; yield the ids of its rows each time that it is full, and at the end.

    So the cost does not depend on how the caller cuts the vectors.
    """
    filled: list[Ids] = []
    rows = 0
    for ids_N, vectors_ND in blocks:
        first = 0
        while first < len(ids_N):
            last = min(len(ids_N), first + shortlists.max_rows - rows)
            shortlists.fill(rows, vectors_ND[first:last])
            filled.append(ids_N[first:last])
            rows += last - first
            first = last
            if rows == shortlists.max_rows:
                yield np.concatenate(filled)
                filled, rows = [], 0
    if rows:
        yield np.concatenate(filled)


class RunningTopk:
    """Keeps the best `depth` of all results for the same questions that were added so far.

    Memory holds about three times the result, however many results are added.
    """

    def __init__(self, questions: int, depth: int) -> None:
        self.questions, self.depth = questions, depth
        self._best = empty_topk(questions, depth)
        self._waiting: list[tuple[Scores, Ids]] = []
        self._waiting_width = 0

    def add(self, scores_QK: Scores, ids_QK: Ids) -> None:
        """Add results, in any order within a question. Ids must differ from all added before; -1 does not count."""
        hopeful_QK = (ids_QK != MISSING) & (scores_QK >= self._best[0][:, -1:])
        width = int(hopeful_QK.sum(axis=1).max(initial=0))
        if not width:
            return
        if width < scores_QK.shape[1]:
            first_QK = np.argsort(~hopeful_QK, axis=1, kind="stable")[:, :width]
            scores_QK, ids_QK = np.take_along_axis(scores_QK, first_QK, 1), np.take_along_axis(ids_QK, first_QK, 1)
        self._waiting.append((scores_QK, ids_QK))
        self._waiting_width += width
        if self._waiting_width >= self.depth:
            self._rank()

    def best(self) -> tuple[Scores, Ids]:
        """Return the best (scores_QK, ids_QK), best first; where there are fewer, score -inf and id -1."""
        self._rank()
        scores_QK, ids_QK = self._best
        return scores_QK.copy(), ids_QK.copy()

    def floors(self) -> Scores:
        """Return the score (Q,) that a new result must reach to be among the best; -inf where any does."""
        self._rank()
        return self._best[0][:, -1]

    def _rank(self) -> None:
        if self._waiting:
            scores, ids = zip(self._best, *self._waiting, strict=True)
            self._best = best_of(np.concatenate(scores, axis=1), np.concatenate(ids, axis=1), self.depth)
            self._waiting, self._waiting_width = [], 0


def merge_topk(found: Sequence[tuple[Scores, Ids]], k: int, *, by_id: bool = True) -> tuple[Scores, Ids]:
    """Return the k best (scores_QK, ids_QK) of several results for the same questions, as over disjoint segments.

    Equal scores are ranked by lower id; without `by_id` by the order of the results, in half the time.
    """
    scores, ids = zip(*found, strict=True)
    rank = best_of if by_id else first_by_score
    return rank(np.concatenate(scores, axis=1), np.concatenate(ids, axis=1), k)


def best_of(scores_QC: Scores, ids_QC: Ids, k: int) -> tuple[Scores, Ids]:
    """Return the k best of C candidates for each question, by score and then by lower id; id -1 does not count."""
    by_id_QC = np.argsort(ids_QC.view(np.uint64), axis=1)  # as an unsigned number, -1 is the largest
    ids_QC = np.take_along_axis(ids_QC, by_id_QC, axis=1)
    scores_QC = np.where(ids_QC == MISSING, -np.inf, np.take_along_axis(scores_QC, by_id_QC, axis=1))
    return first_by_score(scores_QC, ids_QC, k)


def first_by_score(scores_QC: Scores, ids_QC: Ids, k: int) -> tuple[Scores, Ids]:
    """Return the k best of C candidates for each question; of equal scores, the first stay first.

    A missing candidate has the score -inf.
    """
    return _in_order(scores_QC, ids_QC, best_places(scores_QC, k), k)


def best_places(scores_QC: Scores, k: int) -> Ids:
    """Return the places of the k best scores of each question, or of all C if there are fewer; the best come first.

    None is NaN. Of equal scores, the first stay first. This gives what a stable sort gives, in a fifth of the time or
    less: score and place make up one integer, and NumPy sorts integers with vector instructions.
    """
    bits_QC = (0 - np.asarray(scores_QC, np.float32)).view(np.int32)  # not -scores, which makes -0.0 of 0.0
    # the bits of floats are in the order of the floats, but for negative ones, which are in reverse
    ascending_QC = (bits_QC ^ (bits_QC >> 31 & 0x7FFF_FFFF)).astype(np.int64)
    keys_QC = ascending_QC << 32 | np.arange(scores_QC.shape[1])
    if k < scores_QC.shape[1]:
        keys_QC.partition(k, axis=1)
    return np.sort(keys_QC[:, :k], axis=1) & 0xFFFF_FFFF


def _in_order(scores_QC: Scores, ids_QC: Ids, order_QK: Ids, k: int) -> tuple[Scores, Ids]:
    """Return candidates in an order; -inf and -1 behind it, up to k."""
    scores_QK, ids_QK = empty_topk(len(ids_QC), k)
    each_Q1, width = np.arange(len(ids_QC))[:, None], order_QK.shape[1]
    scores_QK[:, :width], ids_QK[:, :width] = scores_QC[each_Q1, order_QK], ids_QC[each_Q1, order_QK]
    return scores_QK, ids_QK


def recall_at(found_ids_QK: Ids, true_ids_QK: Ids, k: int) -> float:
    """Return the share of the true k nearest that are among the first k found; 1.0 if there are no true ones."""
    return recalls_at(found_ids_QK, true_ids_QK[:, :k], [k])[0]


def recalls_at(found_ids_QC: Ids, true_ids_QK: Ids, depths: Sequence[int]) -> list[float]:
    """Return, for each depth, the share of the true K nearest among the first `depth` found; 1.0 if there are none."""
    places = [
        np.where(there_KC.any(axis=1), there_KC.argmax(axis=1), there_KC.shape[1])[true_K != MISSING]
        for found_C, true_K in zip(found_ids_QC, true_ids_QK, strict=True)
        for there_KC in [found_C == true_K[:, None]]
    ]
    places_P = np.concatenate(places) if places else np.empty(0, np.intp)
    width = found_ids_QC.shape[1]
    return [float((places_P < min(depth, width)).mean()) if len(places_P) else 1.0 for depth in depths]


def recall_of_new(found: tuple[Scores, Ids], new: tuple[Scores, Ids]) -> float | None:
    """Return the share of new rows that were found, among those that belong to what was found; None if none does.

    `found` are the first K that search gives, and `new` the K nearest of the new rows, both with exact scores (Q, K). A
    new row belongs there if its score is no worse than the last one found. That is true of all new rows among the true
    K nearest, and of a few more where search missed some. So old rows need not be compared.
    """
    (found_scores_QK, found_ids_QK), (new_scores_QK, new_ids_QK) = found, new
    belongs_QK = (new_ids_QK != MISSING) & (new_scores_QK >= found_scores_QK[:, -1:])
    there_QK = (new_ids_QK[:, :, None] == found_ids_QK[:, None, :]).any(axis=2)
    return float(there_QK[belongs_QK].mean()) if belongs_QK.any() else None


def empty_topk(questions: int, k: int) -> tuple[Scores, Ids]:
    """Return scores (Q, K) float32 of -inf and ids (Q, K) int64 of -1."""
    return np.full((questions, k), -np.inf, np.float32), np.full((questions, k), MISSING, np.int64)
