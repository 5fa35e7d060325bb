"""One tower of an encoder: a model, how it makes a vector of a text, and how both are read from a model folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpr.encoder.model_files import check_tokenizer, digest_files, digest_head, weight_files
from dpr.encoder.model_folder import DPR_SIDES, ENCODER_HALVES, POOLINGS, Folder, Side, read_folder
from dpr.encoder.modules import HeadModule
from dpr.encoder.static import table_shape
from dpr.errors import EncoderError
from dpr.formats.manifest import TowerDescription
from dpr.recipe import EncoderConfig, StoreAs

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
    """Hex SHA-256 over weights, configuration and tokenizer, those of the head's modules included."""
    pooling: str
    """How token vectors become one: one of POOLINGS, or several joined by +."""
    normalize: bool
    """Whether vectors are scaled to length 1."""
    prefix: str
    """Prefix of each text."""
    max_tokens: int
    """Longer inputs are cut to this many tokens, special ones included."""
    title_join: str
    """`pair`: [CLS] title [SEP] text [SEP]; `space`: title, one space, text."""
    lowercase: bool
    """Whether texts are lowercased first, whatever the tokenizer does."""
    dim: int
    """Components of a vector: this many first ones of the output of the network and its head."""
    prompt_pooled: bool = True
    """Whether the tokens of the prefix count in pooling."""
    head: tuple[HeadModule, ...] = ()
    """The modules that change a pooled vector, before it is cut to `dim` and scaled to length 1."""
    store_as: StoreAs = "float16"
    """How its vectors are stored. Vectors of questions are not, so the question tower always has the default."""
    fp8_products: tuple[str, ...] = ()
    """The products that are in fp8 (`dpr.encoder.packed_fp8`); none in the question tower."""

    def describe(self) -> TowerDescription:
        """Return all but this machine's folder, as it is stored."""
        fields = asdict(self) | {"head": [module.kind for module in self.head]}
        del fields["folder"]
        return TowerDescription.model_validate(fields)

    def identity(self) -> dict[str, object]:
        """Return everything that its vectors depend on, as JSON values."""
        return identity_of(self.describe())


def identity_of(tower: TowerDescription) -> dict[str, object]:
    """Return all that the vectors of a described tower depend on, as JSON values; not where its model comes from."""
    # fields of later versions count only if they are set, so that ids of older stores stay the same
    return tower.model_dump(mode="json", exclude={"reference", "architecture"}, exclude_defaults=True)


def read_tower(
    config: EncoderConfig, side: Side, reference: str, model_folder: Path, digest: str | None = None
) -> TowerSpec:
    """Read from a model's folder how it encodes passages or questions; `config` overrides the folder's description.

    Every file is hashed, unless `digest` is given, or this machine hashed it before. Raises EncoderError for a model
    that cannot be used.
    """
    found = read_folder(model_folder, reference, side)
    _check_side(config, found, reference, side)
    pooling = config.pooling or found.pooling
    if pooling is None:
        raise EncoderError(
            f"model {reference} ({found.architecture}) does not say how token vectors become one; set encoder.pooling "
            f"to what its maker says, one of {', '.join(POOLINGS)}"
        )
    if found.kind == "static" and pooling != "mean":
        raise EncoderError(
            f"encoder.pooling is {pooling}, and model {reference} is a table of token vectors, which only has a mean; "
            "leave encoder.pooling out"
        )
    head, normalize = _ending(config, found, reference)
    prefix = config.passage_prefix if side == "passage" else config.question_prefix
    return TowerSpec(
        reference=reference,
        folder=found.path.absolute(),
        architecture=found.architecture,
        digest=digest or folder_digest(found, reference),
        pooling=pooling,
        normalize=normalize,
        prefix=found.prefix if prefix is None else prefix,
        max_tokens=token_limit(config, found, reference),
        title_join=config.title_join or found.title_join,
        lowercase=found.lowercase,
        dim=_dim(config, found, pooling, reference),
        prompt_pooled=found.prompt_pooled,
        head=head,
        store_as=config.store_as if side == "passage" else "float16",
        fp8_products=config.fp8_products if side == "passage" and config.precision == "fp8" else (),
    )


def _ending(config: EncoderConfig, found: Folder, reference: str) -> tuple[tuple[HeadModule, ...], bool]:
    """Return the head without the Normalize modules at its end, and whether vectors are scaled to length 1.

    The recipe decides, then the similarity that the folder states, then its modules. The dot product of vectors of
    length 1 is their cosine. Raises EncoderError for another similarity, unless the recipe decides.
    """
    if config.normalize is None and found.similarity not in (None, "cosine", "dot"):
        raise EncoderError(
            f"model {reference} compares vectors by {found.similarity} (similarity_fn_name in "
            "config_sentence_transformers.json), and passages are ranked by cosine or dot product only; name another "
            "model, or set encoder.normalize to true to rank by cosine all the same, or to false for the dot product"
        )
    head = found.head
    while head and head[-1].kind == "Normalize":
        head = head[:-1]
    ends_normalised = len(head) < len(found.head)
    if config.normalize is not None:
        return head, config.normalize
    if found.similarity == "dot" and ends_normalised and (config.dimensions or found.dimensions):
        return found.head, False  # scaled before the vector is cut, and not again
    return head, ends_normalised or found.similarity == "cosine"


