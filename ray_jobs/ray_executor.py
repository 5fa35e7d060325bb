"""Ray as an executor of units: Ray Data runs a stage's steps as operators, if any of them holds a model.

A stage whose steps all run in any worker is one task a unit instead, which does not compete for CPUs with datasets that
run at the same time. Ray repeats a unit only if its worker was lost, and only a few times (`ray_jobs.heartbeats`), so
that a unit which kills every worker ends the stage. An error that a step raises ends the stage at once.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import ray
import ray.data
from ray.data import DataContext
from ray.util.annotations import RayDeprecationWarning

from dpr.engine.executor import Cluster, Lost
from dpr.engine.stage import B, U, Work
from dpr.index.hardware import Hardware
from dpr.recipe import Resources
from dpr.store.requests import count_elsewhere
from ray_jobs.ahead import Begun, BegunDataset, BegunTask, start_for_all
from ray_jobs.connect import named_cluster
from ray_jobs.data_actors import start_data_actors
from ray_jobs.failures import stage_error
from ray_jobs.oversight import Listener, Oversight
from ray_jobs.placement import Placement, coders_worth
from ray_jobs.transport import call, operator_class, pack, row_task, run_work, shared_task, unpack

Shared = TypeVar("Shared")
Counts: TypeAlias = "ray.ObjectRef[dict[str, int]]"
LOST_RETRIES = 5
"""How often a unit is repeated after the process that worked on it died. By default, Ray Data repeats without limit."""
ACTOR_LIVES = {"max_task_retries": -1, "max_restarts": 100}
"""The actor of heartbeats has the bounds of actors, since Ray also counts what a lost machine does to them. Ray's own
bound ends a stage whose actors die before they can report that they start."""
MAX_TASKS = 512
"""Tasks that run or wait for a CPU: enough for an autoscaling cluster to see the demand."""
CODER_ENVIRONMENT = {"env_vars": {"DPR_WORKER": "coder"}}
"""Names the environment of coders on GPUs. Ray gives a task any idle process of its environment; without a name of its
own, it would hardly ever be one that has loaded already."""
MANY_UNITS = 2**31
"""Stands for the number of units of a stage that begins before they are known."""


class RayExecutor:
    """Runs stages on the connected Ray, with as many encoders as the recipe's resources say."""

    def __init__(self, resources: Resources, listener: Listener | None = None) -> None:
        self._placement = Placement(resources)
        self._oversight = Oversight(resources.idle_seconds, LOST_RETRIES, listener)
        self._begun: dict[str, Begun] = {}
        self._uncounted: list[Counts] = []
        if named_cluster():
            start_data_actors()
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)

    def begin(self, stage: str, work: Work[Any, Any]) -> None:
        if stage in self._begun or not self._placement.may_load_ahead():
            return
        if all(step.on in ("asker", "trainer") for step in work.steps):
            self._begun[stage] = BegunTask(work, self._oversight.heartbeats, **self._one_for_all(work))
        else:
            self._begun[stage] = BegunDataset(lambda units: self._with_steps(units, work, MANY_UNITS))

    def release(self, *stages: str) -> None:
        for stage in stages or list(self._begun):
            if (begun := self._begun.pop(stage, None)) is not None:
                begun.cancel()

    def warm(self, prepare: Callable[[], None], rows: int) -> None:
        if self._placement.may_load_ahead():
            gpus = self._placement.loading_share()
            warm = ray.remote(call).options(
                num_cpus=0, num_gpus=gpus, max_retries=0, name="warm", runtime_env=CODER_ENVIRONMENT
            )
            for _ in range(self._placement.coders(rows)):
                warm.remote(prepare)  # nobody waits for it; an error here is raised again where the result is needed

    def run(self, stage: str, work: Work[U, B], units: Sequence[U]) -> Iterator[B]:
        with self._oversight.watch(stage, [unit.record for unit in units]) as under_way:
            try:
                for result in self._results(stage, work, units):
                    under_way.finish(result.record)
                    yield result
            except ray.exceptions.RayError as error:  # errors of this project, too, if a worker raised them
                raise stage_error(stage, under_way.missing, error, under_way.given_up_records()) from error

    def take_lost(self) -> Lost:
        lost = self._oversight.take_lost()
        return Lost(len({call.record for call in lost}), len({(call.node_id, call.pid) for call in lost}))

    def encoder_threads(self) -> int | None:
        return self._placement.encoder_threads()

    def tokenizer_threads(self) -> int:
        return self._placement.tokenizer_threads()

    def hardware(self) -> Hardware:
        return self._placement.hardware()

    def emulates_fp8(self) -> bool:
        return self._placement.emulates_fp8()

    def cluster(self) -> Cluster:
        return self._placement.cluster()

    def share(self, make: Callable[..., Shared], *args: Any) -> Callable[[], Shared]:
        task = ray.remote(shared_task(make)).options(num_cpus=1, num_returns=2, name=make.__name__)
        return _Handle(lambda: task.remote(*args), self._uncounted)

    def _results(self, stage: str, work: Work[U, B], units: Sequence[U]) -> Iterator[B]:
        if not units:
            self.release(stage)  # an error of encoders that nobody needs is ignored
        elif (begun := self._begun.pop(stage, None)) is not None:
            yield from map(unpack, begun.run([pack(unit) for unit in units]))
        elif _is_for_all(work):
            rows = [pack(unit) for unit in units]
            started = start_for_all(work, lambda: rows, self._oversight.heartbeats, **self._one_for_all(work))
            yield from map(unpack, ray.get(started))
        elif len(units) == 1 or all(self._placement.is_task(step) for step in work.steps):
            yield from self._tasks(work, units)
        else:
            dataset = ray.data.from_items([pack(unit) for unit in units], override_num_blocks=len(units))
            yield from map(unpack, self._with_steps(dataset, work, len(units)).iter_rows())
        self._count_requests()

    def _count_requests(self) -> None:
        """Add the requests of the workers that made shared values, as far as they are known."""
        for counts in list(self._uncounted):
            if ray.wait([counts], timeout=0)[0]:
                self._uncounted.remove(counts)
                count_elsewhere(ray.get(counts))

    def _with_steps(self, dataset: ray.data.Dataset, work: Work[Any, Any], units: int) -> ray.data.Dataset:
        """Add the steps as operators to a dataset of at most this many units."""
        with warnings.catch_warnings():
            # about keywords that are not parameters of `map`: Ray 2.60 has no other way to bound retries
            warnings.simplefilter("ignore", RayDeprecationWarning)
            beats = self._oversight.heartbeats
            for step in work.steps:
                if self._placement.is_task(step):
                    dataset = dataset.map(row_task(step, beats), num_cpus=1, max_retries=LOST_RETRIES)
                else:
                    pool = self._placement.pool(step, units)
                    dataset = dataset.map(
                        operator_class(step), fn_constructor_args=(step, beats), **pool, **ACTOR_LIVES
                    )
        return dataset

    def _one_for_all(self, work: Work[Any, Any]) -> dict[str, object]:
        """Return the options of a task that does all units of some work; it finds room beside an encoder.

        It requests no CPU, since on a small machine none would be left while it waits.
        """
        gpus, name = self._placement.loading_share(), work.steps[-1].name
        return {"num_cpus": 0, "num_gpus": gpus, "max_retries": LOST_RETRIES, "name": name}

    def _tasks(self, work: Work[U, B], units: Sequence[U]) -> Iterator[B]:
        """Yield the results of one task a unit, as they come.

        Tasks that still run are cancelled if one fails, or if nobody wants more results.
        """
        task = ray.remote(run_work).options(
            num_cpus=1,
            num_gpus=max(self._placement.gpu_share(step) for step in work.steps),
            max_retries=LOST_RETRIES,
            # a single unit goes to a machine that has a worker already; many are spread over all machines
            scheduling_strategy="SPREAD" if len(units) > 1 else "DEFAULT",
            name=work.steps[-1].name,
            **({"runtime_env": CODER_ENVIRONMENT} if self._on_gpus(work) else {}),
        )
        held = ray.put(work)  # in a closure of the task, shared values would be held until the driver ends
        waiting = (task.remote(held, unit, self._oversight.heartbeats) for unit in units)
        running = list(islice(waiting, self._at_once(work, units)))
        try:
            while running:
                (done,), running = ray.wait(running)
                running += islice(waiting, 1)
                yield unpack(ray.get(done))
        finally:
            for unfinished in running:
                ray.cancel(unfinished)

    def _at_once(self, work: Work[U, B], units: Sequence[U]) -> int:
        """Return how many tasks run, or wait for a CPU or a GPU, at once."""
        return min(MAX_TASKS, coders_worth(sum(unit.rows for unit in units))) if self._on_gpus(work) else MAX_TASKS

    def _on_gpus(self, work: Work[Any, Any]) -> bool:
        """Return whether the tasks of some work are coders that share GPUs."""
        return any(step.on == "coder" and self._placement.gpu_share(step) for step in work.steps)


def _is_for_all(work: Work[Any, Any]) -> bool:
    """Return whether one task does all units of some work."""
    return all(step.on == "asker" for step in work.steps)


class _Handle:
    """A shared value: resolved in each worker, where its arrays are read in place from the object store.

    It is computed when it is first sent to a worker or resolved, since a stage may turn out to have nothing to do. The
    object store holds it as long as the handle lives, so only the stage keeps the handle. The reference to the requests
    that its worker counted goes to the list `uncounted`.
    """

    def __init__(self, start: "Callable[[], tuple[ray.ObjectRef[Any], Counts]]", uncounted: list[Counts]) -> None:
        self._start, self._uncounted = start, uncounted
        self._started: ray.ObjectRef[Any] | None = None

    def __call__(self) -> Any:
        return ray.get(self._value())

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (ray.get, self._value())

    def _value(self) -> "ray.ObjectRef[Any]":
        if self._started is None:
            self._started, counts = self._start()
            self._uncounted.append(counts)
        return self._started
