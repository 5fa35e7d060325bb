"""The recipe of a training: one YAML file with the encoder that it starts from, the data, and the settings."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, model_validator

from dpr.recipe import EncoderConfig
from dpr.recipe_file import checked_document, resolve_model, resolve_path
from dpr.recipe_section import Name, Processors, Section


class TrainingData(Section):
    """Questions with passages that answer them; the layout is found by looking (docs/formats.md)."""

    path: str | list[str]
    """BEIR folder, or JSON, JSONL or Parquet files: file, folder, glob or URL, or a list of them."""
    qrels: Name | None = None
    """BEIR: qrels file, or a folder of them; null: `qrels/train.tsv` or `qrels.train.tsv` of the folder."""
    corpus: Name | None = None
    """BEIR: where the passages are, in any format of corpora; null: in the folder."""
    max_questions: Annotated[int, Field(ge=1)] | None = None
    """Questions used, the first of the data; null: all."""


class DevData(TrainingData):
    """Questions that are not trained on, for measurements during training, each against the passages of all of them."""

    max_questions: Annotated[int, Field(ge=1)] | None = 1000
    """Questions used, the first of the data; null: all."""


class Objective(Section):
    """The objective to minimise: -log of the softmax share of the right passage (paper, section 3.2)."""

    batch: Annotated[int, Field(ge=2)] = 128
    """Questions of one step, over all workers; the passages of all others are negatives."""
    hard_negatives: Annotated[int, Field(ge=0)] = 1
    """Hard negatives of each question in a step, drawn from those that its example has."""
    refresh_negatives: bool = False
    """Whether each epoch after the first begins with new hard negatives: passages of the data that the towers find at
    that time, and that do not answer."""
    temperature: Annotated[float, Field(gt=0.0)] | None = None
    """Divisor of similarities; null: 0.05 if vectors have length 1, else 1."""

    @model_validator(mode="after")
    def _negatives_are_used(self) -> Self:
        if self.refresh_negatives and self.hard_negatives == 0:
            raise ValueError("refresh_negatives finds hard negatives, and hard_negatives is 0, so none is used; set 1")
        return self


class Optimiser(Section):
    """AdamW with warm-up and linear decay."""

    epochs: Annotated[int, Field(ge=1)] = 3
    """How often all questions are seen."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 2e-5
    """The highest; it is reached after the warm-up, and falls to zero at the last step."""
    warm_up: Annotated[float, Field(ge=0.0, le=1.0)] = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Does not apply to biases and layer normalisations."""
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    """Longest gradient; longer ones are scaled to this length."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of values that are dropped; null: as config.json of the model says."""
    seed: Annotated[int, Field(ge=0)] = 7
    """Seed of the order of questions, of drawn passages, and of dropout."""


class Stopping(Section):
    """When to measure on the dev questions, and when to end training early."""

    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps between two measurements, each of which is a checkpoint; null: once an epoch."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Measurements without a better accuracy after which training ends."""
    keep: Literal["best", "last"] = "best"
    """Which weights become the model: those of the best accuracy, or those of the last step."""


class TrainingResources(Section):
    """The resources, and how the work is divided; no setting changes the result by more than rounding."""

    workers: Processors = 1
    """Processes that share each batch."""
    gpus_per_worker: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """null: 1 where the cluster has any GPU, else 0."""
    cpus_per_worker: Processors | None = None
    """null: 1 with a GPU, else all CPUs of this machine divided among the workers."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network; weights and loss are fp32 always. `auto`: bf16 on a GPU that has it, else fp32."""
    chunk_tokens: Annotated[int, Field(ge=64)] | None = None
    """Tokens of one pass through the network; null: a measured default for the device."""
    kept_tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens of a worker's batch whose activations are kept for the backward pass. Those of the others are computed
    twice (gradient cache). null: as many as fit the device's memory."""
    packing: Literal["auto", "never"] = "auto"
    """`auto`: without padding where the network allows it."""
    retries: Annotated[int, Field(ge=0)] = 2
    """How often a training goes on from its last checkpoint after a worker was lost."""


_PLACES = {"path", "qrels", "corpus"}


class TrainRecipe(Section):
    """One training."""

    store: Name
    """Folder or `s3://bucket/prefix` for checkpoints and the trained model, below `training/`; one training each."""
    encoder: EncoderConfig
    """The encoder it starts from, as in a recipe."""
    towers: Literal["shared", "two"] = "shared"
    """Whether questions and passages have one network, or one each (as the paper has), at first equal if only `model`
    is given."""
    save_as: Literal["auto", "sentence-transformers", "dpr"] = "auto"
    """Format of the trained model; `auto`: DPR checkpoints if it starts from some, else sentence-transformers."""
    data: TrainingData
    dev: DevData | None = None
    """null: no measurements during training, and the last step becomes the model."""
    objective: Objective = Objective()
    optimiser: Optimiser = Optimiser()
    stopping: Stopping = Stopping()
    resources: TrainingResources = TrainingResources()

    @model_validator(mode="after")
    def _towers_fit(self) -> Self:
        if self.towers == "shared" and self.encoder.question_model is not None:
            raise ValueError("encoder.question_model is another network, so towers cannot be shared; set towers: two")
        if self.towers == "shared" and self.save_as == "dpr":
            raise ValueError("DPR checkpoints are one network a side; set towers: two, or another save_as")
        return self

    def identity(self) -> dict[str, object]:
        """Return the settings that the weights depend on, as JSON values.

        Places of models and data are not among them: digests say what is there.
        """
        where = {"store", "resources", "save_as", "encoder", "data"}
        return self.model_dump(mode="json", exclude=dict.fromkeys(where, True) | {"dev": _PLACES})


D = TypeVar("D", bound=TrainingData)


def load_train_recipe(path: str | os.PathLike[str]) -> TrainRecipe:
    """Read and check the recipe of a training. Relative paths in it are relative to its own folder.

    Raises RecipeError naming the file, the field, the value and what is allowed.
    """
    return checked_document(Path(path), TrainRecipe, "store, encoder and data", _anchored)


def _anchored(recipe: TrainRecipe, folder: Path) -> TrainRecipe:
    encoder = recipe.encoder
    models = {
        name: resolve_model(value, folder)
        for name in ("model", "question_model")
        if (value := getattr(encoder, name)) is not None
    }
    return recipe.model_copy(
        update={
            "store": resolve_path(recipe.store, folder),
            "encoder": encoder.model_copy(update=models),
            "data": _anchored_data(recipe.data, folder),
            "dev": recipe.dev and _anchored_data(recipe.dev, folder),
        }
    )


def _anchored_data(data: D, folder: Path) -> D:
    paths = data.path
    update: dict[str, str | list[str]] = {
        "path": [resolve_path(path, folder) for path in paths]
        if isinstance(paths, list)
        else resolve_path(paths, folder)
    }
    for name in ("qrels", "corpus"):
        if (value := getattr(data, name)) is not None:
            update[name] = resolve_path(value, folder)
    return data.model_copy(update=update)