def _check_side(config: EncoderConfig, found: Folder, reference: str, side: Side) -> None:
    """Raise EncoderError for a DPR checkpoint of the other side: each model of a pair encodes one side only."""
    if found.kind == "dpr" and DPR_SIDES[found.architecture] != side:
        field = "encoder.model" if side == "passage" or config.question_model is None else "encoder.question_model"
        raise EncoderError(
            f"{field} {reference} is a {found.architecture}, which encodes {DPR_SIDES[found.architecture]}s only, and "
            f"no other model is named for {side}s; set encoder.model to the DPRContextEncoder and "
            "encoder.question_model to the DPRQuestionEncoder of the pair"
        )


def folder_digest(found: Folder, reference: str) -> str:
    """Return the digest of weights, configuration and tokenizer. Raises EncoderError if they cannot be used."""
    weights = weight_files(found.path, reference)
    static = found.kind == "static"
    rows = table_shape(found.path, reference)[0] if static else _number(found, reference, "vocab_size")
    check_tokenizer(found.path, reference, rows)
    return digest_head(
        digest_files(found.path, weights),
        tuple(module.folder for module in found.head if module.kind != "Normalize"),
        reference,
    )


def token_limit(config: EncoderConfig, found: Folder, reference: str) -> int:
    """Return the token limit of inputs, special tokens included. Raises EncoderError if nothing states it."""
    positions = found.config.get("max_position_embeddings", found.config.get("n_positions"))
    if _is_relative(found.config):
        # positions are distances, so that longer texts than those of the training can be encoded, too
        limit = config.max_tokens or found.max_tokens or positions
        if limit is None:
            raise EncoderError(f"model {reference} does not say how many tokens it takes; set encoder.max_tokens")
        return int(limit)
    if positions is not None and found.config.get("model_type") in _OFFSET_POSITIONS:
        # MPNet has its padding at 1 whatever its configuration says
        padding = 1 if found.config["model_type"] == "mpnet" else int(found.config.get("pad_token_id") or 0)
        positions -= padding + 1
    if config.max_tokens is not None and positions is not None and config.max_tokens > positions:
        raise EncoderError(
            f"encoder.max_tokens is {config.max_tokens}, and model {reference} has positions for {positions} tokens; "
            f"set it to {positions} at most"
        )
    limits = [int(limit) for limit in (config.max_tokens or found.max_tokens, positions) if limit is not None]
    if not limits:
        raise EncoderError(f"model {reference} does not say how many tokens it takes; set encoder.max_tokens")
    return min(limits)


def _is_relative(config: Mapping[str, Any]) -> bool:
    """Return whether a network knows only distances between tokens, not a table of positions."""
    rotary = any(name.startswith("rope_") or "_rope_" in name or "rotary_emb" in name for name in config)
    biased = config.get("relative_attention") and config.get("position_biased_input") is False
    return bool(rotary or biased or config.get("model_type") in ENCODER_HALVES)


def _dim(config: EncoderConfig, found: Folder, pooling: str, reference: str) -> int:
    """Return the components of a vector. Raises EncoderError if the head's modules do not fit, or for too many."""
    if found.kind == "static":
        width = table_shape(found.path, reference)[1]
    else:
        projection = found.config.get("projection_dim") if found.kind == "dpr" else None
        width = int(projection or _number(found, reference, "hidden_size", "dim", "d_model", "n_embd"))
    width *= len(pooling.split("+"))
    for module in found.head:
        if module.inputs not in (0, width):
            raise EncoderError(
                f"model {reference}: its module {module.kind} in {module.folder} takes {module.inputs} components, and "
                f"gets {width}; fetch the whole folder again, or leave encoder.pooling out"
            )
        width = module.outputs or width
    if config.dimensions is not None and config.dimensions > width:
        raise EncoderError(
            f"encoder.dimensions is {config.dimensions}, and model {reference} gives {width} components; set it to "
            f"{width} at most"
        )
    return min(width, config.dimensions or found.dimensions or width)


def _number(found: Folder, reference: str, *names: str) -> int:
    """Return the first of these fields of config.json that is there; architectures name them differently."""
    for name in names:
        if isinstance(found.config.get(name), int):
            return int(found.config[name])
    raise EncoderError(
        f"model {reference}: {found.path / 'config.json'} has no {names[0]}; name a model that encodes text"
    )
