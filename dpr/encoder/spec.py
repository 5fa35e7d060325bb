"""The encoder spec: everything that decides which vectors an encoder gives, and its fingerprint, the `encoder_id`.

Similarity is the dot product of the two towers' vectors, sim(q, p) = E_Q(q) · E_P(p) (paper, section 3.1).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpr.encoder.files import check_tokenizer, digest_files, weight_files
from dpr.encoder.kinds import DPR_SIDES, Folder, Side, read_folder
from dpr.encoder.sources import fetch_model
from dpr.errors import EncoderError
from dpr.fingerprint import fingerprint
from dpr.recipe import EncoderConfig

# these count positions from pad_token_id + 1 on, and so have fewer than max_position_embeddings
_OFFSET_POSITIONS = ("camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")
_NOT_IDENTITY = ("reference", "folder", "architecture")


@dataclass(frozen=True)
class TowerSpec:
    """One tower: a model, and how a text becomes a vector of it."""

    reference: str
    """As the recipe gives it."""
    folder: Path
    """The folder on this machine that holds its config.json and weights."""
    architecture: str
    """First of `architectures` in its config.json."""
    digest: str
    """Hex SHA-256 over weights, configuration and tokenizer."""
    pooling: str
    """cls, mean or max of the token vectors."""
    normalize: bool
    """Whether vectors are scaled to length 1."""
    prefix: str
    """Put before each text."""
    max_tokens: int
    """Longer inputs are cut to this many tokens, special ones included."""
    title_join: str
    """`pair`: [CLS] title [SEP] text [SEP]; `space`: title, one space, text."""
    lowercase: bool
    """Whether texts are lowercased first, whatever the tokenizer does."""
    dim: int
    """Components of a vector."""

    def identity(self) -> dict[str, Any]:
        """All that its vectors depend on, as JSON values; not where it lies."""
        return {name: value for name, value in asdict(self).items() if name not in _NOT_IDENTITY}


@dataclass(frozen=True)
class EncoderSpec:
    """The passage tower E_P and the question tower E_Q; for most models one network with a prefix for each."""

    passage: TowerSpec
    question: TowerSpec
    config: EncoderConfig
    """What it was resolved from."""

    @property
    def dim(self) -> int:
        """Components of a vector, the same for both towers."""
        return self.passage.dim

    @property
    def encoder_id(self) -> str:
        """Fingerprint of everything that changes vectors; vectors of different encoder ids never meet."""
        return fingerprint({"passage": self.passage.identity(), "question": self.question.identity()})

    def describe(self) -> dict[str, Any]:
        """The spec as JSON values, without this machine's folders; `config` resolves to the same spec elsewhere."""
        towers = {"passage": self.passage, "question": self.question}
        return {
            "encoder_id": self.encoder_id,
            "dim": self.dim,
            **{
                side: {name: value for name, value in asdict(tower).items() if name != "folder"}
                for side, tower in towers.items()
            },
            "config": self.config.model_dump(mode="json", exclude={"precision", "tokens_per_batch", "packing"}),
        }


def resolve(config: EncoderConfig) -> EncoderSpec:
    """Find the models that `config` names and read how they encode; what it states overrides what they say.

    Reads every weight file once, for the digest. Raises EncoderError for a model that cannot be used, and for towers
    that do not belong together.
    """
    references: dict[Side, str] = {"passage": config.model, "question": config.question_model or config.model}
    places = {reference: fetch_model(reference, config.revision) for reference in dict.fromkeys(references.values())}
    found = {side: read_folder(places[reference], reference, side) for side, reference in references.items()}
    for side, reference in references.items():
        _check_side(config, found[side], reference, side)
    digests = {found[side].path: _digest(found[side], reference) for reference, side in _once(references).items()}
    passage, question = (
        _tower(config, found[side], reference, side, digests[found[side].path])
        for side, reference in references.items()
    )
    if passage.dim != question.dim:
        raise EncoderError(
            f"the passage tower {passage.reference} gives {passage.dim} dimensions and the question tower "
            f"{question.reference} gives {question.dim}, so their dot product means nothing; name two trained together"
        )
    return EncoderSpec(passage, question, config)


def _once(references: Mapping[Side, str]) -> dict[str, Side]:
    """One side for each reference: the two towers of most models are the same files."""
    return {reference: side for side, reference in references.items()}


def _digest(found: Folder, reference: str) -> str:
    weights = weight_files(found.path, reference)
    check_tokenizer(found.path, reference, _number(found, reference, "vocab_size"))
    return digest_files(found.path, weights)


def _tower(config: EncoderConfig, found: Folder, reference: str, side: Side, digest: str) -> TowerSpec:
    pooling = config.pooling or found.pooling
    if pooling is None:
        raise EncoderError(
            f"model {reference} ({found.architecture}) does not say how token vectors become one; set encoder.pooling "
            "to cls, mean or max"
        )
    stated_prefix = config.passage_prefix if side == "passage" else config.question_prefix
    return TowerSpec(
        reference=reference,
        folder=found.path.absolute(),
        architecture=found.architecture,
        digest=digest,
        pooling=pooling,
        normalize=found.normalize if config.normalize is None else config.normalize,
        prefix=found.prefix if stated_prefix is None else stated_prefix,
        max_tokens=_max_tokens(config, found, reference),
        title_join=config.title_join or found.title_join,
        lowercase=found.lowercase,
        dim=_dim(found, reference),
    )


def _check_side(config: EncoderConfig, found: Folder, reference: str, side: Side) -> None:
    """A DPR checkpoint has two models, of which each encodes one side only."""
    if found.kind == "dpr" and DPR_SIDES[found.architecture] != side:
        role = "encoder.model" if side == "passage" or config.question_model is None else "encoder.question_model"
        raise EncoderError(
            f"{role} {reference} is a {found.architecture}, which encodes {DPR_SIDES[found.architecture]}s only, and "
            f"no other model is named for {side}s; set encoder.model to the DPRContextEncoder and "
            "encoder.question_model to the DPRQuestionEncoder of the pair"
        )


def _max_tokens(config: EncoderConfig, found: Folder, reference: str) -> int:
    positions = found.config.get("max_position_embeddings")
    if positions is not None and found.config.get("model_type") in _OFFSET_POSITIONS:
        positions -= int(found.config.get("pad_token_id") or 0) + 1
    if config.max_tokens is not None and positions is not None and config.max_tokens > positions:
        raise EncoderError(
            f"encoder.max_tokens is {config.max_tokens}, and model {reference} has positions for {positions} tokens; "
            f"set it to {positions} at most"
        )
    limits = [int(limit) for limit in (config.max_tokens or found.max_tokens, positions) if limit is not None]
    if not limits:
        raise EncoderError(f"model {reference} does not say how many tokens it takes; set encoder.max_tokens")
    return min(limits)


def _dim(found: Folder, reference: str) -> int:
    projection = found.config.get("projection_dim") if found.kind == "dpr" else None
    return int(projection or _number(found, reference, "hidden_size", "dim", "d_model"))


def _number(found: Folder, reference: str, *names: str) -> int:
    """The first of some fields of config.json that is there; architectures name them differently."""
    for name in names:
        if isinstance(found.config.get(name), int):
            return int(found.config[name])
    raise EncoderError(
        f"model {reference}: {found.path / 'config.json'} has no {names[0]}; name a model of text encoders"
    )
