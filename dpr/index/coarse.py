"""Training the coarse centroids of inverted lists with FAISS, on CPU threads, most of the way on a part of the sample.

FAISS compares all vectors with all centroids ten times. The first steps only carry random centroids to where vectors
are, which a quarter of the vectors shows as well; the last steps see them all.

Shapes: N rows, D dimensions.
"""

import faiss
import numpy as np
import numpy.typing as npt

PART = 4
"""The first steps see every so manieth vector of the sample, which is in random order or in that of the corpus."""
LAST_STEPS = 4
LEAST_ROWS_PER_LIST = 64
"""With fewer, the part would hold too few for each centroid: FAISS then trains as it does."""


def train_coarse(index: faiss.Index, sample_ND: npt.NDArray[np.float32]) -> None:
    """Train the centroids of an index whose lists are found by comparing all of them; leave other kinds as they are."""
    if not isinstance(index, faiss.IndexIVF) or len(sample_ND) < LEAST_ROWS_PER_LIST * index.nlist:
        return
    if not isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlat):
        return
    clustering = faiss.Clustering(index.d, index.nlist, index.cp)
    first_steps = max(0, index.cp.niter - LAST_STEPS)
    for steps, seen_ND in ((first_steps, np.ascontiguousarray(sample_ND[::PART])), (LAST_STEPS, sample_ND)):
        clustering.niter = steps
        clustering.train(seen_ND, index.quantizer)  # starts from the centroids that it has, and leaves them there
    index.quantizer.is_trained = True
