"""Predicting what a question costs from counted operations.

Nothing is timed, so the same inputs give the same settings.

Milliseconds are those of one question on one thread of a reference processor (AMD EPYC with AVX-512 bf16, the index in
memory but not in caches). Other machines differ by a factor of two or more, so where a recipe bounds the time it is
measured (`dpr.index.timing`). `benchmarks/search_cost.py` compares both with the times of other questions. With D
dimensions and codes of B bytes:

    question     18 µs, and for PQ a table of 16 or 256 products for each dimension
    centroid     D * 0.095 ns           every coarse centroid, once in each shard; where `dpr.index.shards` ranks them
                                        by codes first, the code's time each, and this for two centroids a list
    list         200 ns                 each list visited
    vector       by kind, below         each vector in these lists
    loose row    D * 0.085 ns           each one
    candidate    400 ns + D * 1.8 ns    each one gathered from the segments, converted, multiplied
"""

from dataclasses import dataclass

import faiss

from dpr.index.kinds import inverted, searched
from dpr.index.serving_index import ServingIndex

QUESTION_NS = 18_000.0
TABLE_NS = 0.27
CENTROID_NS = 0.095
LIST_NS = 200.0
CANDIDATE_NS = 400.0
CANDIDATE_DIM_NS = 1.8

PQ_BYTE_NS = 0.4
FAST_BYTE_NS = 0.085
BITS_DIM_NS = 0.025
SCALAR_DIM_NS = 0.085
FLAT_DIM_NS = 0.17
GRAPH_HOP_NS = 20.0


@dataclass(frozen=True)
class SearchCost:
    """Nanoseconds of each operation of an index."""

    question_ns: float
    centroid_ns: float
    list_ns: float
    vector_ns: float
    loose_ns: float
    candidate_ns: float

    def milliseconds(self, index: ServingIndex, nprobe: int, candidates: int) -> float:
        """Predict the time of one question that visits `nprobe` lists and re-scores `candidates`."""
        lists = min(nprobe, index.lists) * len(index.shards)
        return 1e-6 * (
            self.question_ns * len(index.shards)
            + self.centroid_ns * index.centroids_compared()
            + self.list_ns * lists
            + self.vector_ns * index.visited(nprobe)
            + self.loose_ns * (len(index.loose) if index.loose else 0)
            + self.candidate_ns * candidates
        )


def search_cost(index: ServingIndex) -> SearchCost:
    """Return the costs of the operations of an index of this kind."""
    shard = index.shards[0]
    dim = int(shard.d)
    inner = searched(shard)
    table_ns = TABLE_NS * dim * int(inner.pq.ksub) if hasattr(inner, "pq") else 0.0
    centroid_ns, list_ns = CENTROID_NS * dim, LIST_NS
    ivf = inverted(shard)
    quantizer = None if ivf is None else faiss.downcast_index(ivf.quantizer)
    if isinstance(quantizer, faiss.IndexRefine):
        list_ns += quantizer.k_factor * centroid_ns
        centroid_ns = FAST_BYTE_NS * int(faiss.downcast_index(quantizer.base_index).code_size)
    return SearchCost(
        question_ns=QUESTION_NS + table_ns,
        centroid_ns=centroid_ns,
        list_ns=list_ns,
        vector_ns=_vector_ns(inner),
        loose_ns=SCALAR_DIM_NS * dim,
        candidate_ns=CANDIDATE_NS + CANDIDATE_DIM_NS * dim,
    )


def _vector_ns(inner: faiss.Index) -> float:
    """Return the cost of comparing one vector."""
    dim, kind = int(inner.d), type(inner).__name__
    if isinstance(inner, faiss.IndexHNSW):
        return GRAPH_HOP_NS + FLAT_DIM_NS * dim
    if "FastScan" in kind:
        return FAST_BYTE_NS * int(inner.code_size)
    if "RaBitQ" in kind:
        return BITS_DIM_NS * dim
    if hasattr(inner, "pq"):
        return PQ_BYTE_NS * int(inner.code_size)
    return (SCALAR_DIM_NS if hasattr(inner, "sq") else FLAT_DIM_NS) * dim
