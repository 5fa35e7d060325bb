"""K-means in PyTorch on any device: many clusterings of one shape at once, as the subspaces of a product quantiser are.

It does what FAISS's `Clustering` does. It starts from random points, assigns points to centroids, averages, and splits
large clusters to fill empty ones. Where clustering is spherical, centroids are scaled to length 1 after each step. Sums
are made in a fixed order, so one device gives the same centroids each time.

All products are float32, never TF32 or bf16. Two devices add in different orders, so a point whose two nearest
centroids are equally near within rounding (1e-6 of the squared norms) may go to either.

Shapes: G clusterings, N points, K centroids, D dimensions, P = G * N points, one clustering after another.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dpr.index.coarse_training import halve

SCORES_BYTES = {"cuda": 2**28, "cpu": 2**26}
"""Scores of points with centroids that are held at a time; eight processes may share a GPU."""


@dataclass(frozen=True)
class KMeans:
    """Settings of a clustering."""

    clusters: int
    iterations: int
    seed: int
    spherical: bool
    """True: the nearest has the largest inner product, and centroids have length 1. False: Euclidean distance."""


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Keep float32 products from being rounded to lower precision, whatever was set before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def nearest(
    points_GND: Tensor, centroids_GKD: Tensor, *, spherical: bool, among: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Return the number (G, N) int64 of the centroid nearest to each point; of equally near ones, the first.

    `among`: which groups of centroids each point is compared with (N, g) bool, and the group of each centroid (K,).
    Memory holds a block of scores.
    """
    groups, points, _ = points_GND.shape
    step = max(1, SCORES_BYTES[points_GND.device.type] // (4 * groups * centroids_GKD.shape[1]))
    turned_GDK = centroids_GKD.transpose(1, 2)
    # |x - c|² is least where x·c - |c|²/2 is largest
    offset_G1K = -0.5 * turned_GDK.square().sum(dim=1, keepdim=True)
    found_GN = torch.empty((groups, points), dtype=torch.int64, device=points_GND.device)
    with exact_products():
        for first in range(0, points, step):
            block_GnD = points_GND[:, first : first + step]
            if spherical:
                scores_GnK = torch.bmm(block_GnD, turned_GDK)
            else:
                scores_GnK = torch.baddbmm(offset_G1K, block_GnD, turned_GDK)
            if among is not None:
                scores_GnK.masked_fill_(~among[0][first : first + step, among[1]], -torch.inf)
            found_GN[:, first : first + step] = scores_GnK.argmax(dim=2)
    return found_GN


def kmeans(points_GND: Tensor, clustering: KMeans) -> Tensor:
    """Return centroids (G, K, D) float32 of float32 points, at least K in each clustering."""
    points = points_GND.shape[1]
    if points == clustering.clusters:
        return points_GND.clone()
    points_GND = points_GND.contiguous()
    start = random_rows(points, clustering.clusters, clustering.seed).to(points_GND.device)
    centroids_GKD = _scaled(points_GND[:, start], clustering)
    for iteration in range(clustering.iterations):
        assigned_GN = nearest(points_GND, centroids_GKD, spherical=clustering.spherical)
        sums, sizes_GK = _sums(points_GND, assigned_GN, clustering.clusters)
        means = sums / sizes_GK.clamp(min=1).unsqueeze(2)
        centroids_GKD = _scaled(_filled(means, sizes_GK, (clustering.seed, iteration)), clustering)
    return centroids_GKD


def random_rows(rows: int, size: int, seed: int) -> Tensor:
    """Draw `size` different row numbers in random order, on the CPU, so that all devices draw the same."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(rows)[:size])


def _sums(points_GND: Tensor, assigned_GN: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Return sums (G, K, D) and numbers (G, K) of the points of each cluster; points are added in their order."""
    groups, _, dim = points_GND.shape
    number_P = (assigned_GN + clusters * torch.arange(groups, device=assigned_GN.device).unsqueeze(1)).reshape(-1)
    order_P = torch.argsort(number_P, stable=True)
    sizes = torch.bincount(number_P, minlength=groups * clusters)
    sums = torch.segment_reduce(points_GND.reshape(-1, dim)[order_P], "sum", lengths=sizes, axis=0, unsafe=True)
    return sums.reshape(groups, clusters, dim), sizes.reshape(groups, clusters)


def _scaled(centroids_GKD: Tensor, clustering: KMeans) -> Tensor:
    """Return centroids of length 1, if clustering is spherical."""
    if not clustering.spherical:
        return centroids_GKD
    norms = centroids_GKD.norm(dim=2, keepdim=True)
    return centroids_GKD / torch.where(norms > 0, norms, 1.0)


def _filled(centroids_GKD: Tensor, sizes_GK: Tensor, seed: tuple[int, int]) -> Tensor:
    """Return the centroids; those of empty clusters are replaced by one half of a cluster drawn by its size."""
    sizes = sizes_GK.cpu().numpy().astype(np.float64)
    for group in np.flatnonzero((sizes == 0).any(axis=1)).tolist():
        filled_KD = _split(centroids_GKD[group].cpu().numpy(), sizes[group], np.random.default_rng((*seed, group)))
        centroids_GKD[group] = torch.from_numpy(filled_KD).to(centroids_GKD.device)
    return centroids_GKD


def _split(
    centroids_KD: npt.NDArray[np.float32], sizes_K: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Fill the empty clusters of one clustering."""
    for empty in np.flatnonzero(sizes_K == 0).tolist():
        weights_K = np.maximum(sizes_K - 1, 0)
        full = rng.choice(len(sizes_K), p=weights_K / weights_K.sum())
        halve(centroids_KD, full, empty)
        sizes_K[[empty, full]] = sizes_K[full] / 2
    return centroids_KD
