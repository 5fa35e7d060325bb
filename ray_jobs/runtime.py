"""Ray as an executor of units: connecting, and Ray Data carrying a stage's steps as operators.

Rows of the dataset are units. Only a lost worker is retried, by Ray; an error raised by a step ends the stage.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

# read when ray is imported: no usage reports without consent
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from dpr.errors import DprError, UnitError
from dpr.index.hardware import Hardware
from dpr.pipeline.execute import Cluster, Step, Unit
from dpr.recipe import Resources
from ray_jobs.failures import quoted_error

Shared = TypeVar("Shared")
LEAST_CPUS = 2
"""That a Ray of our own is told to have: with one, actors that wait for a writer would leave it no room."""
MOST_ACTORS = 64
ACTOR_CPUS = 0.5
"""Ray's share for an actor whose threads are told to it otherwise; small, so that all find room on a small machine."""
UNITS_AT_ONCE = 2
"""Of an encoder: while one computes, the next is unpacked and the one before is packed."""
TOKENIZING_SHARE = 0.75
"""Of the CPUs beside GPUs; the rest launches kernels, writes and drives."""
TOKENIZER_THREADS = 2
"""Of one tokeniser beside GPUs: a unit is ready sooner than with one; more would wait for Python's lock."""
CODERS_PER_GPU = 8
"""Processes that read and write while one of them has the GPU: it codes a segment in a fraction of that time."""


@contextmanager
def connected(cpus: int | None = None, gpus: int | None = None) -> Iterator[None]:
    """A Ray to run on: the cluster this process belongs to (`RAY_ADDRESS`, a submitted job), else one of its own.

    A Ray started here has so many CPUs (at least LEAST_CPUS) and GPUs (None: this machine's), is bound to loopback,
    without dashboard, and stops with the block.
    """
    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            num_cpus=max(LEAST_CPUS, cpus or os.cpu_count() or 1),
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
        )
    try:
        yield
    finally:
        ray.shutdown()


class _Handle:
    """A shared value: resolved in each worker, where its arrays are read in place from the object store."""

    def __init__(self, ref: "ray.ObjectRef[Any]") -> None:
        self._ref = ref

    def __call__(self) -> Any:
        return ray.get(self._ref)


