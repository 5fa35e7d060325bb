"""The train stage: sample vectors over all segments and train the codebook, unless the base's is kept.

Shapes: N rows, D dimensions.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dpr.engine.room import Need, check_room
from dpr.engine.stage import Done, Stage, Step, Work, recorded
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.deletions import read_deletions
from dpr.formats.manifest import CodebookEntry, SegmentEntry
from dpr.formats.objects import put_object
from dpr.formats.records import ObjectRef, Result
from dpr.index.choose import IndexPlan
from dpr.index.coding import prepare
from dpr.index.faiss_file import write_faiss
from dpr.index.hardware import Hardware, faiss_threads
from dpr.index.kinds import list_count
from dpr.index.sample import distinct_rows, sample_rows
from dpr.index.training import list_imbalance, quantisation_error, train
from dpr.recipe_index import IndexConfig
from dpr.run import Run
from dpr.search.vectors import SegmentVectors
from dpr.store import PARALLEL_READS, Store, open_store
from dpr.store.temporary import temporary_folder

FIGURE_ROWS = 10_000
"""Vectors that a codebook's error and imbalance are measured on, at most."""
NEAR_SHARE, MIN_NEAR_ROWS = 0.999, 1_000
"""A vector is far if it is farther from the centroid of its list than this share of these vectors; no vector is far if
there are fewer of them than the minimum."""


@dataclass(frozen=True)
class IndexContext:
    """Settings that the index stages need; small, and the same for all units."""

    store_url: str
    encoder_id: str
    dim: int
    config: IndexConfig
    segments: tuple[SegmentEntry, ...]
    deletions: ObjectRef | None

    @property
    def rows(self) -> int:
        return sum(entry.live_rows for entry in self.segments)

    @property
    def state(self) -> list[list[str]]:
        """The inputs of an index, as JSON: segments and their dead rows."""
        return segments_state(self.segments)


def segments_state(segments: Sequence[SegmentEntry]) -> list[list[str]]:
    """Return the identity of segments with their dead rows, as JSON."""
    return [[str(entry.number), entry.object.sha256, entry.dead_digest] for entry in segments]


def index_context(run: Run, segments: Sequence[SegmentEntry], deletions: ObjectRef | None) -> IndexContext:
    """Return the settings of a run's index stages."""
    return IndexContext(run.store.url, run.spec.encoder_id, run.spec.dim, run.recipe.index, tuple(segments), deletions)


@dataclass(frozen=True)
class TrainUnit:
    """The one unit of the stage: the index to train, and its training sample."""

    record: str
    context: IndexContext
    codebook_id: str
    plan: IndexPlan
    rows: int
    """Vectors to sample."""
    read_bytes: int


class TrainResult(Result):
    """A trained codebook; `rows` are the vectors that it was trained on."""

    codebook: CodebookEntry

    def objects(self) -> Iterator[ObjectRef]:
        yield self.codebook.object


def train_codebook(run: Run, context: IndexContext, plan: IndexPlan) -> CodebookEntry:
    """Train a new codebook."""
    stage = Stage("train", [plan_training(context, plan)], TrainResult, train_work(run))
    return run.result(stage).codebook


def train_work(run: Run) -> Work[TrainUnit, Done[TrainResult]]:
    """Return the work of the stage, which is known before its unit is: a trainer loads while passages are encoded."""
    step: Step[TrainUnit, TrainResult] = Step("train", partial(TrainCodebook, run.executor.hardware()), "trainer")
    return Work.of(recorded(run.store.url, TrainResult, step))


def plan_training(context: IndexContext, plan: IndexPlan) -> TrainUnit:
    """Return the unit that trains the index of `plan`; its record is named by everything that training depends on."""
    codebook_id = fingerprint(
        {
            "encoder": context.encoder_id,
            "factory": plan.factory,
            "train_rows": plan.train_rows,
            "seed": context.config.seed,
            "segments": context.state,
        }
    )
    rows = min(plan.train_rows, context.rows)
    record = layout.record(layout.codebook(context.encoder_id, codebook_id))
    return TrainUnit(record, context, codebook_id, plan, rows, rows * 2 * context.dim)


