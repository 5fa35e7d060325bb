"""Run a training on Ray or in this process: what `dpr train` and the job module share."""

from dpr.train.run_training import finished_model, train_here, training_lease
from dpr.train.train_recipe import load_train_recipe
from dpr.train.trained_model import TrainedModel
from ray_jobs.console import ConsoleProgress
from ray_jobs.output import console
from ray_jobs.torch_trainer import train_on_ray


def train_whole(recipe_path: str, *, local: bool = False) -> tuple[TrainedModel, str]:
    """Train what a recipe says; return the model, and the store that it is in."""
    recipe = load_train_recipe(recipe_path)
    with ConsoleProgress(console(stderr=True)) as progress:
        if local:
            return train_here(recipe, progress), recipe.store
        with training_lease(recipe):
            train_on_ray(recipe, progress)
    return finished_model(recipe), recipe.store
