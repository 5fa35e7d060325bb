"""Run a training, and a run that follows it, on Ray or in this process: shared by `dpr train` and the job module."""

from contextlib import nullcontext
from dataclasses import dataclass

from dpr.errors import RecipeError
from dpr.formats.snapshots import latest_snapshot
from dpr.recipe import EncoderConfig, Recipe
from dpr.run import Plan
from dpr.run_recipe import Allowed, Outcome
from dpr.store import open_store
from dpr.train.example_files import read_examples
from dpr.train.examples import TrainingExample
from dpr.train.run_training import finished_model, train_here, training_lease
from dpr.train.train_recipe import TrainingData, TrainRecipe, load_train_recipe
from dpr.train.trained_model import TrainedModel
from ray_jobs.connect import connected
from ray_jobs.console import ConsoleProgress
from ray_jobs.jobs import recipe_for_run, run_planned
from ray_jobs.output import console
from ray_jobs.torch_trainer import train_on_ray

MAX_TRAINED_ON = 0.01
"""Share of the gate's questions that may be among those of the training."""


@dataclass(frozen=True)
class Trained:
    """The results of a training."""

    model: TrainedModel
    encoder: EncoderConfig
    """The section of a recipe that uses the model."""
    outcome: Outcome | None = None
    """The outcome of the run that followed, if there was one."""


def train_whole(recipe_path: str, *, local: bool = False) -> Trained:
    """Train what a recipe says, on Ray or (`local`) in this process."""
    return _trained(load_train_recipe(recipe_path), local=local)


def train_and_run(recipe_path: str, then_path: str, *, local: bool = False) -> Trained:
    """Train, then run another recipe with the trained towers as its encoder; its gate demands that they are better.

    Both continue where they stopped, so the whole is continued by starting it again. Errors that would stop the run are
    found before training, where that is possible.
    """
    recipe, then = load_train_recipe(recipe_path), recipe_for_run(then_path)
    _check_run(then, then_path, recipe)
    with nullcontext() if local else connected():
        made = _trained(recipe, local=local)
        outcome = run_planned(Plan.of(with_trained(then, made.encoder)), Allowed(), local=local)
    return Trained(made.model, made.encoder, outcome)


def with_trained(recipe: Recipe, trained: EncoderConfig) -> Recipe:
    """Return a recipe with trained towers as its encoder, which are published only if they are better.

    How vectors are computed stays as the recipe says.
    """
    own = recipe.encoder
    how = {"precision": own.precision, "tokens_per_batch": own.tokens_per_batch, "packing": own.packing}
    gate = recipe.gate.model_copy(update={"new_encoder": "better"})
    return recipe.model_copy(update={"encoder": trained.model_copy(update=how), "gate": gate})


def _check_run(then: Recipe, then_path: str, recipe: TrainRecipe) -> None:
    """Raise an error that the run would end with, as far as the encoder that training starts from shows it."""
    live = latest_snapshot(open_store(then.store))
    if live is not None and then.gate.questions is None:
        raise RecipeError(
            f"recipe {then_path} has no gate.questions, so nothing would show whether the trained towers are better "
            f"than live snapshot {live.number}; name questions there that are not trained on"
        )
    plan = Plan.of(then.model_copy(update={"encoder": recipe.encoder}))
    if plan.questions is not None:
        _check_questions(set(plan.questions.texts), then_path, recipe.data)


def _check_questions(gate_questions: set[str], then_path: str, data: TrainingData) -> None:
    """Raise RecipeError if the gate asks what is trained on. A few questions of a large set may be equal by chance."""
    trained: dict[str, None] = {}
    for each in read_examples(data):
        if isinstance(each, TrainingExample):
            trained[each.question] = None
        if len(trained) == data.max_questions:
            break
    common = [question for question in trained if question in gate_questions]
    if len(common) > MAX_TRAINED_ON * len(gate_questions):
        raise RecipeError(
            f"{len(common):,} of the {len(gate_questions):,} questions in gate.questions of recipe {then_path} are "
            f"trained on ({common[0]!r}, for example), so they do not show whether the towers are better; name others"
        )


def _trained(recipe: TrainRecipe, *, local: bool) -> Trained:
    with ConsoleProgress(console(stderr=True)) as progress:
        if local:
            train_here(recipe, progress)
        else:
            with training_lease(recipe):
                train_on_ray(recipe, progress)
    model = finished_model(recipe)
    return Trained(model, model.encoder_in(open_store(recipe.store)))
