"""Ray as an executor of units: Ray Data carries a stage's steps as operators, if any of them holds a model.

Rows of the dataset are units. Steps that any worker can take are one task a unit instead, which has not to share CPUs
with the datasets that run. Only a lost worker is retried, by Ray, and so often at most that a unit that kills every
worker ends the stage, as does an error raised by a step.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import islice
from typing import Any, TypeVar

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.util.annotations import RayDeprecationWarning

from dpr.index.hardware import Hardware
from dpr.pipeline.execute import Cluster, Step, Unit
from dpr.recipe import Resources
from ray_jobs.ahead import Begun
from ray_jobs.failures import stage_error

Shared = TypeVar("Shared")
LOST_RETRIES = 5
"""How often a unit is begun again after the process that worked on it died. Ray Data's own default is for ever."""
ACTOR_LIVES = {"max_task_retries": LOST_RETRIES, "max_restarts": 2 * LOST_RETRIES}
"""An actor outlives two such units, and one that dies while it is made ends the stage too."""
MOST_ACTORS = 64
TASKS_AT_ONCE = 512
"""That run or wait for a CPU: so many that an autoscaling cluster sees what there is to do."""
ACTOR_CPUS = 0.5
"""Ray's share for a thread of an actor that is told how many it has; small, so that all actors find room on a small
machine, and other stages find CPUs while they load."""
MANY_UNITS = 2**31
"""Of a stage that is begun before its units are known."""
UNITS_AT_ONCE = 2
"""Of an encoder: while one computes, the next is unpacked and the one before is packed."""
TOKENIZING_SHARE = 0.75
"""Of the CPUs beside GPUs; the rest launches kernels, writes and drives."""
TOKENIZER_THREADS = 2
"""Of one tokeniser beside GPUs: a unit is ready sooner than with one; more would wait for Python's lock."""
TOKENIZER_CPUS = 0.25
"""Ray's share for such a thread: it sleeps while others scan, and they are to have its CPU."""
CODERS_PER_GPU = 8
"""Processes that read and write while one of them has the GPU: it codes a segment in a fraction of that time."""


class _Handle:
    """A shared value: resolved in each worker, where its arrays are read in place from the object store.

    It is computed when it is first sent to a worker or asked for, since a stage may turn out to have nothing to do.
    """

    def __init__(self, start: Callable[[], "ray.ObjectRef[Any]"]) -> None:
        self._start = cache(start)

    def __call__(self) -> Any:
        return ray.get(self._start())

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (ray.get, self._start())


