"""The room that a snapshot takes in this machine's cache and memory, alone or beside another one."""

from dpr.engine.room import Need, memory_held
from dpr.formats.manifest import SnapshotBody
from dpr.formats.objects import bytes_to_fetch
from dpr.formats.segment import HASH
from dpr.formats.stored_vectors import stored_bytes
from dpr.search.passage_texts import texts_key
from dpr.stages.gate import LOADED_SHARE
from dpr.store import Store
from dpr.store.cache import local_cache


def need_beside(store: Store, body: SnapshotBody, held: SnapshotBody) -> Need:
    """Return the need of a snapshot beside one that is open: its new shards, and files and texts that are not here yet.

    The memory is that of this process with the new shards, less than it really takes.
    """
    known = {ref.sha256 for ref in held.objects()}
    shards = [shard.object for shard in body.index.shards if shard.object.sha256 not in known]
    segments = [entry for entry in body.segments if entry.object.sha256 not in known]
    words = [part.object for part in body.lexical.parts] if body.lexical else []
    files = [*shards, *(entry.object for entry in segments), *(ref for ref in words if ref.sha256 not in known)]
    packed = [entry for entry in segments if local_cache().find(texts_key(entry.object)) is None]
    passage = body.encoder.passage
    row_bytes = stored_bytes(passage.dim, passage.store_as) + 2 * HASH.byte_width
    texts_bytes = sum(max(0, entry.object.size_bytes - row_bytes * entry.rows) for entry in packed)
    return Need(
        cache_bytes=sum(bytes_to_fetch(store, ref) for ref in files) + texts_bytes,
        memory_bytes=memory_held() + int(LOADED_SHARE * sum(ref.size_bytes for ref in shards)),
        smaller="set index.memory_gb to half of what there is",
    )


def segments_to_fetch(store: Store, body: SnapshotBody) -> int:
    """Return the bytes of segments that are not on this machine; 0 for a store in a folder."""
    return sum(bytes_to_fetch(store, entry.object) for entry in body.segments)


def fits_the_cache(body: SnapshotBody) -> bool:
    """Return whether this machine's cache may hold all files of a snapshot at once."""
    return sum(ref.size_bytes for ref in body.objects()) <= local_cache().max_bytes
