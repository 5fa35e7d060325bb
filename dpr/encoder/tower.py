"""One tower of an encoder: a model, how a text becomes a vector of it, and how both are read from a model folder."""

from dataclasses import asdict, dataclass
from pathlib import Path

from dpr.encoder.model_files import check_tokenizer, digest_files, weight_files
from dpr.encoder.model_folder import DPR_SIDES, Folder, Side, read_folder
from dpr.errors import EncoderError
from dpr.formats.manifest import TowerDescription
from dpr.recipe import EncoderConfig

# these count positions from pad_token_id + 1 on, and so have fewer than max_position_embeddings
_OFFSET_POSITIONS = ("camembert", "data2vec-text", "longformer", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl")


@dataclass(frozen=True)
class TowerSpec:
    """One tower, found on this machine and not loaded yet."""

    reference: str
    """Where the model comes from, as the recipe or the command line names it."""
    folder: Path
    """The folder on this machine that holds its config.json and weights."""
    architecture: str
    """First of `architectures` in its config.json."""
    digest: str
    """Hex SHA-256 over weights, configuration and tokenizer."""
    pooling: str
    """How token vectors become one: cls, mean or max."""
    normalize: bool
    """Whether vectors are scaled to length 1."""
    prefix: str
    """Text put before each text."""
    max_tokens: int
    """Longer inputs are cut to this many tokens, special ones included."""
    title_join: str
    """`pair`: [CLS] title [SEP] text [SEP]; `space`: title, one space, text."""
    lowercase: bool
    """Whether texts are lowercased first, whatever the tokenizer does."""
    dim: int
    """Components of a vector."""

    def describe(self) -> TowerDescription:
        """Return all but this machine's folder, as it is stored."""
        fields = asdict(self)
        del fields["folder"]
        return TowerDescription.model_validate(fields)

    def identity(self) -> dict[str, object]:
        """Return all that its vectors depend on, as JSON values."""
        return identity_of(self.describe())


def identity_of(tower: TowerDescription) -> dict[str, object]:
    """Return all that the vectors of a described tower depend on, as JSON values; not where its model comes from."""
    return tower.model_dump(mode="json", exclude={"reference", "architecture"})


def read_tower(
    config: EncoderConfig, side: Side, reference: str, model_folder: Path, digest: str | None = None
) -> TowerSpec:
    """Read from a model's folder how it encodes passages or questions; what `config` states overrides what it says.

    Every file is hashed, unless `digest` is given, or this machine hashed it before. Raises EncoderError for a model
    that cannot be used.
    """
    found = read_folder(model_folder, reference, side)
    _check_side(config, found, reference, side)
    pooling = config.pooling or found.pooling
    if pooling is None:
        raise EncoderError(
            f"model {reference} ({found.architecture}) does not say how token vectors become one; set encoder.pooling "
            "to cls, mean or max"
        )
    prefix = config.passage_prefix if side == "passage" else config.question_prefix
    return TowerSpec(
        reference=reference,
        folder=found.path.absolute(),
        architecture=found.architecture,
        digest=digest or _digest(found, reference),
        pooling=pooling,
        normalize=found.normalize if config.normalize is None else config.normalize,
        prefix=found.prefix if prefix is None else prefix,
        max_tokens=_max_tokens(config, found, reference),
        title_join=config.title_join or found.title_join,
        lowercase=found.lowercase,
        dim=_dim(found, reference),
    )


def _check_side(config: EncoderConfig, found: Folder, reference: str, side: Side) -> None:
    """Raise EncoderError for a DPR checkpoint of the other side: each of a pair encodes one side only."""
    if found.kind == "dpr" and DPR_SIDES[found.architecture] != side:
        field = "encoder.model" if side == "passage" or config.question_model is None else "encoder.question_model"
        raise EncoderError(
            f"{field} {reference} is a {found.architecture}, which encodes {DPR_SIDES[found.architecture]}s only, and "
            f"no other model is named for {side}s; set encoder.model to the DPRContextEncoder and "
            "encoder.question_model to the DPRQuestionEncoder of the pair"
        )


def _digest(found: Folder, reference: str) -> str:
    weights = weight_files(found.path, reference)
    check_tokenizer(found.path, reference, _number(found, reference, "vocab_size"))
    return digest_files(found.path, weights)


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
    """Return the first of these fields of config.json that is there; architectures name them differently."""
    for name in names:
        if isinstance(found.config.get(name), int):
            return int(found.config[name])
    raise EncoderError(
        f"model {reference}: {found.path / 'config.json'} has no {names[0]}; name a model that encodes text"
    )
