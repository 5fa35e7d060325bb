"""Where units run: what every executor promises, and the one that runs all of them in this process."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

from dpr.engine.stage import B, U, Work
from dpr.formats.records import Document
from dpr.index.hardware import Hardware

Shared = TypeVar("Shared")


class Cluster(Document):
    """The resources of an executor."""

    cpus: int
    encoders: int
    """Encoders that run at once, at most."""
    gpus_per_encoder: float
    overlap: bool
    """Whether several units, and the steps of different units, run at once."""

    @property
    def gpus(self) -> float:
        """Return the GPUs that all encoders hold together."""
        return self.encoders * self.gpus_per_encoder


@dataclass(frozen=True)
class Lost:
    """Work that was lost and repeated since the last call."""

    units: int = 0
    """Units that were begun again, since the process that worked on them was lost."""
    workers: int = 0
    """These processes."""


class Executor(Protocol):
    """Where units run."""

    def begin(self, stage: str, work: Work[Any, Any]) -> None:
        """Load what the steps need while other stages run, if that helps; `run` or `release` must follow.

        A stage that has begun is left as it is.
        """

    def release(self, *stages: str) -> None:
        """Release what `begin` took for these stages, or for all, as far as `run` was not called."""

    def warm(self, prepare: Callable[[], None], rows: int) -> None:
        """Start processes for the coders of this many rows, if that helps, and call `prepare` in each."""

    def run(self, stage: str, work: Work[U, B], units: Sequence[U]) -> Iterator[B]:
        """Send every unit through all steps; results come in any order. Raises UnitError if one fails."""

    def take_lost(self) -> Lost:
        """Return the losses since the last call, as far as they are known."""

    def encoder_threads(self) -> int | None:
        """Return how many CPU threads an encoder may use; None: as many as PyTorch takes."""

    def tokenizer_threads(self) -> int:
        """Return how many CPU threads one tokeniser may use."""

    def hardware(self) -> Hardware:
        """Return the hardware that a `trainer` or `coder` gets."""

    def emulates_fp8(self) -> bool:
        """Return whether some encoders would emulate products in fp8, as far as is known before they load."""

    def cluster(self) -> Cluster:
        """Return the present resources."""

    def share(self, make: Callable[..., Shared], *args: Any) -> Callable[[], Shared]:
        """Return a handle to a value that is computed once, off the driver; workers resolve it without copying."""


class LocalExecutor:
    """Runs all steps in this process, one unit after another."""

    def begin(self, stage: str, work: Work[Any, Any]) -> None:
        pass

    def release(self, *stages: str) -> None:
        pass

    def warm(self, prepare: Callable[[], None], rows: int) -> None:
        pass

    def run(self, stage: str, work: Work[U, B], units: Sequence[U]) -> Iterator[B]:  # noqa: ARG002
        operators = [step.make() for step in work.steps] if units else []
        for unit in units:
            value: Any = unit
            for operator in operators:
                value = operator(value)
            yield value

    def take_lost(self) -> Lost:
        return Lost()

    def encoder_threads(self) -> int | None:
        return None

    def tokenizer_threads(self) -> int:
        return os.cpu_count() or 1  # nothing else runs meanwhile

    def hardware(self) -> Hardware:
        return Hardware.here()

    def emulates_fp8(self) -> bool:
        device = self.hardware().device
        if device is None:
            return True
        import torch  # loaded already, to find the device

        from dpr.encoder.packed_fp8 import multiplies_fp8

        return not multiplies_fp8(torch.device(device))

    def cluster(self) -> Cluster:
        gpus = 1.0 if self.hardware().device else 0.0
        return Cluster(cpus=os.cpu_count() or 1, encoders=1, gpus_per_encoder=gpus, overlap=False)

    def share(self, make: Callable[..., Shared], *args: Any) -> Callable[[], Shared]:
        return cache(lambda: make(*args))
