"""Ray as an executor of units: Ray Data carries a stage's steps as operators, if any of them holds a model.

Steps that any worker can take are one task a unit instead, which does not compete for CPUs with the datasets that run.
Only a lost worker is retried, by Ray, and only so often that a unit which kills every worker ends the stage, as does an
error raised by a step.
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

from dpr.engine.executor import Cluster
from dpr.engine.stage import A, B, Step, Work
from dpr.index.hardware import Hardware
from dpr.recipe import Resources
from ray_jobs.ahead import BegunStage
from ray_jobs.failures import stage_error
from ray_jobs.transport import operator_class, pack, row_task, run_work, unpack

Shared = TypeVar("Shared")
LOST_RETRIES = 5
"""How often a unit is begun again after the process that worked on it died. Ray Data's own default is for ever."""
ACTOR_LIVES = {"max_task_retries": LOST_RETRIES, "max_restarts": 2 * LOST_RETRIES}
"""An actor outlives two such units, and one that dies while it is made ends the stage too."""
MAX_ACTORS = 64
MAX_TASKS = 512
"""Tasks that run or wait for a CPU: so many that an autoscaling cluster sees what there is to do."""
ACTOR_CPUS = 0.5
"""Ray's share for a thread of an actor that is told how many it has; small, so that all actors find room on a small
machine, and other stages find CPUs while they load."""
MANY_UNITS = 2**31
"""Number of units of a stage that is begun before they are known."""
UNITS_PER_ENCODER = 2
"""While an encoder computes one, the next is unpacked and the one before is packed."""
TOKENIZING_SHARE = 0.75
"""Share of the CPUs beside GPUs that tokenise; the rest launches kernels, writes and drives."""
TOKENIZER_THREADS = 2
"""Threads of one tokeniser beside GPUs: a unit is ready sooner than with one; more would wait for Python's lock."""
TOKENIZER_CPUS = 0.25
"""Ray's share for such a thread: it sleeps while others scan, and they are to have its CPU."""
CODERS_PER_GPU = 8
"""Processes that read and write while one of them has the GPU: it codes a segment in a fraction of that time."""


class _Handle:
    """A shared value: resolved in each worker, where its arrays are read in place from the object store.

    It is computed when it is first sent to a worker or resolved, since a stage may turn out to have nothing to do.
    """

    def __init__(self, start: Callable[[], "ray.ObjectRef[Any]"]) -> None:
        self._start = cache(start)

    def __call__(self) -> Any:
        return ray.get(self._start())

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (ray.get, self._start())


class RayExecutor:
    """Runs stages on Ray. Steps on `encoder` get the pool of actors that the recipe's resources describe."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._begun: dict[str, BegunStage] = {}
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)

    def begin(self, stage: str, work: Work[Any, Any]) -> None:
        # a GPU must not wait; without one, or a CPU left for other stages, loading would hold up what it is to overlap
        if self._gpus_per_encoder() and self._tokenizing_cpus() >= ACTOR_CPUS:
            self._begun[stage] = BegunStage(lambda units: self._with_steps(units, work, MANY_UNITS))

    def cancel(self, stage: str) -> None:
        if (begun := self._begun.pop(stage, None)) is not None:
            begun.cancel()

    def run(self, stage: str, work: Work[A, B], units: Sequence[A]) -> Iterator[B]:
        missing = {unit.record for unit in units}
        try:
            for result in self._results(stage, work, units):
                missing.discard(result.record)
                yield result
        except ray.exceptions.RayError as error:  # also the project's own, if a worker raised it
            raise stage_error(stage, missing, error) from error

    def _results(self, stage: str, work: Work[A, B], units: Sequence[A]) -> Iterator[B]:
        if not units:
            self.cancel(stage)  # whatever became of encoders that nobody needs
            return
        if (begun := self._begun.pop(stage, None)) is not None:
            yield from map(unpack, begun.run([pack(unit) for unit in units]))
            return
        if len(units) > 1 and not all(self._is_task(step) for step in work.steps):
            dataset = ray.data.from_items([pack(unit) for unit in units], override_num_blocks=len(units))
            yield from map(unpack, self._with_steps(dataset, work, len(units)).iter_rows())
            return
        # no operators to overlap: a task takes a unit through all steps
        yield from _tasks(work, units, max(self._gpu_share(step) for step in work.steps))

    def _with_steps(self, dataset: ray.data.Dataset, work: Work[Any, Any], units: int) -> ray.data.Dataset:
        """The steps as operators on a dataset of so many units, at most."""
        with warnings.catch_warnings():
            # of keywords without a parameter of their own; Ray 2.60 has none for retries, nor another way to bound them
            warnings.simplefilter("ignore", RayDeprecationWarning)
            for step in work.steps:
                if self._is_task(step):
                    dataset = dataset.map(row_task(step), num_cpus=1, max_retries=LOST_RETRIES)
                else:
                    placement = self._placement(step, units) | ACTOR_LIVES
                    dataset = dataset.map(operator_class(step), fn_constructor_args=(step,), **placement)
        return dataset

    def _is_task(self, step: Step[Any, Any]) -> bool:
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

    def _gpu_share(self, step: Step[Any, Any]) -> float:
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

    def _max_encoders(self) -> int:
        return self._resources.max_encoders or self._resources.encoders

    def cluster(self) -> Cluster:
        there, each = ray.cluster_resources(), self._gpus_per_encoder()
        encoders = self._max_encoders()
        if each and there.get("GPU"):  # an autoscaling cluster may have none yet
            encoders = max(1, min(encoders, int(there["GPU"] / each)))
        return Cluster(cpus=int(there.get("CPU", 1)), encoders=encoders, gpus_per_encoder=each, overlap=True)

    def share(self, make: Callable[..., Shared], *args: Any) -> Callable[[], Shared]:
        return _Handle(lambda: ray.remote(make).options(num_cpus=1).remote(*args))

    def _placement(self, step: Step[Any, Any], units: int) -> dict[str, Any]:
        if step.on == "actor":
            threads = self.tokenizer_threads()
            # not bounded by the CPUs there are now: an autoscaling cluster may have none yet
            low, high, cpus = 1, MAX_ACTORS, ACTOR_CPUS
            if each := self._gpus_per_encoder():  # which wait for nothing but these: all start at once, and stay
                low = min(units, max(1, int(self._tokenizing_cpus()) // threads))
                if _cluster_gpus() >= each * self._max_encoders():  # no GPU is to come, so that these are enough
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
                max_concurrent_calls_per_actor=UNITS_PER_ENCODER,
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


def _tasks(work: Work[A, B], units: Sequence[A], gpus: float) -> Iterator[B]:
    """Results of one task a unit, as they come; what still runs is cancelled if one fails or nobody wants more."""
    # one unit goes where a worker is already; many go to all machines
    strategy = "SPREAD" if len(units) > 1 else "DEFAULT"
    task = ray.remote(run_work).options(
        num_cpus=1, num_gpus=gpus, max_retries=LOST_RETRIES, scheduling_strategy=strategy, name=work.steps[-1].name
    )
    held = ray.put(work)  # in a closure of the task, what it shares would stay until the driver ends
    waiting = iter(units)
    running = [task.remote(held, unit) for unit in islice(waiting, MAX_TASKS)]
    try:
        while running:
            (done,), running = ray.wait(running)
            running += [task.remote(held, unit) for unit in islice(waiting, 1)]
            yield ray.get(done)
    finally:
        for unfinished in running:
            ray.cancel(unfinished)
