"""Measure the GPUs that tasks and actors of a Ray without GPUs wait for; as a program, those of an embed stage.

    python -m tests.ray_jobs.gpu_demand

Such a stage waits forever, and a process with a thread that waits for Ray cannot disconnect safely. So it exits at
once.
"""

import os
import threading
import time
from typing import Self

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

from dpr.engine.stage import Step, Work
from dpr.recipe import Resources
from ray_jobs.connect import connected
from ray_jobs.ray_executor import RayExecutor
from tests.ray_jobs.steps import Pass
from tests.ray_jobs.units import samples

PATIENCE_SECONDS = 60.0


class GpuDemand:
    """Polls what an autoscaler polls: the GPUs that tasks and actors wait for."""

    def __init__(self) -> None:
        self._address = ray.get_runtime_context().gcs_address
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.looks = 0
        self.gpus = 0.0
        """The most GPUs that were requested at one time."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            demands = get_cluster_status(self._address).resource_demands.ray_task_actor_demand
            counts = [bundles for demand in demands for bundles in demand.bundles_by_count]
            self.gpus = max(self.gpus, sum(bundles.count * bundles.bundle.get("GPU", 0.0) for bundles in counts))
            self.looks += 1


def main() -> None:
    """Begin an embed stage, print the GPUs that it requests, and exit."""
    with connected(cpus=2):
        work = Work.of(Step("encode", Pass, "encoder"))
        waiting = RayExecutor(Resources(gpus_per_encoder=1)).run("embed", work, samples(1))
        with GpuDemand() as demand:
            threading.Thread(target=list, args=(waiting,), daemon=True).start()
            give_up = time.monotonic() + PATIENCE_SECONDS
            while not demand.gpus and time.monotonic() < give_up:
                time.sleep(0.1)
        print(demand.gpus, flush=True)
        os._exit(0)


if __name__ == "__main__":
    main()
