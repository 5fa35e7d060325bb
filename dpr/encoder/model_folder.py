"""The kinds of model folders, and how each of them describes the making of its vectors.

sentence-transformers folders state it in modules.json and the files that it names, Hugging Face DPR checkpoints by
their architecture. Plain BERT-like models do not state it: the recipe names their pooling.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dpr.encoder.model_files import read_json
from dpr.encoder.modules import HeadModule, Module, read_head, read_modules
from dpr.errors import EncoderError

Side = Literal["passage", "question"]
Kind = Literal["sentence-transformers", "dpr", "plain", "static"]

DPR_MAX_TOKENS = 256
"""The paper's released code cuts its inputs to this many tokens."""
DPR_SIDES: Mapping[str, Side] = {"DPRContextEncoder": "passage", "DPRQuestionEncoder": "question"}
"""Architecture → what it encodes."""
POOLINGS = ("cls", "mean", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")
ENCODER_HALVES = ("longt5", "mt5", "t5", "umt5")
"""Types of encoder-decoders whose encoder alone makes vectors."""
UNLIMITED = 1_000_000
"""The token limit of models that have none, far beyond any passage."""

SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names that sentence-transformers gave to the settings of a Transformer module; the first one that is there counts."""

_PROMPTS: Mapping[Side, tuple[str, ...]] = {"passage": ("document", "passage", "corpus"), "question": ("query",)}
_LENGTHS: Mapping[Side, str] = {"passage": "document_length", "question": "query_length"}
_FLAGS = {  # sentence-transformers before 5.2 wrote these, in the order of the parts of a vector; now: pooling_mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Folder:
    """The description in a model folder; the recipe may override much of it."""

    path: Path
    """The folder that holds config.json and the weights: the model's own, or a subfolder of it."""
    config: Mapping[str, Any]
    """config.json."""
    kind: Kind
    architecture: str
    pooling: str | None
    """None if the folder does not state it; several poolings, whose vectors are concatenated, are joined by +."""
    max_tokens: int | None
    """None if the folder does not state it; then the model's positions are the limit."""
    prefix: str = ""
    title_join: str = "space"
    lowercase: bool = False
    """Whether texts are lowercased before the tokenizer sees them."""
    prompt_pooled: bool = True
    """Whether the tokens of the prefix count in pooling."""
    head: tuple[HeadModule, ...] = ()
    """The modules that change the pooled vector, in this order."""
    similarity: str | None = None
    """The function that compares two vectors, for example cosine; None if the folder does not state it."""
    dimensions: int | None = None
    """First components of a vector that are kept; None: all."""


def read_folder(folder: Path, reference: str, side: Side) -> Folder:
    """Read what the model in `folder` states about encoding passages or questions.

    Raises EncoderError for a model of an unsupported kind.
    """
    modules = read_modules(folder, reference)
    if modules and modules[0].kind == "StaticEmbedding":
        return _static(modules, folder, reference, side)
    path = modules[0].folder if modules else folder
    config = read_json(path / "config.json", reference)
    architecture = str((config.get("architectures") or ["unknown"])[0])
    if config.get("is_encoder_decoder") and config.get("model_type") not in ENCODER_HALVES:
        raise EncoderError(
            f"model {reference} is the encoder-decoder {architecture}; only plain encoders are supported"
        )
    plain = Folder(path, config, "plain", architecture, None, tokenizer_limit(path, reference))
    if modules:
        return _sentence_transformers(plain, folder, modules, reference, side)
    if architecture in DPR_SIDES:
        return replace(plain, kind="dpr", pooling="cls", max_tokens=DPR_MAX_TOKENS, title_join="pair")
    return plain


def _sentence_transformers(plain: Folder, folder: Path, modules: list[Module], reference: str, side: Side) -> Folder:
    documents = (read_json(plain.path / name, reference, optional=True) for name in SETTINGS)
    settings = next(filter(None, documents), None) or {}
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction" or settings.get("query_expansion"):
        raise EncoderError(
            f"model {reference} is made for {task} or expands queries; only dense encoders are supported"
        )
    pooling = read_json(modules[1].folder / "config.json", reference)
    stated = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    lengths = (settings.get(_LENGTHS[side]), stated.get("model_max_length"), settings.get("max_seq_length"))
    transformer = replace(
        plain,
        kind="sentence-transformers",
        pooling=_pooling(pooling, reference),
        max_tokens=next((int(length) for length in lengths if length), plain.max_tokens),
        lowercase=bool(settings.get("do_lower_case")),
        prompt_pooled=bool(pooling.get("include_prompt", True)),
        head=read_head(modules[2:], reference),
    )
    return _whole(transformer, folder, reference, side)


def _static(modules: list[Module], folder: Path, reference: str, side: Side) -> Folder:
    """Read a model with one vector for each token, independent of its context; a text's vector is their mean."""
    path = modules[0].folder
    truncation = read_json(path / "tokenizer.json", reference).get("truncation") or {}
    limit = int(truncation.get("max_length", UNLIMITED))
    found = Folder(path, {}, "static", "StaticEmbedding", "mean", limit, head=read_head(modules[1:], reference))
    return _whole(found, folder, reference, side)


def _whole(found: Folder, folder: Path, reference: str, side: Side) -> Folder:
    """Add what a sentence-transformers folder states about the whole model."""
    stated = read_json(folder / "config_sentence_transformers.json", reference, optional=True)
    prompts = stated.get("prompts") or {}
    similarity, dimensions = stated.get("similarity_fn_name"), stated.get("truncate_dim")
    return replace(
        found,
        prefix=str(next((prompts[name] for name in _PROMPTS[side] if prompts.get(name)), "")),
        similarity=None if similarity is None else str(similarity),
        dimensions=None if dimensions is None else int(dimensions),
    )


def _pooling(settings: Mapping[str, Any], reference: str) -> str:
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if settings.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if not modes or any(mode not in POOLINGS for mode in modes):
        raise EncoderError(
            f"model {reference} pools by {' and '.join(map(str, modes))}; {', '.join(POOLINGS)} are supported, so "
            "name another model"
        )
    return "+".join(modes)


def tokenizer_limit(path: Path, reference: str) -> int | None:
    """Return `model_max_length` of the tokenizer; None if it has no limit (transformers then writes a huge number)."""
    limit = read_json(path / "tokenizer_config.json", reference, optional=True).get("model_max_length")
    return int(limit) if limit is not None and limit < 10**6 else None
