"""The hashes of segments, which every night compares with the corpus, kept in this machine's cache."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dpr.errors import IntegrityError
from dpr.formats.gathered import gather_table
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import open_parts
from dpr.formats.records import ObjectRef
from dpr.formats.segment import HASH, read_hashes
from dpr.store import Store
from dpr.store.cache import local_cache


def segment_hashes(store: Store, ref: ObjectRef) -> dict[str, pa.FixedSizeBinaryArray]:
    """Return the keys and the content hashes of all rows of a segment, under the names of their columns.

    Those of a remote segment are read by range once, and kept: 32 bytes a row. So a later night, or another stage of
    the same one, sends no request for them.
    """
    path = store.local_path(ref.name)
    if path is not None:
        return read_hashes(open_parts(store, ref))

    def make(kept: Path) -> None:
        table = pa.table(read_hashes(open_parts(store, ref)))
        pq.write_table(table, kept, compression="none", use_dictionary=False, write_page_checksum=True)

    cache, key = local_cache(), f"hashes/{ref.sha256}.parquet"
    try:
        return read_hashes(cache.fetch(key, make))
    except IntegrityError:  # either the cached file or the segment itself is damaged; the second attempt shows which
        cache.remove(key)
        return read_hashes(cache.fetch(key, make))


def gather_hashes(
    store: Store, segments: Sequence[SegmentEntry], columns: Sequence[str]
) -> list[pa.FixedSizeBinaryArray]:
    """Return hash columns of all rows of some segments, one segment after another."""

    def read(number: int) -> pa.Table:
        return pa.table(segment_hashes(store, segments[number].object))

    schema = pa.schema([pa.field(name, HASH, nullable=False) for name in columns])
    names = [entry.object.name for entry in segments]
    table = gather_table([entry.rows for entry in segments], read, schema, names.__getitem__)
    return [table[name].chunk(0) for name in columns]
