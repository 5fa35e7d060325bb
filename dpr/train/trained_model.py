"""The end of a training: its weights as model folders in the store, and the recipe section that uses them."""

from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from dpr.encoder.model_folder import Side
from dpr.encoder.saving import save_dpr, save_tower, saved_format
from dpr.encoder.spec import EncoderSpec, resolve
from dpr.formats import layout
from dpr.formats.objects import file_sha256
from dpr.formats.records import Document, ObjectRef
from dpr.recipe import EncoderConfig
from dpr.store import Store, open_store
from dpr.store.temporary import temporary_folder
from dpr.train.checkpoints import Measured, read_state, read_weights
from dpr.train.loop import Finished
from dpr.train.model_card import model_card
from dpr.train.training_job import LoadedTowers, TrainingJob

SIDES: tuple[Side, ...] = ("passage", "question")


class TrainedModel(Document):
    """`training/model.json`: the result of a finished training."""

    steps: int
    stopped_early: bool
    measured: list[Measured]
    encoder: EncoderConfig
    """The section of a recipe that uses the model, whose names are relative to the store."""
    files: list[ObjectRef]

    def encoder_in(self, store: Store) -> EncoderConfig:
        """Return the section with places that other recipes can name."""
        return _placed(self.encoder, f"{store.url.rstrip('/')}/")


def put_model(job: TrainingJob, finished: Finished) -> TrainedModel:
    """Save the weights that a recipe selects in its store, with a model card; the record that declares them comes last.

    All files follow from the stored weights, so a second attempt makes the same ones.
    """
    store = open_store(job.recipe.store)
    loaded = LoadedTowers(job, torch.device("cpu"))
    checkpoint = finished.checkpoint
    is_last = job.recipe.stopping.keep == "last"
    weights = read_state(store, checkpoint).weights if is_last else read_weights(store, checkpoint.best)
    with torch.no_grad():
        for name, weight in loaded.weights.items():
            weight.copy_(weights[name])
    with temporary_folder() as temporary:
        folder = Path(temporary) / "model"
        encoder = save_towers(job, loaded, folder)
        section = section_of(_placed(encoder, f"{store.url.rstrip('/')}/"))
        card = model_card(job, checkpoint.measured, checkpoint.step, section)
        (folder / "README.md").write_text(card, encoding="utf-8")
        model = TrainedModel(
            steps=checkpoint.step,
            stopped_early=finished.stopped_early,
            measured=checkpoint.measured,
            encoder=encoder,
            files=list(_put_files(store, folder)),
        )
    store.put_if_absent(layout.record(layout.TRAINED_MODEL), model.to_bytes())
    return model


def read_model(store: Store) -> TrainedModel | None:
    """Return the model of a finished training, or None."""
    name = layout.record(layout.TRAINED_MODEL)
    return TrainedModel.model_validate_json(store.get(name)) if store.exists(name) else None


def section_of(encoder: EncoderConfig) -> str:
    """Return a recipe's `encoder` section as YAML."""
    fields = encoder.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump({"encoder": fields}, sort_keys=False)


def save_towers(job: TrainingJob, loaded: LoadedTowers, folder: Path) -> EncoderConfig:
    """Save towers below a folder; return the section that uses them, relative to the store."""
    spec, names = job.spec, {"passage": layout.TRAINED_MODEL}
    if job.recipe.towers == "two":
        names = {side: layout.trained_file(side) for side in SIDES}
    prompts = {"query": spec.question.prefix, "document": spec.passage.prefix}
    for side in SIDES[: len(names)]:
        tower = spec.passage if side == "passage" else spec.question
        place = folder / side if len(names) == 2 else folder
        if saved_format(job.recipe.save_as, tower) == "dpr":
            save_dpr(loaded.networks[side].loaded, tower, side, place)
        else:
            save_tower(loaded.networks[side].loaded, tower, prompts, place)
    encoder = EncoderConfig(model=names["passage"], question_model=names.get("question"))
    local = _placed(encoder, f"{folder.parent}/", layout.TRAINED_MODEL.rpartition("/")[0])
    return encoder.model_copy(update=_stated(spec, resolve(local)))


def _stated(spec: EncoderSpec, saved: EncoderSpec) -> dict[str, object]:
    """Return the settings that a recipe must state because the saved folders cannot."""
    fields = {
        "title_join": (spec.passage.title_join, saved.passage.title_join),
        "max_tokens": (spec.passage.max_tokens, saved.passage.max_tokens),
        "passage_prefix": (spec.passage.prefix, saved.passage.prefix),
        "question_prefix": (spec.question.prefix, saved.question.prefix),
        "normalize": (spec.passage.normalize, saved.passage.normalize),
    }
    return {name: wanted for name, (wanted, found) in fields.items() if wanted != found}


def _placed(encoder: EncoderConfig, root: str, without: str = "") -> EncoderConfig:
    """Return the section with its models below a root; `without` is the prefix that their names lose."""
    models = {name: getattr(encoder, name) for name in ("model", "question_model")}
    strip = f"{without}/" if without else ""
    return encoder.model_copy(
        update={name: f"{root}{value.removeprefix(strip)}" for name, value in models.items() if value is not None}
    )


def _put_files(store: Store, folder: Path) -> Iterator[ObjectRef]:
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = layout.trained_file(path.relative_to(folder).as_posix())
        store.put_file_if_absent(name, path)
        yield ObjectRef(name=name, size_bytes=path.stat().st_size, sha256=file_sha256(path))
