"""Training a codebook, which is an empty FAISS index; measuring it; and keeping indexes in files.

Shapes: N rows, D dimensions, L lists.
"""

import contextlib
import math
from collections.abc import Iterator

import faiss
import numpy as np

from dpr.errors import IndexBuildError
from dpr.index.candidates import search
from dpr.index.choose import IndexPlan, new_index
from dpr.index.coarse_training import train_coarse
from dpr.index.coding import FaissCoder
from dpr.index.hardware import CPU, Floats, Hardware, Lists, as_float32, check_width
from dpr.index.kinds import copy_index, core, inverted, list_count, reason
from dpr.index.part import Coded

PROBE_ROWS = 500


def train(sample_ND: Floats, plan: IndexPlan, seed: int, hardware: Hardware = CPU) -> faiss.Index:
    """Train the codebook of `plan` on the sample (N, D), float16 or float32, and return it, empty.

    The same sample, plan, seed and device give the same codebook, with any number of threads unless the kind has a
    learned transform (OPQ, PCA). Raises IndexBuildError for a sample of another width, too small or not finite, and for
    a kind that FAISS cannot fill and search the way it is done here.
    """
    check_width(sample_ND, plan.dim, "training vectors")
    if len(sample_ND) < max(1, plan.min_train_rows):
        raise IndexBuildError(
            f"index factory {plan.factory} needs at least {max(1, plan.min_train_rows)} training vectors and the "
            f"sample has {len(sample_ND)}; draw a larger sample or choose a smaller index"
        )
    codebook = new_index(plan.factory, plan.dim)
    try:
        with _prepared(codebook, seed):
            if (device := hardware.device_for(codebook)) is not None:
                from dpr.index.torch_index import train_in_torch

                train_in_torch(codebook, sample_ND, seed, device)
            else:
                whole_ND = as_float32(sample_ND, plan.dim, "training vectors")
                train_coarse(codebook, whole_ND, seed)
                codebook.train(whole_ND)
        trial = copy_index(codebook)
        for _ in range(2):  # some kinds take vectors only once
            trial.add(sample_ND[:PROBE_ROWS].astype(np.float32))
    except RuntimeError as error:
        raise IndexBuildError(
            f"index factory {plan.factory} cannot be built from {len(sample_ND)} vectors: {reason(error)}; "
            "choose another index.factory"
        ) from error
    search(trial, sample_ND[:1].astype(np.float32), 1, 1)
    return codebook


def describe_training(plan: IndexPlan, hardware: Hardware) -> str:
    """Return a sentence that says where the codebook of a plan is trained and vectors are coded, and why."""
    if hardware.device is None:
        return "trained and coded by FAISS on CPU threads: no GPU"
    if hardware.device_for(new_index(plan.factory, plan.dim)):
        return f"trained and coded by PyTorch on {hardware.device}"
    return f"trained and coded by FAISS on CPU threads: the GPU is not used for indexes of the kind {plan.factory}"


@contextlib.contextmanager
def _prepared(codebook: faiss.Index, seed: int) -> Iterator[None]:
    """Seed every clustering of a codebook, and silence FAISS's warnings of small samples, which the plan mentions."""
    searched = inverted(codebook) or core(codebook)
    coded = faiss.downcast_index(searched.storage) if hasattr(searched, "storage") else searched
    for quantized in (searched, coded):
        if hasattr(quantized, "do_polysemous_training"):
            # polysemous training prepares search by Hamming distance, which is not used here, and takes longer than the
            # rest
            quantized.do_polysemous_training = False
    clusterings = [searched.cp] if isinstance(searched, faiss.IndexIVF) else []
    if hasattr(coded, "pq"):
        clusterings.append(coded.pq.cp)
    lent = [(matrix, faiss.ProductQuantizer(matrix.d_out, matrix.M, 8)) for matrix in _rotations(codebook)]
    for matrix, quantizer in lent:
        matrix.pq = quantizer
        clusterings.append(quantizer.cp)
    for clustering in clusterings:
        clustering.seed = seed
        clustering.min_points_per_centroid = 1
    yield
    for matrix, quantizer in lent:
        matrix.pq = None
        quantizer.thisown = True  # assigning it passed ownership to the matrix, which never frees it


def _rotations(codebook: faiss.Index) -> list[faiss.OPQMatrix]:
    if not isinstance(codebook, faiss.IndexPreTransform):
        return []
    chain = [faiss.downcast_VectorTransform(codebook.chain.at(place)) for place in range(codebook.chain.size())]
    return [transform for transform in chain if isinstance(transform, faiss.OPQMatrix)]


def quantisation_error(codebook: faiss.Index, vectors_ND: Floats) -> tuple[float, Coded | None]:
    """Return the mean squared error of coded vectors (N, D), relative to their mean squared norm; 0 if exact.

    Also returns the coded vectors, if the codebook has lists. Raises IndexBuildError for vectors of another width or
    that are not finite.
    """
    vectors_ND = as_float32(vectors_ND, codebook.d, "vectors")
    coded = None
    if list_count(codebook):
        coder = FaissCoder(codebook)
        coded = coder(vectors_ND, "vectors")
        error_ND = coder.decode(coded) - vectors_ND
    else:
        inner = core(codebook)
        codec = faiss.downcast_index(inner.storage) if hasattr(inner, "storage") else codebook
        error_ND = codec.sa_decode(codec.sa_encode(vectors_ND)) - vectors_ND
    error = np.square(error_ND, dtype=np.float64).sum() / np.square(vectors_ND, dtype=np.float64).sum()
    return float(error), coded


def list_imbalance(lists: int, lists_N: Lists) -> float | None:
    """Return how many vectors a question compares, relative to equal lists, if questions are distributed as vectors.

    `lists_N` holds the list of each vector of a sample. The sample gives an unbiased estimate for all vectors: the
    number of `lists` times the share of pairs that are in one list. For all vectors it is FAISS's imbalance factor,
    without the pairs of a vector with itself. None for kinds without lists and for fewer than two vectors. Pure.
    """
    if not lists or len(lists_N) < 2:
        return None
    sizes_L = np.bincount(lists_N).astype(np.float64)
    return float(lists * (sizes_L * (sizes_L - 1)).sum() / (len(lists_N) * (len(lists_N) - 1)))


def imbalance_growth(trained: float, new: float, share: float) -> float:
    """Return a bound of the relative growth of the imbalance if vectors of imbalance `new` are `share` of all. Pure.

    With the vectors of lists in shares p and q, it is L |(1 - share) p + share q|², and |p| |q| bounds the mixed term
    (Cauchy-Schwarz). Estimates below 1, which no lists have, count as 1.
    """
    trained, new = max(1.0, trained), max(1.0, new)
    grown = ((1 - share) * math.sqrt(trained) + share * math.sqrt(new)) ** 2
    return grown / trained - 1.0
