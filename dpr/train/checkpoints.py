"""Checkpoints of a training in a store: weights, the optimiser's moments, position and curve.

`training/plan.json` describes the training, and is written once. A checkpoint is a safetensors object and a record that
names it, which is written after it. So a training that was killed finds a whole checkpoint or none. The random numbers
of a step follow from the recipe's seed and the step's number, so the position is enough to continue.

Shapes: S steps that are done.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpr.errors import IntegrityError, RecipeError
from dpr.formats import layout
from dpr.formats.objects import fetch_object, put_object
from dpr.formats.records import Document, ObjectRef
from dpr.store import Store
from dpr.store.temporary import temporary_folder
from dpr.train.train_recipe import TrainRecipe
from dpr.train.training_set import Belonging

CURVE = "curve"
"""Name of the tensor (S, 3): loss, accuracy and average rank of each step."""
NEGATIVES = ("negatives.rows", "negatives.offsets")
"""Names of the tensors of a `Belonging`: the hard negatives of this epoch, where they are not those of the data."""


class TrainingPlan(Document):
    """`training/plan.json`: the training in a store."""

    recipe: TrainRecipe
    encoder_id: str
    """Id of the encoder that training starts from."""
    data: str
    """Digest of the training set."""
    dev: str | None
    """Digest of the dev set."""


class Measured(Document):
    """A measurement on the dev questions after some step."""

    step: int
    """Steps that were done."""
    accuracy: float
    """Share of questions with a right passage first."""
    average_rank: float
    """Average rank of the first right passage, among all passages of the dev questions."""


class Checkpoint(Document):
    """The state of a training after some steps."""

    step: int
    """Steps that are done."""
    tensors: ObjectRef
    """Weights, moments and curve."""
    best: ObjectRef
    """Weights of the best measurement, or of this step if nothing is measured."""
    measured: list[Measured]


@dataclass(frozen=True)
class State:
    """The tensors of a checkpoint, on the CPU."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """`exp_avg.NAME` and `exp_avg_sq.NAME` of each weight."""
    curve_S3: Tensor
    negatives: Belonging | None = None
    """The hard negatives of this epoch; None: those of the data."""


def begin(store: Store, plan: TrainingPlan) -> None:
    """Declare the training in a store. Raises RecipeError if the store has another one already."""
    if store.put_if_absent(layout.TRAINING_PLAN, plan.to_bytes()):
        return
    try:
        first = TrainingPlan.model_validate_json(store.get(layout.TRAINING_PLAN))
    except ValidationError as error:
        raise IntegrityError(
            f"{layout.TRAINING_PLAN} in {store.url} is not of this version; name another store in the recipe"
        ) from error
    difference = _difference(first, plan)
    if difference:
        raise RecipeError(
            f"store {store.url} holds the training of another recipe, with checkpoints of its own: {difference}; name "
            "another store, or make it what it was to go on"
        )


def latest_checkpoint(store: Store) -> Checkpoint | None:
    """Return the last checkpoint of a store, or None."""
    names = [info.name for info in store.list(layout.CHECKPOINTS) if info.name.endswith(".json")]
    if not names:
        return None
    try:
        return Checkpoint.model_validate_json(store.get(max(names)))
    except ValidationError as error:
        raise IntegrityError(f"{max(names)} in {store.url} is not a checkpoint of this version; delete it") from error


def put_checkpoint(store: Store, state: State, measured: list[Measured], before: Checkpoint | None) -> Checkpoint:
    """Store a checkpoint after `len(state.curve_S3)` steps, and then delete objects that only `before` needed.

    The weights that `before` calls the best stay so if an earlier measurement was better than that of this step.
    """
    step = len(state.curve_S3)
    best = best_of(measured)
    tensors = {**state.weights, **state.moments, **_negatives_of(state), CURVE: state.curve_S3}
    made = Checkpoint(
        step=step,
        tensors=_put(store, layout.checkpoint(step), tensors),
        best=_put(store, layout.best_weights(step), dict(state.weights))
        if before is None or best is None or best.step == step
        else before.best,
        measured=measured,
    )
    store.put_if_absent(layout.record(layout.checkpoint(step)), made.to_bytes())
    keep = {layout.record(layout.checkpoint(step)), made.tensors.name, made.best.name}
    for info in list(store.list(layout.CHECKPOINTS)):
        if info.name not in keep:
            store.delete(info.name)
    return made


def best_of(measured: list[Measured]) -> Measured | None:
    """Return the best measurement after a step; of equal accuracies the one with the lower average rank."""
    trained = [each for each in measured if each.step > 0]
    return max(trained, key=lambda each: (each.accuracy, -each.average_rank), default=None)


def read_state(store: Store, checkpoint: Checkpoint) -> State:
    """Return the tensors of a checkpoint, verified."""
    tensors = load_file(fetch_object(store, checkpoint.tensors))
    curve_S3 = tensors.pop(CURVE)
    refreshed = [tensors.pop(name).numpy() for name in NEGATIVES if name in tensors]
    moments = {name: tensor for name, tensor in tensors.items() if name.startswith("exp_avg")}
    weights = {name: tensor for name, tensor in tensors.items() if name not in moments}
    return State(weights, moments, curve_S3, Belonging(*refreshed) if refreshed else None)


def read_weights(store: Store, ref: ObjectRef) -> dict[str, Tensor]:
    """Return stored weights, verified."""
    return load_file(fetch_object(store, ref))


def _negatives_of(state: State) -> dict[str, Tensor]:
    found = state.negatives
    if found is None:
        return {}
    return dict(zip(NEGATIVES, map(torch.from_numpy, (found.rows_R, found.offsets)), strict=True))


def _put(store: Store, stem: str, tensors: Mapping[str, Tensor]) -> ObjectRef:
    with temporary_folder() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        return put_object(store, stem, path)


def _difference(first: TrainingPlan, plan: TrainingPlan) -> str:
    """Return the first field in which two plans differ, in words; empty if none does."""
    old, new = _flat("", first.recipe.identity()), _flat("", plan.recipe.identity())
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            return f"{name} was {old.get(name)!r} there, and is {new.get(name)!r}"
    for name, what in (("encoder_id", "the encoder"), ("data", "the training data"), ("dev", "the dev data")):
        if getattr(first, name) != getattr(plan, name):
            return f"{what} had other contents ({getattr(first, name)}, now {getattr(plan, name)})"
    return ""


def _flat(prefix: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    fields: dict[str, object] = {}
    for name, inner in value.items():
        fields |= _flat(f"{prefix}.{name}" if prefix else str(name), inner)
    return fields


def curve_of(losses: list[tuple[float, float, float]]) -> Tensor:
    """Return the curve (S, 3) as a tensor."""
    return torch.tensor(losses, dtype=torch.float64).reshape(-1, 3)
