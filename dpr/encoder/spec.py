"""The encoder spec: everything that decides which vectors an encoder gives, and its fingerprint, the `encoder_id`.

Similarity is the dot product of the two towers' vectors, sim(q, p) = E_Q(q) · E_P(p) (paper, section 3.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dpr.encoder.sources import FoundModel, fetch_model, find_model, pin_commit, split_revision
from dpr.encoder.tower import TowerSpec, identity_of, read_tower
from dpr.errors import EncoderError
from dpr.fingerprint import fingerprint
from dpr.formats.manifest import EncoderDescription, TowerDescription
from dpr.formats.stored_vectors import stored_bytes
from dpr.recipe import EncoderConfig, StoreAs

_NOT_DESCRIBED = {"tokens_per_batch", "packing"}
"""Fields of the configuration that are of no use to those who encode questions."""


@dataclass(frozen=True)
class EncoderSpec:
    """The passage tower E_P and the question tower E_Q; for most models one network with a prefix for each."""

    passage: TowerSpec
    question: TowerSpec
    config: EncoderConfig
    """The configuration that both were found by, with commits of hub models, so that it finds the same files again."""

    @property
    def dim(self) -> int:
        """Return the components of a vector, the same for both towers."""
        return self.passage.dim

    @property
    def encoder_id(self) -> str:
        """Return the fingerprint of all that changes vectors; vectors of different encoder ids are never mixed."""
        return encoder_id_of(self.passage.describe(), self.question.describe())

    @property
    def store_as(self) -> StoreAs:
        """Return how the vectors of passages are stored."""
        return self.passage.store_as

    @property
    def stored_bytes(self) -> int:
        """Return the bytes that a vector takes in a segment."""
        return stored_bytes(self.dim, self.store_as)

    @property
    def float16_id(self) -> str:
        """Return the encoder id of the same encoder with vectors stored as float16, which int8 can be made of."""
        return encoder_id_of(replace(self.passage, store_as="float16").describe(), self.question.describe())

    def describe(self) -> EncoderDescription:
        """Return the spec as it is stored, without this machine's folders; `config` finds the same spec elsewhere."""
        return EncoderDescription(
            encoder_id=self.encoder_id,
            dim=self.dim,
            passage=self.passage.describe(),
            question=self.question.describe(),
            config=EncoderConfig.model_validate(self.config.model_dump(exclude=_NOT_DESCRIBED)),
        )


def encoder_id_of(passage: TowerDescription, question: TowerDescription) -> str:
    """Return the id of the encoder that these two towers make."""
    return fingerprint({"passage": identity_of(passage), "question": identity_of(question)})


def resolve(config: EncoderConfig) -> EncoderSpec:
    """Find the models that `config` names and read how they encode; the configuration overrides their own description.

    The commits of hub models become part of the spec's `config`. Raises EncoderError for a model that cannot be used,
    and for towers that do not belong together.
    """
    question_model = config.question_model or config.model
    models = {
        reference: fetch_model(reference, config.revision)
        for reference in dict.fromkeys((config.model, question_model))
    }
    passage = read_tower(config, "passage", config.model, models[config.model].folder)
    digest = passage.digest if question_model == config.model else None
    question = read_tower(config, "question", question_model, models[question_model].folder, digest)
    if passage.dim != question.dim:
        raise EncoderError(
            f"the passage tower {passage.reference} gives {passage.dim} dimensions and the question tower "
            f"{question.reference} gives {question.dim}, so that they have no dot product; name two models that were "
            "trained together"
        )
    return EncoderSpec(passage, question, _pin_commits(config, models))


def resolve_same(config: EncoderConfig, encoder_id: str) -> EncoderSpec:
    """Resolve an encoder on this machine. Raises EncoderError if it is not the one that the run was planned with."""
    spec = resolve(config)
    if spec.encoder_id != encoder_id:
        raise EncoderError(
            f"model {config.model} is encoder {spec.encoder_id} on this machine and {encoder_id} where the run was "
            "planned; give all machines the same model files"
        )
    return spec