class RayExecutor:
    """Runs stages through Ray Data. Steps on `encoder` get the pool of actors that the recipe's resources describe."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._begun: dict[str, Begun] = {}
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)

    def begin(self, stage: str, steps: Sequence[Step]) -> None:
        # a GPU must not wait; without one, or a CPU left for other stages, loading would hold up what it is to overlap
        if self._gpus_per_encoder() and self._tokenizing_cpus() >= ACTOR_CPUS:
            self._begun[stage] = Begun(lambda units: self._with_steps(units, steps, MANY_UNITS))

    def leave(self, stage: str) -> None:
        if (begun := self._begun.pop(stage, None)) is not None:
            begun.leave()

    def run(self, stage: str, steps: Sequence[Step], units: Sequence[Unit]) -> Iterator[Unit]:
        left = {unit["record"] for unit in units if "record" in unit}  # one that measures has none
        try:
            for unit in self._results(stage, steps, units):
                left.discard(unit.get("record"))
                yield unit
        except ray.exceptions.RayError as error:  # also the project's own, if a worker raised it
            raise stage_error(stage, left, error) from error

    def _results(self, stage: str, steps: Sequence[Step], units: Sequence[Unit]) -> Iterator[Unit]:
        if not units:
            self.leave(stage)  # whatever became of encoders that nobody needs
            return
        if (begun := self._begun.pop(stage, None)) is not None:
            yield from begun.run(units)
            return
        if len(units) > 1 and not all(self._is_task(step) for step in steps):
            dataset = ray.data.from_items(list(units), override_num_blocks=len(units))
            yield from self._with_steps(dataset, steps, len(units)).iter_rows()
            return
        # no operators to overlap: a task takes a unit through all steps
        yield from _tasks(steps, units, max(self._gpu_share(step) for step in steps))

    def _with_steps(self, dataset: ray.data.Dataset, steps: Sequence[Step], units: int) -> ray.data.Dataset:
        """The steps as operators on a dataset of so many units, at most."""
        with warnings.catch_warnings():
            # of keywords without a parameter of their own; Ray 2.60 has none for retries, nor another way to bound them
            warnings.simplefilter("ignore", RayDeprecationWarning)
            for step in steps:
                if self._is_task(step):
                    dataset = dataset.map(_anew(step), num_cpus=1, max_retries=LOST_RETRIES)
                else:
                    placement = self._placement(step, units) | ACTOR_LIVES
                    dataset = dataset.map(step.make, fn_constructor_args=step.args, **placement)
        return dataset

    def _is_task(self, step: Step) -> bool:
        """Whether a step runs in any worker, made anew for each unit."""
        return step.on == "task" or (step.on in ("trainer", "coder") and not self._gpu_share(step))

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

    def _most_encoders(self) -> int:
        return self._resources.max_encoders or self._resources.encoders

    def cluster(self) -> Cluster:
        there, each = ray.cluster_resources(), self._gpus_per_encoder()
        encoders = self._most_encoders()
        if each and there.get("GPU"):  # an autoscaling cluster may have none yet
            encoders = max(1, min(encoders, int(there["GPU"] / each)))
        return Cluster(cpus=int(there.get("CPU", 1)), encoders=encoders, gpus_per_encoder=each, overlap=True)

    def share(self, make: Callable[..., Shared], *args: Any) -> Callable[[], Shared]:
        return _Handle(lambda: ray.remote(make).options(num_cpus=1).remote(*args))

    def _placement(self, step: Step, units: int) -> dict[str, Any]:
        if step.on == "actor":
            threads = self.tokenizer_threads()
            # not bounded by the CPUs there are now: an autoscaling cluster may have none yet
            low, high, cpus = 1, MOST_ACTORS, ACTOR_CPUS
            if each := self._gpus_per_encoder():  # which wait for nothing but these: all start at once, and stay
                low = min(units, max(1, int(self._tokenizing_cpus()) // threads))
                if _cluster_gpus() >= each * self._most_encoders():  # no GPU is to come, so that these are enough
                    high, cpus = low, TOKENIZER_CPUS
            return {
                "compute": ActorPoolStrategy(min_size=low, max_size=max(low, min(units, high))),
                "num_cpus": cpus * threads,
            }
        if step.on in ("trainer", "coder"):
            # one CPU is left for the task that writes records
            room = int((ray.cluster_resources().get("CPU", 1) - 1) / ACTOR_CPUS)
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


def _tasks(steps: Sequence[Step], units: Sequence[Unit], gpus: float) -> Iterator[Unit]:
    """Results of one task a unit, as they come; what is still under way is called off if one fails or nobody asks."""
    # one unit goes where a worker is already; many go to all machines
    place = "SPREAD" if len(units) > 1 else "DEFAULT"
    task = ray.remote(_run_steps).options(
        num_cpus=1, num_gpus=gpus, max_retries=LOST_RETRIES, scheduling_strategy=place
    )
    held = ray.put(list(steps))  # in a closure of the task, what they share would stay until the driver ends
    waiting = iter(units)
    running = [task.remote(held, unit) for unit in islice(waiting, TASKS_AT_ONCE)]
    try:
        while running:
            (done,), running = ray.wait(running)
            running += [task.remote(held, unit) for unit in islice(waiting, 1)]
            yield ray.get(done)
    finally:
        for left in running:
            ray.cancel(left)


def _run_steps(steps: Sequence[Step], unit: Unit) -> Unit:
    """Make and call steps one after another."""
    for step in steps:
        unit = step.make(*step.args)(unit)
    return unit


def _anew(step: Step) -> Callable[[Unit], Unit]:
    """A function that makes and calls a step."""

    def run_step(unit: Unit) -> Unit:
        return _run_steps([step], unit)

    return run_step