def train_need(unit: TrainUnit, dim: int, hardware: Hardware) -> Need:
    """Estimate the need of training: the sample as float16, twice while it is put together or also as float32. Pure."""
    number_bytes = 4 if hardware.device else 6
    return Need(memory_bytes=unit.rows * dim * number_bytes, smaller="lower index.train_rows")


class TrainCodebook:
    """Samples vectors over all segments and trains the codebook."""

    def __init__(self, hardware: Hardware) -> None:
        prepare(hardware)
        self._hardware = hardware

    def __call__(self, unit: TrainUnit) -> TrainResult:
        context, plan = unit.context, unit.plan
        store = open_store(context.store_url)
        check_room(store, "train", unit.record, train_need(unit, context.dim, self._hardware))
        sample_ND, held_out_ND = _training_sample(store, context, plan)
        with faiss_threads(self._hardware.threads):
            codebook = train(sample_ND, plan, context.config.seed, self._hardware)
            error, coded = quantisation_error(codebook, held_out_ND)
        with temporary_folder() as folder:
            path = Path(folder, "codebook.faiss")
            write_faiss(codebook, path)
            ref = put_object(store, layout.codebook(context.encoder_id, unit.codebook_id), path)
        entry = CodebookEntry(
            codebook_id=unit.codebook_id,
            factory=plan.factory,
            trained_rows=len(sample_ND),
            corpus_rows=context.rows,
            last_segment=max(entry.number for entry in context.segments),
            quantisation_error=error,
            list_imbalance=list_imbalance(list_count(codebook), coded.lists_N) if coded else None,
            far_distance=_far_distance(coded.distances_N) if coded else None,
            object=ref,
        )
        return TrainResult(rows=len(sample_ND), codebook=entry)


def _far_distance(distances_N: npt.NDArray[np.float32]) -> float | None:
    return float(np.quantile(distances_N, NEAR_SHARE)) if len(distances_N) >= MIN_NEAR_ROWS else None


def sample_vectors(
    store: Store, entries: Sequence[SegmentEntry], deletions: ObjectRef | None, rows: int, seed: int
) -> npt.NDArray[np.float16]:
    """Return a uniform sample (n, D) float16 of the live vectors of all segments, each read by range."""
    dead = read_deletions(store, deletions)

    def read(entry: SegmentEntry, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        return SegmentVectors.open(store, entry.object).rows(dead.live_rows(entry)[ranks])

    drawn = zip(entries, sample_rows([e.live_rows for e in entries], rows, seed), strict=True)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return np.concatenate(list(pool.map(lambda pair: read(*pair), [pair for pair in drawn if len(pair[1])])))


def _training_sample(
    store: Store, context: IndexContext, plan: IndexPlan
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """Return vectors to train on, and others held out, so that drift is compared with an error not seen in training.

    Equal vectors are trained on once, if enough vectors are left for training.
    """
    # an exact index needs no training, and still one vector to show its error of zero
    wanted = max(1, plan.train_rows) + min(FIGURE_ROWS, plan.train_rows // 10)
    rows = min(wanted, context.rows)
    drawn_ND = sample_vectors(store, context.segments, context.deletions, rows, context.config.seed)
    held_out = min(FIGURE_ROWS, len(drawn_ND) // 11)
    if not held_out:
        return _distinct(drawn_ND, plan), drawn_ND
    held = np.zeros(len(drawn_ND), np.bool_)
    held[np.random.default_rng(context.config.seed).choice(len(held), held_out, replace=False)] = True
    return _distinct(drawn_ND[~held], plan), drawn_ND[held]


def _distinct(sample_ND: npt.NDArray[np.float16], plan: IndexPlan) -> npt.NDArray[np.float16]:
    rows = distinct_rows(sample_ND)
    return sample_ND[rows] if max(1, plan.min_train_rows) <= len(rows) < len(sample_ND) else sample_ND
