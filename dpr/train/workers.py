"""Communication of a training's processes: vectors of a batch, and sums of gradients.

Shapes: N rows of one worker, M of all workers, D dimensions.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn


class Workers(Protocol):
    """The processes of one training, of which this is one."""

    rank: int
    size: int

    def gather(self, own_ND: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the rows (M, D) of all workers, in the order of their ranks; worker r has counts[r] rows."""

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by the sum of all workers' gradients."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def gather(self, own_ND: Tensor, counts: Sequence[int]) -> Tensor:  # noqa: ARG002
        """See Workers."""
        return own_ND

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """See Workers."""


class Group:
    """The processes of torch.distributed's default group, which is initialised already."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, own_ND: Tensor, counts: Sequence[int]) -> Tensor:
        """See Workers. Rows travel padded to the largest count, since NCCL gathers equal shapes only."""
        padded_ND = own_ND.new_zeros(max(counts), own_ND.shape[1])
        padded_ND[: len(own_ND)] = own_ND
        found = [torch.empty_like(padded_ND) for _ in range(self.size)]
        dist.all_gather(found, padded_ND)
        return torch.cat([rows[:count] for rows, count in zip(found, counts, strict=True)])

    def sum_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """See Workers. A weight that this worker's rows did not touch has a gradient of zeros."""
        every = [weight for weight in weights if weight.requires_grad]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in every]
        together = torch.cat([each.flatten() for each in gradients])
        dist.all_reduce(together)
        sums = torch.split(together, [each.numel() for each in gradients])
        for weight, gradient in zip(every, sums, strict=True):
            weight.grad = gradient.view_as(weight)


def gather_rows(workers: Workers, own_ND: Tensor, shares: Sequence[npt.NDArray[np.int64]]) -> Tensor:
    """Return the rows of all workers in their order; `shares` says which rows each worker has."""
    together = workers.gather(own_ND, [len(share) for share in shares])
    return together[torch.from_numpy(np.argsort(np.concatenate(shares))).to(together.device)]
