"""Training and coding in PyTorch, for a GPU; the result is a FAISS index like any other.

PyTorch does what takes long: the coarse centroids of inverted lists, the lists that vectors go to, and product
quantisation with 4 and 8 bits. FAISS does the rest with these lists (scalar quantisers, PQ of other widths).
Arithmetic is float32 (`dpr.index.torch_kmeans` says how it rounds). The code runs on any device; tests run it on a CPU.

Shapes: N rows, D dimensions, L lists, M subspaces, K centroids of a subspace, d = D / M, B bytes of a code.
"""

import faiss
import numpy as np
import torch
from torch import Tensor

from dpr.index.hardware import Codes, Floats, as_float32, check_width
from dpr.index.kinds import encode
from dpr.index.list_groups import NEAR_GROUPS, groups_of
from dpr.index.part import Coded
from dpr.index.torch_kmeans import KMeans, exact_products, kmeans, nearest, random_rows


def train_in_torch(index: faiss.IndexIVF, sample_ND: Floats, seed: int, device: str) -> None:
    """Train an empty index of `TORCH_KINDS` with as many iterations and training vectors as FAISS would use.

    Raises IndexBuildError for vectors that are not finite.
    """
    points_ND = _upload(sample_ND, index.d, "training vectors", device)
    coarse_ND = _at_most(points_ND, index.nlist * index.cp.max_points_per_centroid, seed)
    clustering = KMeans(index.nlist, index.cp.niter, seed, spherical=bool(index.cp.spherical))
    coarse_LD = kmeans(coarse_ND[None], clustering)[0]
    index.quantizer.reset()
    index.quantizer.add(coarse_LD.cpu().numpy())
    index.quantizer.is_trained = True
    if not _is_pq(index):
        index.train(as_float32(sample_ND, index.d, "training vectors"))
        return
    pq = index.pq
    points_ND = _at_most(points_ND, pq.ksub * pq.cp.max_points_per_centroid, seed + 1)
    lists_N = nearest(points_ND[None], coarse_LD[None], spherical=True)[0]
    residual_ND = points_ND - coarse_LD[lists_N] if index.by_residual else points_ND
    centroids_MKd = kmeans(_subspaces(residual_ND, pq.M), KMeans(pq.ksub, pq.cp.niter, seed, spherical=False))
    faiss.copy_array_to_vector(centroids_MKd.cpu().numpy().reshape(-1), pq.centroids)
    index.is_trained = True


def load_kernels(device: str) -> None:
    """Train an index on a few vectors and code them: a GPU loads each kernel at its first use, which takes seconds."""
    points_ND = np.random.default_rng(0).standard_normal((1024, 16), np.float32)
    index = faiss.index_factory(16, "IVF4,PQ4x4")
    train_in_torch(index, points_ND, 0, device)
    TorchCoder(index, device)(points_ND, "random vectors")


def _at_most(points_ND: Tensor, rows: int, seed: int) -> Tensor:
    """Return all points, or a random sample of `rows` of them."""
    if len(points_ND) <= rows:
        return points_ND
    return points_ND[random_rows(len(points_ND), rows, seed).to(points_ND.device)]


class TorchCoder:
    """Codes vectors with a codebook of `TORCH_KINDS`."""

    def __init__(self, codebook: faiss.IndexIVF, device: str) -> None:
        self._codebook, self._device = codebook, device
        coarse_LD = codebook.quantizer.reconstruct_n(0, codebook.nlist)
        self._coarse_LD = torch.from_numpy(coarse_LD).to(device)
        groups = groups_of(codebook)
        self._centres_GD = None if groups is None else torch.from_numpy(groups.centres_GD).to(device)
        self._group_L = None if groups is None else torch.from_numpy(groups.group_L).to(device)
        self._centroids_MKd: Tensor | None = None
        if _is_pq(codebook):
            pq = codebook.pq
            flat = torch.from_numpy(faiss.vector_to_array(pq.centroids))
            self._centroids_MKd = flat.reshape(pq.M, pq.ksub, pq.dsub).to(device)

    def __call__(self, vectors_ND: Floats, what: str) -> Coded:
        """Code the vectors that `what` names.

        Raises IndexBuildError for vectors of another width or that are not finite.
        """
        points_ND = _upload(vectors_ND, self._codebook.d, what, self._device)
        lists_N = self._lists(points_ND)
        residuals_ND = points_ND - self._coarse_LD[lists_N]
        smallest = torch.finfo(torch.float32).tiny
        distances_N = residuals_ND.square().sum(1) / points_ND.square().sum(1).clamp_min(smallest)
        if self._centroids_MKd is None:
            codes_NB = encode(self._codebook, points_ND.cpu().numpy(), lists_N.cpu().numpy())
        else:
            given_ND = residuals_ND if self._codebook.by_residual else points_ND
            codes_MN = nearest(_subspaces(given_ND, len(self._centroids_MKd)), self._centroids_MKd, spherical=False)
            codes_NB = _packed(codes_MN, self._codebook.pq.nbits)
        return Coded(lists_N.cpu().numpy(), codes_NB, distances_N.cpu().numpy())

    def _lists(self, points_ND: Tensor) -> Tensor:
        """Return the lists (N,) that FAISS's coder gives.

        All centroids are compared here, and those of groups that are not near count as the worst: on a GPU, that is
        faster than gathering points for each group.
        """
        among = None
        if self._centres_GD is not None and self._group_L is not None:
            with exact_products():
                scores_NG = points_ND @ self._centres_GD.T
            near_NG = scores_NG >= scores_NG.topk(min(NEAR_GROUPS, scores_NG.shape[1]), dim=1).values[:, -1:]
            among = near_NG, self._group_L
        return nearest(points_ND[None], self._coarse_LD[None], spherical=True, among=among)[0]


def _is_pq(index: faiss.IndexIVF) -> bool:
    return isinstance(index, faiss.IndexIVFPQ) and index.pq.nbits in (4, 8)


def _packed(codes_MN: Tensor, bits: int) -> Codes:
    """Return codes (N, B) of numbers of 4 or 8 bits; of two numbers in a byte, the first is the lower half."""
    numbers_NM = codes_MN.to(torch.uint8).T
    if bits == 4:
        numbers_NM = torch.nn.functional.pad(numbers_NM, (0, numbers_NM.shape[1] % 2))
        numbers_NM = numbers_NM[:, ::2] | numbers_NM[:, 1::2] << 4
    packed_NB: Codes = numbers_NM.contiguous().cpu().numpy()
    return packed_NB


def _subspaces(vectors_ND: Tensor, subspaces: int) -> Tensor:
    """Return a view (M, N, d) of vectors."""
    return vectors_ND.reshape(len(vectors_ND), subspaces, -1).transpose(0, 1)


def _upload(vectors_ND: Floats, dim: int, what: str, device: str) -> Tensor:
    """Return vectors as float32 on the device, which also checks, faster, that they are finite."""
    check_width(vectors_ND, dim, what)
    points_ND = torch.from_numpy(np.require(vectors_ND, requirements=["C", "W"])).to(device).float()
    if not bool(torch.isfinite(points_ND).all()):
        as_float32(vectors_ND, dim, what)  # raises the error that names the rows
    return points_ND
