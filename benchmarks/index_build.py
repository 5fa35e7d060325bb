"""Contenders of part (b) of benchmarks/index.py, each in a process of its own: `python index_build.py NAME ARGUMENTS`.

The last line of output is JSON: seconds by step.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from index_data import MODEL

from dpr.engine.executor import LocalExecutor
from dpr.formats import layout
from dpr.formats.manifest import CodebookEntry, SegmentEntry
from dpr.formats.objects import put_object
from dpr.formats.records import read_record
from dpr.formats.segment import write_segment
from dpr.index.faiss_file import read_faiss
from dpr.index.live_parts import PartRef
from dpr.index.merging import merge
from dpr.index.sample import sample_rows
from dpr.recipe import Recipe
from dpr.run import Plan, Run
from dpr.stages.build import PartResult, build
from dpr.stages.drift import keep_or_train
from dpr.stages.merge import merge_index
from dpr.stages.train import index_context
from dpr.store import open_store
from ray_jobs.connect import connected
from ray_jobs.ray_executor import RayExecutor

SEGMENT_ROWS = 50_000
BUFFER_BYTES = 8 * 2**20
SPARE_BYTES = 24 * 2**20
"""What a merge may hold beside the largest part, three buffers (as it says) and two copies of the codebook."""


class Quiet:
    """No progress is shown."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None: ...

    def advance(self, rows: int, detail: str = "") -> None: ...

    def message(self, topic: str, text: str) -> None: ...

    def finish(self, summary: str) -> None: ...


def recipe_of(store: Path, factory: str) -> Recipe:
    """A recipe whose corpus is a stand-in: the segments are there already."""
    store.mkdir(parents=True, exist_ok=True)
    corpus = store.parent / "corpus.jsonl"
    corpus.write_text(json.dumps({"_id": "0", "title": "", "text": "stand-in"}) + "\n", encoding="utf-8")
    fields = {"corpus": {"path": str(corpus), "format": "beir"}, "encoder": {"model": MODEL}}
    return Recipe.model_validate({"store": str(store), "index": {"factory": factory}, **fields})


def write_segments(passages: Path, store_folder: Path) -> None:
    """The passages as segments of a store, with a few bytes of text each; what is there is left as it is."""
    listing = store_folder.parent / "segments.json"
    if listing.exists():
        return
    passages_ND = np.load(passages, mmap_mode="r")
    encoder_id = Plan.of(recipe_of(store_folder, "auto")).spec.encoder_id
    store, entries = open_store(str(store_folder)), []
    for number, first in enumerate(range(0, len(passages_ND), SEGMENT_ROWS)):
        vectors_ND = np.array(passages_ND[first : first + SEGMENT_ROWS])
        ids = [str(first + row) for row in range(len(vectors_ND))]
        hashes = [row.to_bytes(16, "big") for row in range(first, first + len(ids))]
        columns = {"id": ids, "title": [""] * len(ids), "text": ids, "key": hashes, "content_hash": hashes}
        file = store_folder.parent / "segment.parquet"
        write_segment(file, pa.table(columns), vectors_ND, encoder_id)
        ref = put_object(store, layout.segment(encoder_id, f"bench-{number:04}"), file)
        entries.append(SegmentEntry(number=number, segment_id=f"bench-{number:04}", rows=len(ids), object=ref))
        file.unlink()
    listing.write_text(json.dumps([entry.model_dump(mode="json") for entry in entries]), encoding="utf-8")


def entries_of(store_folder: Path) -> list[SegmentEntry]:
    listed = json.loads((store_folder.parent / "segments.json").read_text(encoding="utf-8"))
    return [SegmentEntry.model_validate(entry) for entry in listed]


class Steps:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        done = work()
        self.seconds[name] = time.perf_counter() - started
        return done


