"""The memory that an index takes when it is searched, from the empty index of its kind."""

import faiss

from dpr.index.kinds import FAST_BLOCK_ROWS, ID_BYTES, code_centroids, core, list_count, packed_when_opened

LIST_BYTES = 8


def serving_bytes(index: faiss.Index, rows: int, shards: int = 1) -> int:
    """Return the memory of an index with `rows` vectors in `shards` shards, from the empty index of its kind. Pure."""
    return rows * bytes_per_vector(index) + shards * _fixed_bytes(index)


def _fixed_bytes(index: faiss.Index) -> int:
    """Return what a shard takes without vectors: centroids, code tables, a rotation, and what an empty list takes."""
    inner, lists = core(index), list_count(index)
    fixed: int = 4 * int(inner.d) * (lists + code_centroids(index)) + LIST_BYTES * lists
    if "FastScan" in type(inner).__name__ and lists:  # the last block of a list is half empty on average
        fixed += lists * int(inner.get_CodePacker().block_size) // 2
    if packed_when_opened(index):
        fixed += lists * FAST_BLOCK_ROWS * int(index.code_size) // 2
    if isinstance(index, faiss.IndexPreTransform):
        fixed += 4 * int(index.d) * int(inner.d)
    return fixed


def bytes_per_vector(index: faiss.Index) -> int:
    inner = core(index)
    if isinstance(inner, faiss.IndexIVF):
        return int(inner.code_size) + ID_BYTES
    if isinstance(inner, faiss.IndexHNSW):
        base, above = int(inner.hnsw.nb_neighbors(0)), int(inner.hnsw.nb_neighbors(1))
        # neighbours at the base level, those of the one vector in `above` that is on the next level, and where they lie
        links_bytes = round(4 * (base + above / (above - 1))) + 12
        return int(faiss.downcast_index(inner.storage).sa_code_size()) + links_bytes + ID_BYTES
    try:
        return int(inner.sa_code_size()) + ID_BYTES
    except RuntimeError:  # kinds without a code of their own store the vectors as float32
        return 4 * int(inner.d) + ID_BYTES
