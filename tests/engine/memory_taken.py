"""Run one unit in this process; print its estimated memory, and how much the peak of the process grew.

python -m tests.engine.memory_taken UNIT FOLDER
"""

import sys
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa

from dpr.corpus.hashes import KnownKeys
from dpr.corpus.slices import plan_slices
from dpr.formats.cut_texts import CutTexts
from dpr.formats.manifest import IndexEntry, SegmentEntry, ShardEntry
from dpr.formats.objects import put_object
from dpr.formats.records import ObjectRef
from dpr.formats.segment import HASH, passage_schema, write_segment
from dpr.index.choose import choose
from dpr.index.coding import build_part
from dpr.index.hardware import CPU
from dpr.index.kinds import storage
from dpr.index.live_parts import PartRef
from dpr.index.merging import merge
from dpr.index.part import write_part
from dpr.index.shards import open_shard
from dpr.index.training import train
from dpr.recipe import CorpusConfig
from dpr.recipe_index import IndexConfig
from dpr.stages.diff import DiffUnit, find_changes
from dpr.stages.find_truth import Truth
from dpr.stages.gate import GateUnit
from dpr.stages.held_rows import diff_need
from dpr.stages.merge import MergeUnit
from dpr.stages.scan import ScanUnit, scan_slice
from dpr.stages.train import IndexContext, TrainCodebook, plan_training, train_need
from dpr.store import LocalStore

ENCODER = "e" * 16
ROWS, DIM = 100_000, 256
CONFIG = IndexConfig(factory="IVF16,SQ8", train_rows=40_000)
TABLE = IndexConfig(factory="SQ8", train_rows=40_000)
NOTHING = ObjectRef(name="none", size_bytes=0, sha256="0" * 64)


def held_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def peak_growth(work: Callable[[], object]) -> int:
    """Call `work`; return by how much the peak of this process's memory exceeded what it held before."""
    before = held_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets earlier peaks
    result = work()
    assert result is not None
    return held_bytes("VmHWM") - before


def diff_taken(folder: Path) -> tuple[int, int]:
    """Compare 200,000 passages with nothing."""
    store, path, rows = LocalStore(folder / "store"), folder / "corpus.jsonl", 200_000
    path.write_text("".join(f'{{"id": "{n}", "title": "", "text": "text {n}"}}\n' for n in range(rows)))
    config = CorpusConfig(path=str(path))
    (slice_,) = plan_slices(config).slices
    scanned = scan_slice(store, config, KnownKeys(pa.array([], HASH)), ScanUnit("s/s.json", "s/s", slice_, 0))
    unit = DiffUnit("r", "run", rows, 0, ENCODER, config, (slice_,), (scanned,), (), (), None, 0, 50_000, 0.5, 0)
    return diff_need(rows, []).memory_bytes, peak_growth(lambda: find_changes(store, unit))


def vectors(rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.float16]]:
    return np.random.default_rng(0).normal(size=(rows, DIM)).astype(np.float16)


def train_taken(folder: Path) -> tuple[int, int]:
    """Train on 40,000 vectors of one segment."""
    store, rows = LocalStore(folder / "store"), 50_000
    hashes = [number.to_bytes(16, "big") for number in range(rows)]
    texts = [str(number) for number in range(rows)]
    passages = pa.table([texts, texts, texts, hashes, hashes], schema=passage_schema())
    write_segment(folder / "segment.parquet", passages, vectors(rows), ENCODER)
    ref = put_object(store, "segments/s", folder / "segment.parquet")
    entry = SegmentEntry(number=0, segment_id="s", rows=rows, object=ref)
    context = IndexContext(store.url, ENCODER, DIM, CONFIG, (entry,), None)
    unit = plan_training(context, choose(CONFIG, rows, DIM))
    return train_need(unit, DIM, CPU).memory_bytes, peak_growth(lambda: TrainCodebook(CPU)(unit))


def made_part(folder: Path, config: IndexConfig = CONFIG) -> tuple[faiss.Index, PartRef]:
    """Train a codebook and code ROWS vectors with it."""
    vectors_ND = vectors(ROWS)
    codebook = train(vectors_ND[:2_000], choose(config, ROWS, DIM), 7)
    write_part(build_part(codebook, vectors_ND), folder / "part", "0" * 64)
    return codebook, PartRef(0, folder / "part", ROWS, np.empty(0, np.uint32), "0" * 64)


def merge_taken(folder: Path, config: IndexConfig = CONFIG) -> tuple[int, int]:
    """Merge one part into a shard."""
    codebook, part = made_part(folder, config)
    unit = MergeUnit("r", "s", (), (), None, ROWS, ROWS * choose(config, ROWS, DIM).bytes_per_vector)
    estimated = unit.need(len(faiss.serialize_index(codebook)), storage(codebook), is_remote=False).memory_bytes
    return estimated, peak_growth(lambda: merge(codebook, [part], folder / "index.faiss"))


def table_taken(folder: Path) -> tuple[int, int]:
    """Merge one part into a shard without lists."""
    return merge_taken(folder, TABLE)


def gate_taken(folder: Path) -> tuple[int, int]:
    """Open two shards, as the gate does before it searches them."""
    codebook, part = made_part(folder)
    merge(codebook, [part], folder / "index.faiss")
    size_bytes = (folder / "index.faiss").stat().st_size
    ref = NOTHING.model_copy(update={"size_bytes": size_bytes})
    shard = ShardEntry(rows=ROWS, live_rows=ROWS, segments=[0], left_out=None, object=ref)
    index = IndexEntry(
        index_id="0" * 16,
        rows=ROWS,
        nprobe=1,
        rescore=0,
        at=20,
        deeper=None,
        shards=[shard, shard],
        loose=None,
        loose_rows=0,
        first_shards=2,
    )
    context = IndexContext(str(folder), index.index_id, DIM, IndexConfig(), (), None)
    truth = Truth("q", NOTHING, np.empty((0, 1), np.float32), np.empty((0, 1), np.int64), CutTexts())
    unit = GateUnit("r", "s", context, index, truth, None, None, 0, 0)
    path = folder / "index.faiss"

    def open_both() -> list[faiss.Index]:
        first = open_shard(path)
        return [first, open_shard(path, first)]

    return unit.need.memory_bytes, peak_growth(open_both)


UNITS = {"diff": diff_taken, "train": train_taken, "merge": merge_taken, "table": table_taken, "gate": gate_taken}

if __name__ == "__main__":
    print(*UNITS[sys.argv[1]](Path(sys.argv[2])))