def _pin_commits(config: EncoderConfig, models: Mapping[str, FoundModel]) -> EncoderConfig:
    """Return the configuration with the commit of each hub model, so that it always means the same files.

    One commit goes to `revision`. Two models from two repositories have one each, which goes into their references.
    """
    commits = {reference: model.commit for reference, model in models.items() if model.commit is not None}
    if len(set(commits.values())) < 2:
        return config.model_copy(update={"revision": next(iter(commits.values()), config.revision)})
    pinned = {reference: pin_commit(reference, commit) for reference, commit in commits.items()}
    fields = {name: pinned[getattr(config, name)] for name in ("model", "question_model")}
    return config.model_copy(update={**fields, "revision": None})


def resolve_question(description: EncoderDescription, model: str | None, snapshot: str) -> TowerSpec:
    """Find the question tower of a snapshot's encoder, which is all that answering questions needs.

    A model is fetched only from where the user says. So without `model` the model that the snapshot names is used only
    if it is on this machine already. `model` is fetched from wherever it is; if it is the hub model that the snapshot
    names, at the commit that the snapshot names. `snapshot` names the snapshot in messages. Raises EncoderError if the
    model would have to be fetched, or is not the one that made the snapshot.
    """
    config = description.config
    recorded = config.question_model or config.model
    if model is None:
        found = _find_recorded(recorded, config.revision, snapshot)
        tower = _read_question(config, recorded, found, snapshot)
    else:
        hub_id, commit = split_revision(recorded, config.revision)
        found = fetch_model(model, commit if model in (recorded, hub_id) else None)
        tower = read_tower(config, "question", model, found.folder)
    encoder_id = encoder_id_of(description.passage, tower.describe())
    if encoder_id != description.encoder_id:
        raise EncoderError(
            f"{snapshot} was made by encoder {description.encoder_id}, and with the question model {tower.reference} "
            f"it would be encoder {encoder_id}; their vectors cannot be compared, so name the model that made it "
            "with --model"
        )
    if tower.identity() != identity_of(description.question):
        raise EncoderError(
            f"{snapshot} contradicts itself: its encoder id {encoder_id} stands for the question model "
            f"{tower.reference}, and its description is of another one; publish a new snapshot or roll back"
        )
    return tower


def resolve_passage(description: EncoderDescription, question: TowerSpec) -> TowerSpec:
    """Find the passage tower of an encoder whose question tower was found.

    If both are one model, nothing is read again. Raises EncoderError if the model is not on this machine, or another.
    """
    config, stored = description.config, description.passage
    if config.question_model in (None, config.model):
        fields = stored.model_dump(exclude={"reference", "architecture", "digest", "head"})
        return replace(question, **fields)
    found = find_model(config.model, config.revision)
    if found is None:
        raise EncoderError(f"the passage model {config.model} is not on this machine; fetch it before you serve")
    tower = read_tower(config, "passage", config.model, found.folder)
    if tower.identity() != identity_of(stored):
        raise EncoderError(f"the passage model {config.model} of this machine is not the one that made the snapshot")
    return tower


def _read_question(config: EncoderConfig, reference: str, found: FoundModel, snapshot: str) -> TowerSpec:
    """Read the question tower where the snapshot says that it is."""
    try:
        return read_tower(config, "question", reference, found.folder)
    except EncoderError as error:
        raise EncoderError(
            f"the question model of {snapshot} cannot be read where it was ({error}); if it has moved, pass --model REF"
        ) from error


def _find_recorded(reference: str, revision: str | None, snapshot: str) -> FoundModel:
    """Find the question model that a snapshot names, without a request."""
    try:
        found = find_model(reference, revision)
    except EncoderError as error:
        raise EncoderError(
            f"{snapshot} names a question model that is not on this machine ({error}); pass --model REF to say where "
            "it is"
        ) from error
    if found is None:
        raise EncoderError(
            f"{snapshot} names the question model {reference}, which is not on this machine, and a model is fetched "
            f"only from where you say; pass --model {reference} to fetch it from there"
        )
    return found
