"""The description of a cross-encoder in its folder, in the forms in which sentence-transformers saves its CrossEncoder.

A cross-encoder reads a question and a passage together, and gives them one score. It makes no vectors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpr.encoder.model_files import read_document, read_json
from dpr.encoder.model_folder import SETTINGS, Folder, tokenizer_limit
from dpr.encoder.modules import activation_name
from dpr.encoder.sources import fetch_model, pin_commit
from dpr.encoder.tower import TowerSpec, folder_digest, token_limit
from dpr.errors import EncoderError
from dpr.fingerprint import fingerprint
from dpr.plurals import counted
from dpr.recipe import EncoderConfig
from dpr.recipe_service import RerankConfig

HEAD = "ForSequenceClassification"
"""The ending of the name of an architecture with a head that scores."""
Json = Mapping[str, Any]
"""A JSON object of a model folder, whose fields are of many types."""
_KIND = f"a re-ranker is a cross-encoder (an architecture that ends with {HEAD}), so name one"


@dataclass(frozen=True)
class CrossEncoderSpec:
    """A cross-encoder, found on this machine and not loaded yet."""

    tower: TowerSpec
    """How a pair becomes tokens: the question takes the place of a tower's title."""
    activation: str
    """The function from the output for a label to a score: one of `dpr.encoder.modules.ACTIVATIONS`."""
    label: int
    """The label whose output is the score."""
    name: str
    """Where the model comes from, with the commit of a hub model."""

    @property
    def reranker_id(self) -> str:
        """Return the fingerprint of all that scores depend on."""
        tower = self.tower
        return fingerprint(
            {
                "digest": tower.digest,
                "prefix": tower.prefix,
                "max_tokens": tower.max_tokens,
                "lowercase": tower.lowercase,
                "activation": self.activation,
                "label": self.label,
            }
        )


def resolve_cross_encoder(config: RerankConfig) -> CrossEncoderSpec:
    """Find the model that re-ranks, and read how it scores. Raises EncoderError for a model that cannot."""
    found = fetch_model(config.model, config.revision)
    path = _transformer_folder(found.folder, config.model)
    document = read_json(path / "config.json", config.model)
    stated = read_json(found.folder / "config_sentence_transformers.json", config.model, optional=True)
    # sentence-transformers reads them only where modules.json says that it saved the folder
    settings = _settings(path, config.model) if (found.folder / "modules.json").exists() else {}
    labels = _labels(document)
    return CrossEncoderSpec(
        _read_pairs(path, document, stated, settings, config.model),
        _activation(stated, document, labels, config.model),
        _label(config, labels),
        pin_commit(config.model, found.commit) if found.commit else config.model,
    )


def pin_cross_encoder(config: RerankConfig) -> RerankConfig:
    """Return the configuration with the commit of a hub model, so that all who load it load the same files.

    Raises EncoderError as `resolve_cross_encoder` does.
    """
    return config.model_copy(update={"model": resolve_cross_encoder(config).name})


def _read_pairs(path: Path, document: Json, stated: Json, settings: Json, reference: str) -> TowerSpec:
    """Return how pairs become tokens. Raises EncoderError for a network that cannot score them."""
    architecture = str((document.get("architectures") or ["network of unknown architecture"])[0])
    if not architecture.endswith(HEAD):
        raise EncoderError(f"model {reference} is a {architecture}, which has no head that scores; {_KIND}")
    if not isinstance(document.get("pad_token_id"), int):
        raise EncoderError(
            f"model {reference}: {path / 'config.json'} has no pad_token_id, without which pairs of different lengths "
            "cannot be scored together; name another model"
        )
    folder = Folder(path, document, "plain", architecture, None, _stated_limit(settings, path, reference))
    return TowerSpec(
        reference=reference,
        folder=path.absolute(),
        architecture=architecture,
        digest=folder_digest(folder, reference),
        pooling="cls",
        normalize=False,
        prefix=str((stated.get("prompts") or {}).get(stated.get("default_prompt_name")) or ""),
        max_tokens=token_limit(EncoderConfig(model=reference), folder, reference),
        title_join="pair",
        lowercase=bool(settings.get("do_lower_case")),
        dim=_labels(document),
    )


def _transformer_folder(folder: Path, reference: str) -> Path:
    """Return the folder of the network: the model's own, or the one that modules.json names.

    Raises EncoderError if modules.json has more than a Transformer, as that of an encoder of single texts has.
    """
    listed = read_document(folder / "modules.json", reference, optional=True)
    if not listed:
        return folder
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in listed] if isinstance(listed, list) else []
    if kinds != ["Transformer"]:
        raise EncoderError(
            f"model {reference} consists of {', '.join(kinds) or 'unknown modules'} (modules.json), as models do that "
            f"encode single texts, not pairs; {_KIND}"
        )
    path = (folder / str(listed[0].get("path", ""))).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise EncoderError(f"model {reference}: modules.json names {path}, outside of its folder; fetch it again")
    return path


def _settings(path: Path, reference: str) -> Json:
    documents = (read_json(path / name, reference, optional=True) for name in SETTINGS)
    return next(filter(None, documents), {})


def _stated_limit(settings: Json, path: Path, reference: str) -> int | None:
    stated = settings.get("processor_kwargs") or settings.get("tokenizer_args") or {}
    lengths = (stated.get("model_max_length"), settings.get("max_seq_length"))
    return next((int(length) for length in lengths if length), tokenizer_limit(path, reference))


def _labels(document: Json) -> int:
    """Return the number of labels, as transformers counts them: two if the configuration does not say."""
    names = document.get("id2label")
    return len(names) if names else int(document.get("num_labels", 2))


def _label(config: RerankConfig, labels: int) -> int:
    if config.label is None and labels > 1:
        raise EncoderError(
            f"model {config.model} gives {labels} labels, and nothing says which one means that a passage answers; set "
            f"rerank.label (--rerank-label), from 0 to {labels - 1}, or name a model with one label"
        )
    if config.label is not None and config.label >= labels:
        raise EncoderError(
            f"rerank.label is {config.label}, and model {config.model} has {counted(labels, 'label')}; "
            f"set it to {labels - 1} at most"
        )
    return config.label or 0


def _activation(stated: Json, document: Json, labels: int, reference: str) -> str:
    """Return the activation that sentence-transformers applies: its three versions state it in three places."""
    path = (
        stated.get("activation_fn")
        or (document.get("sentence_transformers") or {}).get("activation_fn")
        or document.get("sbert_ce_default_activation_function")
    )
    if path is None:
        return "Sigmoid" if labels == 1 else "Identity"
    return activation_name(str(path), "a head", reference)
