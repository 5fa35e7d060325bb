"""The truth stage: the exact neighbours of the questions within each segment, and over all of them.

Results of each segment are kept, so a night computes those of new segments only.

Shapes: Q questions, K neighbours, D dimensions.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr.engine.stage import Stage, Step, Work, recorded
from dpr.formats import MISSING, layout
from dpr.formats.cut_texts import CutTexts
from dpr.formats.deletions import DeletionSet, read_deletions
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import fetch_into, put_object, read_table
from dpr.formats.records import ObjectRef, Result
from dpr.index.hardware import Hardware, faiss_threads
from dpr.index.row_ids import ROW_BITS
from dpr.index.truth import Ids, RunningTopk, Scores, exact_topk
from dpr.run import Run
from dpr.search.vectors import SegmentVectors
from dpr.stages.question_vectors import QuestionVectors, live_among, question_vectors, read_questions
from dpr.stages.train import IndexContext
from dpr.store import PARALLEL_READS, Store, open_store
from dpr.store.temporary import temporary_folder

CACHED_DEPTH = 200
"""Neighbours kept for each segment and question, so that enough are left after deletions."""
UNPACKED_NEIGHBOURS = 2**22
"""Neighbours of several segments that are in memory at once, 12 bytes each."""


class TruthResult(Result):
    """Exact neighbours within one segment; `rows` are the rows that were compared."""

    truth: ObjectRef


@dataclass(frozen=True)
class TruthUnit:
    """One segment to compare with all questions."""

    record: str
    stem: str
    segment: SegmentEntry
    questions: ObjectRef
    depth: int
    deletions: ObjectRef | None
    """Dead rows to leave out; None: all rows are compared, so that the result stays valid when rows die."""

    @property
    def rows(self) -> int:
        return self.segment.rows

    @property
    def read_bytes(self) -> int:
        return self.segment.object.size_bytes


@dataclass(frozen=True)
class Truth:
    """Questions, and their exact neighbours over all live rows."""

    questions_id: str
    vectors: ObjectRef
    scores_QK: Scores
    ids_QK: Ids
    cut: CutTexts
    """Tokens that the questions lost to the token limit."""
    own_ids_S: Ids = field(default_factory=lambda: np.empty(0, np.int64))
    """The passages of the sentences, which are the last S questions; -1 for one that is no longer live here."""


def find_truth(run: Run, context: IndexContext, depth: int) -> Truth:
    """Encode the questions and find their `depth` exact neighbours over all live rows."""
    questions_id, vectors = question_vectors(run, context)
    kept_depth = max(CACHED_DEPTH, 2 * depth)
    deletions = read_deletions(run.store, context.deletions)
    step = Step("truth", partial(FindNeighbours, run.store.url, run.executor.hardware()), "coder")
    work = Work.of(recorded(run.store.url, TruthResult, step))

    def results(entries: Sequence[SegmentEntry], depth: int, dead: ObjectRef | None) -> list[TruthResult]:
        units = [_plan_truth(run, questions_id, vectors, entry, depth, dead) for entry in entries]
        return run.results(Stage("truth", units, TruthResult, work))

    best = RunningTopk(vectors.rows, depth)
    found = results(context.segments, kept_depth, None)
    exhausted = _add_living(run.store, best, context.segments, found, deletions)
    if exhausted:  # too many of a question's neighbours died, so these segments are compared again without dead rows
        again = results(exhausted, depth, context.deletions)
        _add_living(run.store, best, exhausted, again, deletions)
    own_ids_S = _own_ids(context, deletions, vectors.drawn)
    return Truth(questions_id, vectors.vectors, *best.best(), vectors.cut, own_ids_S)


def _own_ids(context: IndexContext, deletions: DeletionSet, drawn: Sequence[tuple[str, int]]) -> Ids:
    """Return the index ids (S,) of passages that gave sentences; -1 for those that are not live there."""
    live = live_among(context, deletions, drawn)
    numbers = {entry.object.sha256: entry.number for entry in context.segments}
    ids = [
        numbers[sha256] << ROW_BITS | row if lives else MISSING
        for (sha256, row), lives in zip(drawn, live, strict=True)
    ]
    return np.array(ids, np.int64)


def _plan_truth(
    run: Run, questions_id: str, vectors: QuestionVectors, entry: SegmentEntry, depth: int, dead: ObjectRef | None
) -> TruthUnit:
    truth_id = f"{entry.object.sha256[: layout.SHORT_DIGEST]}-{depth}"
    if dead is not None:
        truth_id += f"-without-{entry.dead_digest}"
    stem = layout.truth(run.spec.encoder_id, questions_id, truth_id)
    return TruthUnit(layout.record(stem), stem, entry, vectors.vectors, depth, dead)


def _add_living(
    store: Store,
    best: RunningTopk,
    entries: Sequence[SegmentEntry],
    results: Sequence[TruthResult],
    deletions: DeletionSet,
) -> list[SegmentEntry]:
    """Add the live neighbours of each segment to the best; returns the segments that had too few left."""
    exhausted = []
    for entry, (scores_QK, rows_QK) in zip(entries, read_neighbours(store, results, best.questions), strict=True):
        dead_QK = np.isin(rows_QK, deletions.dead_rows(entry).astype(np.int64)) if entry.dead_rows else rows_QK < 0
        living_QK = ~dead_QK & (rows_QK != MISSING)
        if (living_QK.sum(axis=1) < min(best.depth, entry.live_rows)).any():
            exhausted.append(entry)
            continue
        ids_QK = np.where(living_QK, (entry.number << ROW_BITS) | rows_QK, MISSING)
        best.add(np.where(living_QK, scores_QK, -np.inf).astype(np.float32), ids_QK)
    return exhausted


def read_neighbours(store: Store, results: Sequence[TruthResult], questions: int) -> Iterator[tuple[Scores, Ids]]:
    """Read what results hold, a few at a time: the driver has no memory for all. Several files are fetched at once."""
    unpacked = max(1, UNPACKED_NEIGHBOURS // max(1, questions * CACHED_DEPTH))
    for first in range(0, len(results), PARALLEL_READS):
        with temporary_folder() as folder, ThreadPoolExecutor(PARALLEL_READS) as pool:
            files = list(pool.map(partial(_fetch_truth, store, Path(folder)), results[first : first + PARALLEL_READS]))
            for place in range(0, len(files), unpacked):
                yield from pool.map(partial(_read_truth, questions=questions), files[place : place + unpacked])


class FindNeighbours:
    """Compares all questions with all rows of a segment, by brute force."""

    def __init__(self, store_url: str, hardware: Hardware) -> None:
        self._store, self._hardware = open_store(store_url), hardware

    def __call__(self, unit: TruthUnit) -> TruthResult:
        questions_QD = read_questions(self._store, unit.questions)
        vectors = SegmentVectors.open(self._store, unit.segment.object, verify=True)
        live = None if unit.deletions is None else read_deletions(self._store, unit.deletions).live_rows(unit.segment)
        depth = min(unit.depth, unit.segment.rows)
        with faiss_threads(self._hardware.threads):
            found = exact_topk(questions_QD, _blocks(vectors, live), depth, self._hardware)
        with temporary_folder() as folder:
            path = Path(folder, "truth.parquet")
            write_truth(path, *found)
            return TruthResult(rows=unit.segment.rows, truth=put_object(self._store, unit.stem, path))


def _blocks(
    vectors: SegmentVectors, live: npt.NDArray[np.int64] | None
) -> Iterator[tuple[Ids, npt.NDArray[np.float16]]]:
    for first, block_ND in vectors.blocks():
        rows = np.arange(first, first + len(block_ND))
        if live is not None:
            rows = live[np.searchsorted(live, first) : np.searchsorted(live, first + len(block_ND))]
        yield rows, block_ND[rows - first]


def write_truth(path: Path, scores_QK: Scores, rows_QK: Ids) -> None:
    """Write neighbours, best first: rows (-1 where there are fewer) and scores."""
    k = rows_QK.shape[1]
    columns = {
        "rows": pa.FixedSizeListArray.from_arrays(pa.array(rows_QK.astype(np.int32).reshape(-1)), k),
        "scores": pa.FixedSizeListArray.from_arrays(pa.array(scores_QK.reshape(-1)), k),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")


def _fetch_truth(store: Store, folder: Path, result: TruthResult) -> Path:
    return fetch_into(store, result.truth, folder)


def _read_truth(file: Path, questions: int) -> tuple[Scores, Ids]:
    """Return (scores_QK float32, rows_QK int64) of one segment."""
    table = read_table(file)
    scores, rows = (table[name].combine_chunks().flatten().to_numpy() for name in ("scores", "rows"))
    return scores.reshape(questions, -1), rows.astype(np.int64).reshape(questions, -1)