class RayExecutor:
    """Runs stages through Ray Data. Steps on `encoder` get the pool of actors that the recipe's resources describe."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)

    def run(self, stage: str, steps: Sequence[Step], units: Sequence[Unit]) -> Iterator[Unit]:
        try:
            if len(units) == 1:
                # there is nothing to overlap, so one task takes all steps, in a worker that is there already
                gpus = max(self._gpu_share(step) for step in steps)
                yield ray.get(ray.remote(_chain(steps)).options(num_cpus=1, num_gpus=gpus).remote(units[0]))
            else:
                yield from self._dataset(stage, steps, units).iter_rows()
        except DprError:
            raise
        except ray.exceptions.RayError as error:
            raise _said(stage, error) from error

    def _dataset(self, stage: str, steps: Sequence[Step], units: Sequence[Unit]) -> ray.data.Dataset:
        dataset = ray.data.from_items(list(units), override_num_blocks=len(units))
        for step in steps:
            if step.on == "task" or (step.on in ("trainer", "coder") and not self._gpu_share(step)):
                dataset = dataset.map(_chain([step]), num_cpus=1)
            else:
                dataset = dataset.map(step.make, fn_constructor_args=step.args, **self._placement(step, len(units)))
        dataset.set_name(stage)
        return dataset

    def encoder_threads(self) -> int | None:
        if self._gpus_per_encoder():
            return 1
        return max(1, _largest_node() // self._resources.encoders)

    def tokenizer_threads(self) -> int:
        if not self._gpus_per_encoder():
            return 1  # the encoders need the CPUs more
        return max(1, min(TOKENIZER_THREADS, int(TOKENIZING_SHARE * _largest_node()), int(self._tokenizing_cpus())))

    def _tokenizing_cpus(self) -> float:
        """CPUs that tokenisers may hold beside GPUs: one writer must find room, and each encoder."""
        cpus = ray.cluster_resources().get("CPU", 1.0)
        return float(min(TOKENIZING_SHARE * cpus, cpus - 1 - ACTOR_CPUS * self._resources.encoders))

    def hardware(self) -> Hardware:
        # a trainer asks Ray for one CPU and is told to use all: nothing else runs meanwhile, and a machine of which
        # something else holds a CPU would never be given whole
        return Hardware("cuda" if _cluster_gpus() else None, _largest_node())

    def _gpu_share(self, step: Step) -> float:
        """GPUs that a step holds."""
        if step.on == "encoder":
            return self._gpus_per_encoder()
        share = {"trainer": 1.0, "coder": 1 / CODERS_PER_GPU}.get(step.on, 0.0)
        return share if _cluster_gpus() else 0.0

    def _gpus_per_encoder(self) -> float:
        stated = self._resources.gpus_per_encoder
        if stated is None:
            return 1.0 if _cluster_gpus() else 0.0
        return stated

    def cluster(self) -> Cluster:
        there, each = ray.cluster_resources(), self._gpus_per_encoder()
        encoders = self._resources.max_encoders or self._resources.encoders
        if each and there.get("GPU"):  # an autoscaling cluster may have none yet
            encoders = max(1, min(encoders, int(there["GPU"] / each)))
        return Cluster(cpus=int(there.get("CPU", 1)), encoders=encoders, gpus_per_encoder=each, overlap=True)

    def share(self, make: Callable[..., Shared], *args: Any) -> Callable[[], Shared]:
        return _Handle(ray.remote(make).options(num_cpus=1).remote(*args))

    def _placement(self, step: Step, units: int) -> dict[str, Any]:
        if step.on == "actor":
            low, cpus = 1, ACTOR_CPUS
            if self._gpus_per_encoder():  # which wait for nothing but these: all start at once, and stay
                threads, room = self.tokenizer_threads(), self._tokenizing_cpus()
                low, cpus = min(units, max(1, int(room) // threads)), max(ACTOR_CPUS, min(threads, room))
            # not bounded by the CPUs there are now: an autoscaling cluster may have none yet
            return {
                "compute": ActorPoolStrategy(min_size=low, max_size=max(low, min(units, MOST_ACTORS))),
                "num_cpus": cpus,
            }
        if step.on in ("trainer", "coder"):
            # half a CPU each, and one left for the task that writes records
            room = 2 * (int(ray.cluster_resources().get("CPU", 1)) - 1)
            size = max(1, min(units, int(_cluster_gpus() / self._gpu_share(step)), room))
            return {"compute": ActorPoolStrategy(size=size), "num_cpus": ACTOR_CPUS, "num_gpus": self._gpu_share(step)}
        low = min(units, self._resources.encoders)
        high = max(low, min(units, self._resources.max_encoders or low))
        return {
            "compute": ActorPoolStrategy(
                min_size=low,
                max_size=high,
                max_concurrent_calls_per_actor=UNITS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            "num_cpus": ACTOR_CPUS,
            "num_gpus": self._gpus_per_encoder(),
        }


def _cluster_gpus() -> float:
    return float(ray.cluster_resources().get("GPU", 0))


def _largest_node() -> int:
    """CPUs of the largest machine of the cluster."""
    return max(int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"])


def _chain(steps: Sequence[Step]) -> Callable[[Unit], Unit]:
    """A function that makes and calls steps in one task."""

    def run_steps(unit: Unit) -> Unit:
        for step in steps:
            unit = step.make(*step.args)(unit)
        return unit

    return run_steps


def _said(stage: str, error: Exception) -> DprError:
    """The project's own error inside one of Ray's, or a UnitError that quotes the last line of Ray's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DprError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    if (own := quoted_error(str(error))) is not None:  # an actor that could not be made quotes it as text
        return own
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else type(error).__name__
    return UnitError(f"stage {stage} failed in a worker: {said}; start the run again")
