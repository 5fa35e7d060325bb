"""The report on an index: recall against latency, list sizes, memory by kind, from a snapshot and its gate's record.

Shapes: Q questions, D dimensions, L lists.
"""

import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpr.evaluate.pictures import THEMES, KindMemory, SearchPoint, draw_lists, draw_memory, draw_recall
from dpr.evaluate.report_page import Section, write_page
from dpr.formats import layout
from dpr.formats.manifest import Snapshot, SnapshotBody
from dpr.formats.records import read_record
from dpr.index.candidates import SearchSettings
from dpr.index.choose import new_index
from dpr.index.contents import list_sizes
from dpr.index.hardware import faiss_threads
from dpr.index.serving_memory import serving_bytes
from dpr.index.truth import Scores
from dpr.index.tune import TunePoint
from dpr.search.vector_search import VectorSearch
from dpr.stages.gate import GateResult
from dpr.stages.train import sample_vectors
from dpr.store import Store

TIMED_QUESTIONS = 50
TIMED_POINTS = 12
"""Points of the curve that are timed: the chosen one, and others evenly from the cheapest to the most expensive."""


def write_report(store: Store, snapshot: Snapshot, folder: Path) -> Path:
    """Draw the index of a snapshot into `folder`, as PNG files and one HTML page, whose path is returned."""
    body = snapshot.body
    search = VectorSearch.open(store, body)
    sections = [*_recall_section(store, body, search), *_list_section(search), _memory_section(body)]
    facts: dict[str, object] = {
        "store": store.url,
        "snapshot": snapshot.number,
        "passages": body.passages,
        "index": body.codebook.factory,
        "shards": len(body.index.shards),
        "loose rows": body.index.loose_rows,
        "bytes of the index": body.index.size_bytes,
        "bytes a vector": body.index.size_bytes / body.index.rows,
        "nprobe": body.index.nprobe,
        "rescore": body.index.rescore,
        "quantisation error": body.codebook.quantisation_error,
    }
    facts |= {
        "questions": body.gate.questions,
        "recall@20": body.gate.recall,
        "recall@20 while tuning": body.gate.tuned_recall,
        "settings": body.gate.settings,
    }
    return write_page(folder, "report.html", f"Index of snapshot {snapshot.number}", facts, sections)


def _recall_section(store: Store, body: SnapshotBody, search: VectorSearch) -> list[Section]:
    measured = _gate_result(store, body)
    if measured is None:  # the record was collected as garbage
        return []
    points = _timed(store, body, search, measured.curve)
    rows = [
        (p.nprobe, p.rescore, p.recall, p.predicted_ms, "" if p.measured_ms is None else f"{p.measured_ms:.4f}")
        for p in points
    ]
    description = (
        "Recall@20 against exact search on the gate's questions, for the settings that tuning tried; crosses are "
        f"medians of {TIMED_QUESTIONS} passages asked one at a time on one thread of this machine."
    )
    return [
        Section(
            name="recall",
            title="Recall against latency",
            description=description,
            pictures={name: draw_recall(points, measured.recall_target, theme) for name, theme in THEMES.items()},
            columns=("nprobe", "rescore", "recall@20", "predicted ms", "measured ms"),
            rows=rows,
            chosen=next((number for number, point in enumerate(points) if point.chosen), None),
        )
    ]


def _gate_result(store: Store, body: SnapshotBody) -> GateResult | None:
    folder = layout.questions(body.encoder_id, body.gate.questions_id).rpartition("/")[0]
    for info in store.list(f"{folder}/measured-"):
        result = read_record(store, info.name, GateResult)
        if result is not None and result.report == body.gate:
            return result
    return None


def _timed(store: Store, body: SnapshotBody, search: VectorSearch, curve: Sequence[TunePoint]) -> list[SearchPoint]:
    questions_QD = sample_vectors(store, body.segments, body.deletions, TIMED_QUESTIONS, seed=0).astype(np.float32)
    chosen = (body.index.nprobe, body.index.rescore)
    curve = sorted(curve, key=lambda point: point.predicted_ms)
    spread = {round(place) for place in np.linspace(0, len(curve) - 1, TIMED_POINTS)}
    points = []
    for number, point in enumerate(curve):
        settings = SearchSettings(point.nprobe, point.rescore, body.index.at, point.margin)
        is_chosen = (settings.nprobe, settings.rescore) == chosen
        timed = VectorSearch(search.index, settings, search.segments)
        measured_ms = _median_ms(timed, questions_QD) if is_chosen or number in spread else None
        shown = point.model_dump(exclude={"margin"})
        points.append(SearchPoint(**shown, measured_ms=measured_ms, chosen=is_chosen))
    return points


def _median_ms(search: VectorSearch, questions_QD: Scores) -> float:
    spent = []
    with faiss_threads(1):
        for question_D in questions_QD:
            started = time.perf_counter()
            search.top(question_D[None], 20)
            spent.append(time.perf_counter() - started)
    return float(np.median(spent)) * 1e3


def _list_section(search: VectorSearch) -> list[Section]:
    if not search.index.lists:
        return []
    sizes_L = np.sum([list_sizes(shard) for shard in search.index.shards], axis=0)
    counts, edges = np.histogram(sizes_L, bins=min(40, int(sizes_L.max()) + 1))
    rows = [
        (f"{low:,.1f} to {high:,.1f}", int(count)) for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    imbalance = len(sizes_L) * float(np.square(sizes_L, dtype=np.float64).sum()) / float(sizes_L.sum()) ** 2
    description = (
        f"A question compares {imbalance:.2f} times the vectors that equal lists would have; "
        f"{int((sizes_L == 0).sum())} lists are empty."
    )
    pictures = {name: draw_lists(sizes_L, theme) for name, theme in THEMES.items()}
    return [
        Section("lists", "Sizes of the inverted lists", description, ("vectors in a list", "lists"), rows, pictures)
    ]


def _memory_section(body: SnapshotBody) -> Section:
    kinds, vectors = memory_by_kind(body), f"{body.passages:,} vectors of {body.encoder.dim} dimensions"
    return Section(
        name="memory",
        title="Memory by kind",
        description=f"What {vectors} take in indexes of several kinds.",
        pictures={name: draw_memory(kinds, theme) for name, theme in THEMES.items()},
        columns=("kind", "bytes a vector"),
        rows=[(kind.kind, kind.bytes_per_vector) for kind in kinds],
        chosen=next(number for number, kind in enumerate(kinds) if kind.chosen),
    )


def memory_by_kind(body: SnapshotBody) -> list[KindMemory]:
    """Return bytes per vector of the usual kinds for this number and width of vectors, and of this index (measured)."""
    rows, dim = body.passages, body.encoder.dim
    lists = re.search(r"IVF\d+\w*,", body.codebook.factory)
    before = lists[0] if lists else ""
    widths = [f"PQ{dim // group}x4" for group in (2, 4, 8) if dim % group == 0]
    widths += [f"PQ{dim // group}" for group in (2, 4, 8) if dim % group == 0]
    others = ["Flat", "HNSW32", *(f"{before}{kind}" for kind in ("SQ8", *widths, "RaBitQ"))]
    shards = len(body.index.shards)
    found = [
        KindMemory(kind, serving_bytes(new_index(kind, dim), rows, shards) / rows, chosen=False)
        for kind in others
        if kind != body.codebook.factory
    ]
    return [*found, KindMemory(body.codebook.factory, body.index.size_bytes / rows, chosen=True)]
