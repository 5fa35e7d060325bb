"""A training as one process prepares it: recipe, encoder, data, towers on a device."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dpr.encoder.saving import saved_format
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.encoder.trainable import TrainableNetwork, TrainableTower, training_dtype
from dpr.formats import layout
from dpr.formats.objects import put_object
from dpr.plurals import counted
from dpr.store import open_store
from dpr.store.temporary import temporary_folder
from dpr.train.checkpoints import TrainingPlan
from dpr.train.example_files import read_examples
from dpr.train.train_recipe import TrainingData, TrainRecipe
from dpr.train.training_set import TrainingSet, collect
from dpr.train.training_step import Towers

UNIT_TEMPERATURE = 0.05
"""Default divisor of cosines: that of sentence-transformers."""


@dataclass(frozen=True)
class TrainingJob:
    """The encoder and the data of a training."""

    recipe: TrainRecipe
    spec: EncoderSpec
    examples: TrainingSet
    dev: TrainingSet | None

    @property
    def plan(self) -> TrainingPlan:
        """The plan of the training, as stored."""
        dev = self.dev.digest if self.dev else None
        return TrainingPlan(recipe=self.recipe, encoder_id=self.spec.encoder_id, data=self.examples.digest, dev=dev)

    def describe_data(self) -> Iterator[str]:
        """Yield sentences on the data, for people: what there is, and what was left out."""
        yield self.examples.describe()
        yield from self.examples.counts.notes
        if self.dev is None:
            return
        yield f"dev: {self.dev.describe()}"
        yield from (f"dev: {note}" for note in self.dev.counts.notes)
        common = len(set(self.dev.questions).intersection(self.examples.questions))
        if common:
            yield (
                f"dev: {common:,} of {counted(len(self.dev), 'question')} are trained on, too, so the accuracy on them "
                "does not show how well other questions are answered"
            )

    @property
    def temperature(self) -> float:
        default = UNIT_TEMPERATURE if self.spec.passage.normalize else 1.0
        return self.recipe.objective.temperature or default


def prepare(recipe: TrainRecipe, *, keeps_quarantine: bool = True) -> TrainingJob:
    """Find the encoder and read the data; one worker also stores the rows that give no example.

    Raises RecipeError if no example is usable.
    """
    spec = resolve(recipe.encoder)
    saved_format(recipe.save_as, spec.passage)  # a model that cannot be saved so is refused before training
    with temporary_folder() as folder:
        sets = [
            _collected(data, what, spec, Path(folder) / f"{what}.parquet", recipe.store if keeps_quarantine else None)
            for what, data in (("training", recipe.data), ("dev", recipe.dev))
            if data is not None
        ]
    return TrainingJob(recipe, spec, sets[0], sets[1] if len(sets) == 2 else None)


def _collected(data: TrainingData, what: str, spec: EncoderSpec, bad: Path, store: str | None) -> TrainingSet:
    """Return the set of some data; its unusable rows are kept in `store`, if it is given, and a note says where."""
    paths = ", ".join([data.path] if isinstance(data.path, str) else data.path)
    found = collect(read_examples(data), spec, bad, data.max_questions, f"{what} data {paths}")
    if store is None or not bad.exists():
        return found
    kept = put_object(open_store(store), layout.TRAINING_QUARANTINE, bad)
    note = f"the unusable rows are kept in {kept.name} of the store, each with its reason"
    return replace(found, counts=replace(found.counts, notes=(*found.counts.notes, note)))


class LoadedTowers:
    """The towers of a job on a device."""

    def __init__(self, job: TrainingJob, device: torch.device) -> None:
        resources, dropout = job.recipe.resources, job.recipe.optimiser.dropout
        self.dtype = training_dtype(resources.precision, device)
        self.networks = {"passage": TrainableNetwork(job.spec.passage, device, dropout)}
        if job.recipe.towers == "two":
            self.networks["question"] = TrainableNetwork(job.spec.question, device, dropout)
        packing = resources.packing == "auto"
        self.passage = TrainableTower(self.networks["passage"], job.spec.passage, self.dtype, packing=packing)
        question = self.networks.get("question", self.networks["passage"])
        self.question = TrainableTower(question, job.spec.question, self.dtype, packing=packing)
        self.weights = {
            f"{side}.{name}": weight
            for side, network in self.networks.items()
            for name, weight in network.parameters().items()
        }

    @property
    def towers(self) -> Towers:
        return Towers(self.question, self.passage, self.weights)

    def set_training(self, *, on: bool) -> None:
        """Switch dropout on or off."""
        for network in self.networks.values():
            network.set_training(on=on)

    def describe(self) -> str:
        """Return how they compute, for people."""
        which = "two towers" if len(self.networks) == 2 else "one shared tower"
        padding = "packed without padding" if self.passage.is_packed else "padded to nearly equal lengths"
        count = sum(weight.numel() for weight in self.weights.values())
        device = self.networks["passage"].device
        return f"{which} with {count / 1e6:,.1f} million weights, {padding}, {str(self.dtype)[6:]} on {device}"
