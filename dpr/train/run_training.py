"""A training from recipe to model, in one process or as one of several workers."""

import torch

from dpr.engine.progress import Progress
from dpr.errors import IntegrityError
from dpr.store import open_store
from dpr.store.lease import Lease
from dpr.train.checkpoints import begin
from dpr.train.loop import TrainingLoop
from dpr.train.train_recipe import TrainRecipe
from dpr.train.trained_model import TrainedModel, put_model, read_model
from dpr.train.training_job import prepare
from dpr.train.workers import Alone, Workers


def train_here(recipe: TrainRecipe, progress: Progress, device: torch.device | None = None) -> TrainedModel:
    """Train in this process, on a GPU if there is one."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with training_lease(recipe):
        train_as(recipe, Alone(), device, progress)
    return finished_model(recipe)


def training_lease(recipe: TrainRecipe) -> Lease:
    """Take the lease of a training's store. Raises ConflictError if another process trains there."""
    return Lease.acquire(open_store(recipe.store), f"training in {recipe.store}")


def train_as(recipe: TrainRecipe, workers: Workers, device: torch.device, progress: Progress) -> None:
    """Train as one of several workers; the first of them puts the model into the store.

    A finished training is not repeated. Raises RecipeError if the store holds another training.
    """
    store = open_store(recipe.store)
    job = prepare(recipe, keeps_quarantine=workers.rank == 0)
    for sentence in job.describe_data():
        progress.message("training", sentence)
    if workers.rank == 0:
        begin(store, job.plan)
    if read_model(store) is None:
        finished = TrainingLoop(job, workers, device, progress).run()
        if finished is not None:
            put_model(job, finished)


def finished_model(recipe: TrainRecipe) -> TrainedModel:
    """Return the model of a finished training."""
    store = open_store(recipe.store)
    model = read_model(store)
    if model is None:
        raise IntegrityError(f"the training in {store.url} is over and has left no model; start it again")
    return model
