"""Training on Ray Train: workers share each batch, and another attempt follows after a worker was lost.

An error of the project ends the training at once, since it would occur again. All state is in the training's store, so
a new attempt goes on from the last checkpoint, and Ray Train's own checkpoints are not used.
"""

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import train
from ray.train.torch import TorchTrainer, get_device
from ray.util.queue import Queue

from dpr.engine.progress import Progress
from dpr.errors import ClusterError, DprError, UnitError
from dpr.train.train_recipe import TrainingResources, TrainRecipe
from ray_jobs.connect import connected
from ray_jobs.failures import quoted_error

_STOP = "stop"
_RECIPE, _EVENTS = "recipe", "events"
"""Fields of a worker's configuration."""


def train_on_ray(recipe: TrainRecipe, progress: Progress) -> None:
    """Train on the connected cluster, or on a Ray of our own, until the model is in the store.

    Raises the project's own error of a worker, or UnitError if workers were lost more often than the recipe allows.
    """
    with connected(), _shown(progress) as events, tempfile.TemporaryDirectory(prefix="dpr-") as folder:
        scaling = scaling_of(recipe.resources)
        for attempt in range(recipe.resources.retries + 1):
            trainer = TorchTrainer(
                train_worker,
                train_loop_config={_RECIPE: recipe.model_dump_json(), _EVENTS: events},
                scaling_config=scaling,
                run_config=train.RunConfig(name=f"attempt-{attempt}", storage_path=folder),
            )
            try:
                trainer.fit()
            except train.TrainingFailedError as error:
                own = own_error(error)
                if own is not None:
                    raise own from error
                progress.message("training", f"a worker was lost: {_first_line(error)}")
            else:
                return
    raise UnitError(
        f"the workers of the training in {recipe.store} were lost {recipe.resources.retries + 1} times; find out in "
        "Ray's logs whether memory ran out, and start the training again: it goes on from its last checkpoint"
    )


def scaling_of(resources: TrainingResources) -> train.ScalingConfig:
    """Return the resources of the workers.

    Raises ClusterError if the cluster has less, since Ray would wait forever.
    """
    has = ray.cluster_resources()
    gpus = resources.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if has.get("GPU", 0) else 0.0
    share = max(1, int(has.get("CPU", 1)) // resources.workers)
    cpus = resources.cpus_per_worker or (1 if gpus else share)
    for name, each in (("GPU", gpus), ("CPU", float(cpus))):
        if each * resources.workers > has.get(name, 0):
            raise ClusterError(
                f"resources.workers is {resources.workers} with {each:g} {name}s each, and the cluster has "
                f"{has.get(name, 0):g} {name}s; lower resources.workers or resources.{name.lower()}s_per_worker, or "
                "add machines"
            )
    return train.ScalingConfig(
        num_workers=resources.workers,
        use_gpu=gpus > 0,
        resources_per_worker={"CPU": cpus, **({"GPU": gpus} if gpus else {})},
    )


def train_worker(config: dict[str, Any]) -> None:  # Ray Train's own interface
    """Train as one of the workers that Ray Train has started."""
    import torch

    from dpr.train.run_training import train_as
    from dpr.train.workers import Alone, Group

    recipe = TrainRecipe.model_validate_json(config[_RECIPE])
    context, device = train.get_context(), get_device()
    if device.type == "cpu":
        torch.set_num_threads(int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    progress: Progress = _Sent(config[_EVENTS]) if context.get_world_rank() == 0 else _Silent()
    train_as(recipe, Group() if context.get_world_size() > 1 else Alone(), device, progress)


def own_error(error: train.TrainingFailedError) -> DprError | None:
    """Return the project's error that a worker has failed with; None if it was lost, or failed otherwise."""
    failures = getattr(error, "worker_failures", {})
    found = (quoted_error(str(each)) for each in (*failures.values(), error))
    return next((each for each in found if each is not None), None)


def _first_line(error: Exception) -> str:
    failures = list(getattr(error, "worker_failures", {}).values())
    lines = [line.strip() for line in str(failures[0] if failures else error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class _Silent:
    """Progress of all workers but the first."""

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        """See Progress."""

    def advance(self, rows: int, detail: str = "") -> None:
        """See Progress."""

    def message(self, topic: str, text: str) -> None:
        """See Progress."""

    def finish(self, summary: str) -> None:
        """See Progress."""


class _Sent:
    """Progress of the first worker, which the driver shows."""

    def __init__(self, events: Queue) -> None:
        self._events = events

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        """See Progress."""
        self._send("start", stage, total_rows, done_rows)

    def advance(self, rows: int, detail: str = "") -> None:
        """See Progress."""
        self._send("advance", rows, detail)

    def message(self, topic: str, text: str) -> None:
        """See Progress."""
        self._send("message", topic, text)

    def finish(self, summary: str) -> None:
        """See Progress."""
        self._send("finish", summary)

    def _send(self, *event: object) -> None:
        self._events.actor.put.remote(event)  # nobody waits for it


@contextmanager
def _shown(progress: Progress) -> Iterator[Queue]:
    """Give a queue within the block, and show the messages that workers send through it."""
    events = Queue(actor_options={"num_cpus": 0})

    def show() -> None:
        while (event := events.get())[0] != _STOP:
            name, *arguments = event
            getattr(progress, name)(*arguments)

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield events
    finally:
        events.put((_STOP,))
        thread.join()
        events.shutdown()
