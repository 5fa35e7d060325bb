"""The index stages before the merge: train a codebook on a sample, build one part a segment.

Shapes: N rows, D dimensions.
"""

import functools
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dpr import layout
from dpr.deletions import live_rows
from dpr.fingerprint import fingerprint
from dpr.index.build import Coder, build_part, coder
from dpr.index.choose import IndexPlan
from dpr.index.hardware import Hardware, faiss_threads
from dpr.index.part import write_part
from dpr.index.sample import sample_rows
from dpr.index.train import list_imbalance, quantisation_error, read_index, train, write_index
from dpr.manifest import CodebookEntry, SegmentEntry
from dpr.pipeline.execute import Unit
from dpr.recipe import IndexConfig
from dpr.records import Record, fetch_object, put_object
from dpr.segment import iter_groups, read_rows, vectors_of
from dpr.store import Store, open_store
from dpr.store.reader import open_object

FIGURE_ROWS = 10_000
"""Vectors that a codebook's error and imbalance are measured on, at most."""
READERS = 32
"""Segments read at a time for a sample: reading waits for disks, or copies memory with Python's lock released."""


@dataclass(frozen=True)
class IndexContext:
    """What the index stages need; small, and the same for all units."""

    store_url: str
    encoder_id: str
    dim: int
    config: IndexConfig
    segments: tuple[SegmentEntry, ...]

    @property
    def rows(self) -> int:
        return sum(entry.live_rows for entry in self.segments)

    @property
    def state(self) -> list[list[str]]:
        """What the serving index depends on, as JSON: segments and their deletions."""
        return [[str(e.number), e.segment_id, e.deletions.object.name if e.deletions else ""] for e in self.segments]


def sample_vectors(store: Store, entries: Sequence[SegmentEntry], rows: int, seed: int) -> npt.NDArray[np.float16]:
    """A uniform sample (n, D) of the live vectors of all segments, read by column and row group."""

    def read(entry: SegmentEntry, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
        chosen = live_rows(store, entry)[ranks]
        return vectors_of(read_rows(open_object(store, entry.object.name), ["embedding"], chosen))

    drawn = zip(entries, sample_rows([e.live_rows for e in entries], rows, seed), strict=True)
    with ThreadPoolExecutor(READERS) as pool:
        return np.concatenate(list(pool.map(lambda pair: read(*pair), [pair for pair in drawn if len(pair[1])])))


def _training_sample(
    store: Store, context: IndexContext, plan: IndexPlan
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16]]:
    """Vectors to train on, and vectors held out so that drift is compared with an error not seen in training."""
    # an exact index needs no training, and still one vector to show its error of zero
    wanted = max(1, plan.train_rows) + min(FIGURE_ROWS, plan.train_rows // 10)
    drawn_ND = sample_vectors(store, context.segments, min(wanted, context.rows), context.config.seed)
    held_out = min(FIGURE_ROWS, len(drawn_ND) // 11)
    if not held_out:
        return drawn_ND, drawn_ND
    held = np.zeros(len(drawn_ND), np.bool_)
    held[np.random.default_rng(context.config.seed).choice(len(held), held_out, replace=False)] = True
    return drawn_ND[~held], drawn_ND[held]


def codebook_id(context: IndexContext, plan: IndexPlan) -> str:
    """Fingerprint of everything that training depends on."""
    return fingerprint(
        {
            "encoder": context.encoder_id,
            "factory": plan.factory,
            "train_rows": plan.train_rows,
            "seed": context.config.seed,
            "segments": context.state,
        }
    )


class TrainCodebook:
    """Samples vectors over all segments and trains the codebook."""

    def __init__(self, context: IndexContext, plan: IndexPlan, hardware: Hardware) -> None:
        self._context, self._plan, self._hardware = context, plan, hardware

    def __call__(self, unit: Unit) -> Unit:
        context, plan = self._context, self._plan
        store = open_store(context.store_url)
        sample_ND, held_out_ND = _training_sample(store, context, plan)
        with faiss_threads(self._hardware.threads):
            codebook = train(sample_ND, plan, context.config.seed, self._hardware)
            error = quantisation_error(codebook, held_out_ND)
            imbalance = list_imbalance(codebook, held_out_ND)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "codebook.faiss")
            write_index(codebook, path)
            ref = put_object(store, layout.codebook(context.encoder_id, unit["codebook_id"]), path)
        entry = CodebookEntry(
            codebook_id=unit["codebook_id"],
            factory=plan.factory,
            trained_rows=len(sample_ND),
            corpus_rows=context.rows,
            last_segment=max(entry.number for entry in context.segments),
            quantisation_error=error,
            list_imbalance=imbalance,
            object=ref,
        )
        record = Record(unit="train", rows=len(sample_ND), objects=[ref], facts=entry.model_dump(mode="json"))
        return {"record": unit["record"], "done": record.to_bytes()}


class BuildPart:
    """Codes one segment's vectors with the codebook."""

    def __init__(self, context: IndexContext, codebook: CodebookEntry, hardware: Hardware) -> None:
        self._store = open_store(context.store_url)
        self._entry = codebook
        self._codebook, self._code = _codebook_of(context.store_url, codebook, hardware)

    def __call__(self, unit: Unit) -> Unit:
        entry = SegmentEntry.model_validate_json(unit["segment"])
        with tempfile.TemporaryDirectory() as folder:
            segment = fetch_object(self._store, entry.object, Path(folder))
            part = build_part(self._codebook, vectors_of_segment(segment), code=self._code)
            path = Path(folder, "part.safetensors")
            write_part(part, path)
            ref = put_object(self._store, layout.part(self._entry.codebook_id, entry.segment_id), path)
        record = Record(unit=f"part-{entry.segment_id}", rows=entry.rows, objects=[ref])
        return {"record": unit["record"], "done": record.to_bytes()}


@functools.lru_cache(maxsize=1)  # a process that builds many parts reads the codebook once
def _codebook_of(store_url: str, entry: CodebookEntry, hardware: Hardware) -> tuple[Any, Coder]:
    with tempfile.TemporaryDirectory() as folder:
        codebook = read_index(fetch_object(open_store(store_url), entry.object, Path(folder)))
    return codebook, coder(codebook, hardware)


def vectors_of_segment(path: Path) -> npt.NDArray[np.float16]:
    """All vectors (N, D) of a local segment file."""
    return np.concatenate([vectors_of(table) for table in iter_groups(path, ["embedding"])])