def ours(segments: Path, built: Path, factory: str, *, with_ray: bool = True) -> dict[str, Any]:
    """The product's stages on Ray, from segments on disk to a verified index on disk."""
    shutil.rmtree(built.parent, ignore_errors=True)
    shutil.copytree(segments, built, copy_function=os.link)
    shutil.copy(segments.parent / "segments.json", built.parent)
    steps = Steps()
    started = time.perf_counter()
    with connected():
        recipe, entries = recipe_of(built, factory), entries_of(built)
        executor = RayExecutor(recipe.resources) if with_ray else LocalExecutor()
        run = Run(Plan.of(recipe), executor, Quiet())
        ray_seconds = time.perf_counter() - started
        context = index_context(run, entries, None)
        codebook, choice = steps("sample, train", lambda: keep_or_train(run, context))
        parts = steps("build parts", lambda: build(run, entries, codebook, choice))
        index, _ = steps("merge, verify", lambda: merge_index(run, context, codebook, choice, parts))
    found = {"codebook": codebook.model_dump(mode="json"), "index": index.model_dump(mode="json")}
    (built.parent / "built.json").write_text(json.dumps(found), encoding="utf-8")
    return {"seconds": steps.seconds, "start of Ray": ray_seconds, "bytes": index.size_bytes}


def single(segments: Path, built: Path, factory: str, passages: Path) -> dict[str, Any]:
    """FAISS's own `train` on the same sample and `add`, in one process with all vectors in memory."""
    index = faiss.index_factory(np.load(passages, mmap_mode="r").shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    steps = Steps()
    vectors_ND = steps("read to float32 (not counted)", lambda: np.load(passages).astype(np.float32))
    trained = json.loads((built.parent / "built.json").read_text(encoding="utf-8"))["codebook"]["trained_rows"]
    (drawn,) = sample_rows([len(vectors_ND)], trained, 0)
    sample_ND = vectors_ND[drawn]
    steps("train", lambda: index.train(sample_ND))
    steps("add", lambda: index.add(vectors_ND))
    file = segments.parent / "single.faiss"
    steps("write", lambda: faiss.write_index(index, str(file)))
    return {"seconds": steps.seconds, "bytes": file.stat().st_size}


def merging(built: Path) -> dict[str, Any]:
    """A merge of the parts with a small buffer, and the memory it took beyond what was there before."""
    store = open_store(str(built))
    made = json.loads((built.parent / "built.json").read_text(encoding="utf-8"))
    codebook_ref = CodebookEntry.model_validate(made["codebook"]).object
    codebook_file = store.local_path(codebook_ref.name)
    assert codebook_file is not None
    codebook, parts = read_faiss(codebook_file), []
    for segment in entries_of(built):
        stem = layout.part(codebook_ref.sha256, segment.object.sha256)
        result = read_record(store, layout.record(stem), PartResult)
        assert result is not None
        file = store.local_path(result.part.name)
        assert file is not None
        parts.append(PartRef(segment.number, file, segment.rows, np.empty(0, np.uint32), codebook_ref.sha256))
    files = [part.file for part in parts if isinstance(part.file, Path)]
    target = built.parent / "merged.faiss"
    before = _peak_bytes(reset=True)
    merge(codebook, parts, target, BUFFER_BYTES)
    held, largest = _peak_bytes() - before, max(file.stat().st_size for file in files)
    limit = largest + 3 * BUFFER_BYTES + 2 * codebook_file.stat().st_size + SPARE_BYTES
    found = {"held": held, "limit": limit, "largest part": largest, "buffer": BUFFER_BYTES, "parts": len(parts)}
    return {**found, "bytes": target.stat().st_size}


def _peak_bytes(*, reset: bool = False) -> int:
    """Peak of this process's resident memory, since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["segments", "ours", "single", "merging"])
    for name in ("--passages", "--segments", "--built"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--factory", default="auto")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    if given.name == "segments":
        write_segments(given.passages, given.segments)
    elif given.name == "ours":
        found = ours(given.segments, given.built, given.factory)
    elif given.name == "single":
        found = single(given.segments, given.built, given.factory, given.passages)
    else:
        found = merging(given.built)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
