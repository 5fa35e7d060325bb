"""The gate: recall against exact search and accuracy on known questions, measured before a snapshot is published.

Shapes: Q questions, K neighbours, N rows, D dimensions.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dpr import layout
from dpr.deletions import live_rows, read_deletions
from dpr.encoder.compute import Compute
from dpr.encoder.spec import resolve
from dpr.errors import GateError
from dpr.evaluate.answers import accuracy
from dpr.evaluate.questions import QuestionSet
from dpr.fingerprint import fingerprint
from dpr.index.merge import ROW_BITS
from dpr.index.truth import exact_topk, merge_topk, recall_at
from dpr.index.tune import RECALL_AT, said, tune
from dpr.manifest import IndexEntry, SegmentEntry
from dpr.pipeline.execute import Unit
from dpr.recipe import EncoderConfig, GateConfig, IndexConfig
from dpr.records import Record, fetch_object
from dpr.retrieve import SegmentSet, VectorSearch, open_index
from dpr.segment import iter_groups, read_rows, vectors_of
from dpr.store import Store, open_store
from dpr.store.reader import open_object

TRUTH_DEPTH = 200
"""Neighbours cached per segment and question; deletions may take some before fewer than asked are left."""
TUNING_QUESTIONS = 1_000
"""Questions that settings are chosen on at most: recall of 20 hits each is then known to a fraction of a percent."""
LEAST_HALF = 50
STAND_IN_QUESTIONS = 200
"""Passages drawn as questions where the recipe names no questions: enough to tune by, no measure of accuracy."""


@dataclass(frozen=True)
class GateContext:
    """What the gate measures with."""

    store_url: str
    encoder: EncoderConfig
    encoder_id: str
    dim: int
    gate: GateConfig
    index: IndexConfig
    questions: QuestionSet | None
    segments: tuple[SegmentEntry, ...]

    def measured(self, index_id: str) -> str:
        """Name of the record of what was measured: with the same index, questions and aims it is the same."""
        questions = [[q.text, list(q.answers)] for q in self.questions.questions] if self.questions else None
        gate = self.gate.model_dump(mode="json", include={"answers", "at"})
        aims = self.index.model_dump(mode="json", include={"nprobe", "rescore", "recall_target", "latency_ms", "seed"})
        asked = fingerprint({"index": index_id, "questions": questions, "gate": gate, "aims": aims})
        return layout.measured(self.encoder_id, self.gate_id, asked)

    @property
    def depth(self) -> int:
        """Exact neighbours needed of each question."""
        return max(RECALL_AT, *self.gate.at)

    @property
    def kept_depth(self) -> int:
        """Exact neighbours cached of each question and segment."""
        return max(TRUTH_DEPTH, 2 * self.depth)

    @property
    def gate_id(self) -> str:
        return self.questions.gate_id if self.questions else "passages"

    @property
    def truth_id(self) -> str | None:
        """What the cache goes by; None for stand-ins, which change with the corpus and are not worth caching."""
        return f"{self.gate_id}-{self.kept_depth}" if self.questions else None


class MeasureIndex:
    """Tunes the search settings on the gate's questions and reports recall and accuracy."""

    def __init__(self, context: GateContext) -> None:
        self._context = context

    def __call__(self, unit: Unit) -> Unit:
        context = self._context
        store = open_store(context.store_url)
        index = open_index(store, IndexEntry.model_validate_json(unit["index"]))
        segments = SegmentSet.open(store, context.segments, context.dim)
        questions_QD = self._question_vectors(store)
        true_scores_QK, true_ids_QK = self._truth(store, questions_QD)
        tuning, held_out = split_questions(len(questions_QD), context.index.seed)
        chosen = tune(index, questions_QD[tuning], true_ids_QK[tuning], context.index)
        search = VectorSearch(index, chosen.settings, segments)
        found_QK = search.top(questions_QD[held_out], RECALL_AT)[1]
        report: dict[str, Any] = {
            "questions": len(questions_QD),
            "asked": "questions" if context.questions else "passages",
            "gate_id": context.gate_id,
            f"recall@{RECALL_AT}": recall_at(found_QK, true_ids_QK[held_out], RECALL_AT),
            "tuned_on": len(tuning),
            "measured_on": len(held_out),
            f"tuned_recall@{RECALL_AT}": chosen.recall,
            "meets_recall_target": chosen.meets_target,
            "predicted_ms": round(chosen.predicted_ms, 6),
            "meets_latency": chosen.meets_latency,
            "settings": said(chosen, context.index),
        }
        if context.questions is not None:
            depth = max(context.gate.at)
            found = search.top(questions_QD, depth)
            exact = (true_scores_QK[:, :depth], true_ids_QK[:, :depth])
            for name, (scores_QK, ids_QK) in {"index": found, "exact": exact}.items():
                hits = [segments.hits(s, i) for s, i in zip(scores_QK, ids_QK, strict=True)]
                measured = accuracy(context.questions, hits, context.gate.at)
                report[f"accuracy_{name}"] = {str(k): share for k, share in measured.items()}
        facts = {"report": report, "nprobe": chosen.settings.nprobe, "rescore": chosen.settings.rescore}
        facts["recall_target"] = context.index.recall_target
        facts["curve"] = [vars(point) for point in chosen.curve]
        return {
            "record": unit["record"],
            "done": Record(unit="gate", rows=len(questions_QD), objects=[], facts=facts).to_bytes(),
        }

    def _question_vectors(self, store: Store) -> npt.NDArray[np.float32]:
        context = self._context
        if context.questions is None:
            return _stand_ins(store, context)
        name = layout.question_vectors(context.encoder_id, context.gate_id)
        if not store.exists(name):
            from dpr.encoder.encode import QuestionEncoder  # PyTorch, for the first night with these questions alone

            encoder = QuestionEncoder(resolve(context.encoder), Compute())
            _write_vectors(store, name, encoder.encode(context.questions.texts))
        return _read_vectors(store, name)

    def _truth(self, store: Store, questions_QD: npt.NDArray[np.float32]) -> tuple[Any, Any]:
        """Exact neighbours (scores_QK, ids_QK) over all live rows, from what is cached per segment."""
        found = [self._segment_truth(store, entry, questions_QD) for entry in self._context.segments]
        return merge_topk(found, self._context.depth)

    def _segment_truth(
        self, store: Store, entry: SegmentEntry, questions_QD: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        context, depth = self._context, self._context.depth
        cached = layout.truth(context.encoder_id, context.truth_id, entry.segment_id) if context.truth_id else None
        if cached and store.exists(cached):
            scores_QK, rows_QK = _read_truth(store, cached, len(questions_QD))
        else:
            with tempfile.TemporaryDirectory() as folder:
                blocks = _blocks(fetch_object(store, entry.object, Path(folder)), None)
                scores_QK, rows_QK = exact_topk(questions_QD, blocks, min(context.kept_depth, entry.rows))
                if cached:
                    _write_truth(store, cached, Path(folder), scores_QK, rows_QK)
        dead_QK = np.isin(rows_QK, read_deletions(store, entry).astype(np.int64))
        if ((~dead_QK).sum(axis=1) < min(depth, entry.live_rows)).any():
            with tempfile.TemporaryDirectory() as folder:
                blocks = _blocks(fetch_object(store, entry.object, Path(folder)), live_rows(store, entry))
                scores_QK, rows_QK = exact_topk(questions_QD, blocks, depth)
            dead_QK = rows_QK < 0
        ids_QK = np.where(dead_QK | (rows_QK < 0), -1, (entry.number << ROW_BITS) | rows_QK)
        return np.where(ids_QK < 0, -np.inf, scores_QK).astype(np.float32), ids_QK


def split_questions(questions: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which questions settings are chosen on, and which they are then measured on: halves, drawn by the seed.

    At most TUNING_QUESTIONS are tuned on, the rest is measured on. With fewer than LEAST_HALF in a half, chance would
    choose and measure, so then all questions serve both.
    """
    if questions < 2 * LEAST_HALF:
        return np.arange(questions), np.arange(questions)
    order = np.random.default_rng(seed).permutation(questions)
    tuned = min(questions // 2, TUNING_QUESTIONS)
    return np.sort(order[:tuned]), np.sort(order[tuned:])


def check_gate(gate: GateConfig, report: dict[str, Any]) -> None:
    """Raise GateError, with measured and demanded, unless the report reaches what the recipe demands."""
    recall = report[f"recall@{RECALL_AT}"]
    if recall < gate.min_recall:
        raise GateError(
            f"recall@{RECALL_AT} of the index is {recall:.4f}, the recipe demands {gate.min_recall} (gate.min_recall); "
            "nothing was published: choose a larger index (index.factory) or lower the demand"
        )
    for k, least in sorted(gate.min_accuracy.items()):
        reached = report.get("accuracy_index", {}).get(str(k))
        if reached is None:
            raise GateError(f"gate.min_accuracy demands rank {k}, which is not among gate.at {gate.at}; add it there")
        if reached < least:
            raise GateError(
                f"top-{k} accuracy is {reached:.4f}, the recipe demands {least} (gate.min_accuracy); nothing was "
                "published: look at the corpus and the encoder, or lower the demand"
            )


def _stand_ins(store: Store, context: GateContext) -> npt.NDArray[np.float32]:
    from dpr.pipeline.index import sample_vectors

    rows = min(STAND_IN_QUESTIONS, sum(entry.live_rows for entry in context.segments))
    return sample_vectors(store, context.segments, rows, context.index.seed).astype(np.float32)


def _blocks(
    path: Path, rows: npt.NDArray[np.int64] | None
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]]]:
    if rows is not None:
        yield rows, vectors_of(read_rows(path, ["embedding"], rows))
        return
    first = 0
    for table in iter_groups(path, ["embedding"]):
        yield np.arange(first, first + table.num_rows), vectors_of(table)
        first += table.num_rows


def _write_vectors(store: Store, name: str, vectors_QD: npt.NDArray[np.float32]) -> None:
    flat = pa.array(vectors_QD.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors_QD.shape[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "questions.parquet")
        pq.write_table(pa.table({"embedding": column}), path)
        store.put_file(name, path)


def _read_vectors(store: Store, name: str) -> npt.NDArray[np.float32]:
    column = pq.read_table(open_object(store, name))["embedding"].combine_chunks()
    vectors_QD: npt.NDArray[np.float32] = column.flatten().to_numpy().reshape(len(column), -1)
    return vectors_QD


def _write_truth(store: Store, name: str, folder: Path, scores_QK: Any, rows_QK: Any) -> None:
    path = folder / "truth.parquet"
    k = rows_QK.shape[1]
    columns = {
        "rows": pa.FixedSizeListArray.from_arrays(pa.array(rows_QK.reshape(-1)), k),
        "scores": pa.FixedSizeListArray.from_arrays(pa.array(scores_QK.reshape(-1)), k),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")
    store.put_file(name, path)


def _read_truth(store: Store, name: str, questions: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    table = pq.read_table(open_object(store, name))
    flat = [table[column].combine_chunks().flatten().to_numpy() for column in ("scores", "rows")]
    return flat[0].reshape(questions, -1), flat[1].reshape(questions, -1)
