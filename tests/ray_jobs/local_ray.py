"""The Ray of a test's own process, which one test after another uses."""

import gc
import os
from contextlib import ExitStack

from ray._private.accelerators import get_accelerator_manager_for_resource

from dpr.stages.segment_rows import MIN_CORES
from ray_jobs.connect import connected


class LocalRay:
    """Connects this process to a Ray of its own, until a test needs another one, or none.

    Its workers stay, too, with what they have imported: to start a Ray and its first workers takes half a minute of a
    CPU.
    """

    def __init__(self) -> None:
        self._connection = ExitStack()
        self._running: tuple[int, int] | None = None

    def use(self, cpus: int | None = None, gpus: int | None = None) -> None:
        """Have a Ray with these numbers of CPUs and GPUs; None: as many as this machine has.

        Actors of errors that tests have raised end here: a later test would wait for their CPUs.
        """
        gc.collect()
        wanted = max(MIN_CORES, cpus or os.cpu_count() or 1), _gpus_here() if gpus is None else gpus
        if wanted != self._running:
            self.end()
            self._connection.enter_context(connected(*wanted))
            self._running = wanted

    def end(self) -> None:
        """Have no Ray."""
        self._running = None
        self._connection.close()


def _gpus_here() -> int:
    manager = get_accelerator_manager_for_resource("GPU")
    return int(manager.get_current_node_num_accelerators()) if manager else 0
