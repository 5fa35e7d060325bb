"""Small stored things for tests: passages, segments, a snapshot's body, damage, and a store that is not local."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dpr.fingerprint import content_hash, passage_key
from dpr.formats.gate_report import GateReport
from dpr.formats.manifest import (
    CodebookEntry,
    EncoderDescription,
    IndexEntry,
    SegmentEntry,
    ShardEntry,
    SnapshotBody,
    TowerDescription,
)
from dpr.formats.markers import find_readers
from dpr.formats.objects import put_object
from dpr.formats.records import ObjectRef
from dpr.formats.segment import passage_schema, write_segment
from dpr.recipe import EncoderConfig, StoreAs
from dpr.store import LocalStore, Store
from dpr.store.lease import store_time


class RemoteStore(LocalStore):
    """A folder that is read as an object store is, without local paths; counts requests for data and their bytes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reads: list[tuple[str, int]] = []
        """Method and bytes of every request that read data."""
        self._lock = threading.Lock()

    def local_path(self, name: str) -> Path | None:  # noqa: ARG002
        return None

    def get(self, name: str) -> bytes:
        return self._counted("get", super().get(name))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        return self._counted("get_range", super().get_range(name, start, length))

    def fetch(self, name: str, path: Path) -> None:
        super().fetch(name, path)
        with self._lock:
            self.reads.append(("fetch", path.stat().st_size))

    def _counted(self, method: str, data: bytes) -> bytes:
        with self._lock:
            self.reads.append((method, len(data)))
        return data


def passages(rows: int, first: int = 0) -> pa.Table:
    """Return rows of a segment without vectors; row n has the id `id-n`."""
    columns: list[list[Any]] = [[], [], [], [], []]
    for n in range(first, first + rows):
        title, text = f"title {n % 7}", f"text é {n}"
        row = (f"id-{n}", title, text, passage_key(f"id-{n}", title, text), content_hash(title, text))
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    schema = passage_schema()
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def random_vectors(rows: int, dim: int, seed: int = 0) -> npt.NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float16)


def put_segment(
    store: Store,
    folder: Path,
    number: int,
    vectors_ND: npt.NDArray[np.float16],
    encoder_id: str = "e",
    store_as: StoreAs = "float16",
) -> SegmentEntry:
    """Store a segment whose passages are numbered from 1,000,000 times its number."""
    path = folder / f"segment-{number}.parquet"
    write_segment(path, passages(len(vectors_ND), 1_000_000 * number), vectors_ND, encoder_id, store_as)
    ref = put_object(store, f"segments/{encoder_id}/s{number}", path)
    return SegmentEntry(number=number, segment_id=f"s{number}", rows=len(vectors_ND), object=ref)


def some_ref(name: str) -> ObjectRef:
    """Return a reference to an object that need not exist."""
    return ObjectRef(name=name, size_bytes=1, sha256="0" * 64)


def snapshot_body(rows: int = 30, dim: int = 32, **fields: Any) -> SnapshotBody:
    """Return a body that agrees with itself; `fields` replace some of its own."""
    tower = TowerDescription(
        reference="model",
        architecture="BertModel",
        digest="d" * 64,
        pooling="mean",
        normalize=True,
        prefix="",
        max_tokens=64,
        title_join="space",
        lowercase=True,
        dim=dim,
    )
    encoder = EncoderDescription(
        encoder_id="e", dim=dim, passage=tower, question=tower, config=EncoderConfig(model="model")
    )
    codebook = CodebookEntry(
        codebook_id="c",
        factory="Flat",
        trained_rows=0,
        corpus_rows=rows,
        last_segment=0,
        quantisation_error=0.0,
        list_imbalance=None,
        far_distance=None,
        object=some_ref("codebooks/e/c-0.faiss"),
    )
    shard = ShardEntry(rows=rows, live_rows=rows, segments=[0], left_out=None, object=some_ref("indexes/i-0.faiss"))
    gate = GateReport(
        questions=1,
        question_kind="sentences",
        questions_id="q",
        recall=1.0,
        measured_on=1,
        tuned_recall=1.0,
        tuned_on=1,
        new_recall=None,
        new_sentences=0,
        deeper_recall=None,
        meets_recall_target=True,
        predicted_ms=0.1,
        meets_latency=True,
        settings="nprobe 1",
    )
    body = SnapshotBody(
        encoder_id="e",
        encoder=encoder,
        passages=rows,
        segments=[SegmentEntry(number=0, segment_id="s", rows=rows, object=some_ref("segments/e/s-0.parquet"))],
        next_segment_number=1,
        deletions=None,
        codebook=codebook,
        index=IndexEntry(
            index_id="i",
            rows=rows,
            nprobe=1,
            rescore=0,
            at=20,
            deeper=None,
            shards=[shard],
            loose=None,
            loose_rows=0,
            first_shards=1,
        ),
        gate=gate,
    )
    return body.model_copy(update=fields)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"?")


DAMAGE: list[Callable[[Path], None]] = [flip_a_bit, cut_short, lengthen]


def snapshots_read(store: Store) -> list[int]:
    """Return the numbers of the snapshots with a living reader, in the order of the markers' names."""
    return [reader.snapshot for reader in find_readers(store, store_time(store)) if reader.lives]
