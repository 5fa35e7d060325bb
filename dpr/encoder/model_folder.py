"""The kinds of model folders, and where each of them states how its vectors are made.

sentence-transformers folders state it in modules.json and the files that it names, Hugging Face DPR checkpoints by
their architecture. Plain BERT-like models do not state it: the recipe names their pooling.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dpr.encoder.model_files import read_document, read_json
from dpr.errors import EncoderError

Side = Literal["passage", "question"]
Kind = Literal["sentence-transformers", "dpr", "plain"]

DPR_MAX_TOKENS = 256
"""The paper's released code cuts its inputs to this many tokens."""
DPR_SIDES: Mapping[str, Side] = {"DPRContextEncoder": "passage", "DPRQuestionEncoder": "question"}
"""Architecture → what it encodes."""
POOLINGS = ("cls", "mean", "max")

_PROMPTS: Mapping[Side, tuple[str, ...]] = {"passage": ("document", "passage", "corpus"), "question": ("query",)}
_LENGTHS: Mapping[Side, str] = {"passage": "document_length", "question": "query_length"}
_FLAGS = {  # sentence-transformers before 5.2 wrote these; since then there is one field, pooling_mode
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Folder:
    """What a model folder states; the recipe may override the last six fields."""

    path: Path
    """The folder that holds config.json and the weights: the model's own, or a subfolder of it."""
    config: Mapping[str, Any]
    """config.json."""
    kind: Kind
    architecture: str
    pooling: str | None
    """None if the folder does not state it."""
    normalize: bool
    max_tokens: int | None
    """None if the folder does not state it; then the model's positions are the limit."""
    prefix: str
    title_join: str
    lowercase: bool
    """Whether texts are lowercased before the tokenizer sees them."""


def read_folder(folder: Path, reference: str, side: Side) -> Folder:
    """Read what the model in `folder` states about encoding passages or questions.

    Raises EncoderError for a model of an unsupported kind.
    """
    modules = _modules(folder, reference)
    path = folder / modules["Transformer"] if modules else folder
    config = read_json(path / "config.json", reference)
    architecture = str((config.get("architectures") or ["unknown"])[0])
    if config.get("is_encoder_decoder"):
        raise EncoderError(
            f"model {reference} is the encoder-decoder {architecture}; only plain encoders are supported"
        )
    plain = Folder(
        path, config, "plain", architecture, None, False, _tokenizer_limit(path, reference), "", "space", False
    )
    if modules:
        return _sentence_transformers(plain, folder, modules, reference, side)
    if architecture in DPR_SIDES:
        return replace(plain, kind="dpr", pooling="cls", max_tokens=DPR_MAX_TOKENS, title_join="pair")
    return plain


def _modules(folder: Path, reference: str) -> dict[str, str]:
    """Return class name → subfolder of a sentence-transformers folder's modules; {} for other folders."""
    listed = read_document(folder / "modules.json", reference, optional=True)
    if not listed:
        return {}
    try:
        pairs = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in listed]
    except (TypeError, KeyError) as error:
        raise EncoderError(f"model {reference}: modules.json is not a list of modules with type and path") from error
    names = [name for name, _ in pairs]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise EncoderError(
            f"model {reference} is made of the modules {', '.join(names)}; only Transformer, Pooling and, after them, "
            "Normalize are supported, so name another model"
        )
    for name, place in pairs:
        if not (folder / place).resolve().is_relative_to(folder.resolve()):
            raise EncoderError(f"model {reference}: modules.json puts {name} at {place!r}, outside the model's folder")
    return dict(pairs)


def _sentence_transformers(
    plain: Folder, folder: Path, modules: Mapping[str, str], reference: str, side: Side
) -> Folder:
    settings = read_json(plain.path / "sentence_bert_config.json", reference, optional=True)
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction" or settings.get("query_expansion"):
        raise EncoderError(
            f"model {reference} is made for {task} or expands queries; only dense encoders are supported"
        )
    pooling = read_json(folder / modules["Pooling"] / "config.json", reference)
    prompts = read_json(folder / "config_sentence_transformers.json", reference, optional=True).get("prompts") or {}
    prefix = next((prompts[name] for name in _PROMPTS[side] if prompts.get(name)), "")
    if prefix and not pooling.get("include_prompt", True):
        raise EncoderError(
            f"model {reference} leaves its prompt out of pooling, which is not supported; name another model"
        )
    stated = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    lengths = (settings.get(_LENGTHS[side]), stated.get("model_max_length"), settings.get("max_seq_length"))
    return replace(
        plain,
        kind="sentence-transformers",
        pooling=_pooling(pooling, reference),
        normalize="Normalize" in modules,
        max_tokens=next((int(length) for length in lengths if length), plain.max_tokens),
        prefix=str(prefix),
        lowercase=bool(settings.get("do_lower_case")),
    )


def _pooling(settings: Mapping[str, Any], reference: str) -> str:
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _FLAGS.items() if settings.get(flag)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise EncoderError(
            f"model {reference} pools by {' and '.join(map(str, modes))}; one of {', '.join(POOLINGS)} is supported, "
            "so name another model"
        )
    return str(modes[0])


def _tokenizer_limit(path: Path, reference: str) -> int | None:
    """Return `model_max_length` of the tokenizer; None if it has no limit (transformers then writes a huge number)."""
    limit = read_json(path / "tokenizer_config.json", reference, optional=True).get("model_max_length")
    return int(limit) if limit is not None and limit < 10**6 else None
