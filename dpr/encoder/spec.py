"""The encoder spec: everything that decides what vectors an encoder gives, and its fingerprint, the `encoder_id`.

A model folder is read by its own files: sentence-transformers folders by modules.json, Hugging Face DPR checkpoints by their
architecture, other BERT-like models by what the recipe states.
"""

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dpr.encoder.sources import model_folder
from dpr.errors import EncoderError
from dpr.fingerprint import fingerprint
from dpr.recipe import EncoderConfig

DPR_MAX_TOKENS = 256
"""Passages of 100 words are cut to 256 word pieces in the released DPR code."""
_POOLING_FLAGS = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}

Kind = Literal["sentence-transformers", "dpr", "plain"]


@dataclass(frozen=True)
class TowerSpec:
    """One encoder: a model and how its token vectors become one."""

    reference: str
    folder: Path
    """Where it lies on this machine; not part of what it is."""
    digest: str
    """Hex blake2b over the files that decide its vectors: weights, configuration, tokenizer."""
    architecture: str
    pooling: str
    normalize: bool
    prefix: str
    max_tokens: int
    title_join: str
    dim: int

    def identity(self) -> dict[str, Any]:
        """All that its vectors depend on, as JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in ("reference", "folder")}


@dataclass(frozen=True)
class EncoderSpec:
    """The two towers E_P and E_Q (paper, section 3.1); for most models the same network with other prefixes."""

    passage: TowerSpec
    question: TowerSpec
    config: EncoderConfig

    @property
    def dim(self) -> int:
        return self.passage.dim

    @property
    def encoder_id(self) -> str:
        """Fingerprint: vectors of different encoder ids never meet."""
        return fingerprint({"passage": self.passage.identity(), "question": self.question.identity()})

    def describe(self) -> dict[str, Any]:
        """What a snapshot keeps: the id, both towers, and the configuration that resolves to it again."""
        return {
            "encoder_id": self.encoder_id,
            "dim": self.dim,
            "passage": {"reference": self.passage.reference, **self.passage.identity()},
            "question": {"reference": self.question.reference, **self.question.identity()},
            "config": self.config.model_dump(mode="json", exclude={"precision", "tokens_per_batch"}),
        }


def resolve(config: EncoderConfig) -> EncoderSpec:
    """Find the model folders and read how they encode; what the recipe states wins.

    Raises EncoderError for a model that cannot be used, or for two towers that do not fit each other.
    """
    passage = _tower(config, config.model, "passage")
    question = _tower(config, config.question_model or config.model, "question")
    if passage.dim != question.dim:
        raise EncoderError(
            f"the passage tower {passage.reference} gives {passage.dim} dimensions and the question tower "
            f"{question.reference} gives {question.dim}; their vectors cannot be compared, so name two that belong together"
        )
    return EncoderSpec(passage, question, config)


def _tower(config: EncoderConfig, reference: str, side: Literal["passage", "question"]) -> TowerSpec:
    folder = model_folder(reference, config.revision)
    modules = _modules(folder)
    model = _read_json(folder / "config.json")
    architecture = str((model.get("architectures") or ["BertModel"])[0])
    kind = _kind(reference, modules, architecture, side)
    weights = _weights(folder)
    pooling, normalize, max_tokens, prompts = _from_folder(folder, modules, kind, config)
    positions = int(model.get("max_position_embeddings", 512))
    offset = 2 if model.get("model_type") in ("mpnet", "roberta", "xlm-roberta", "camembert") else 0
    limit = config.max_tokens or min(max_tokens, positions - offset)
    if limit > positions - offset:
        raise EncoderError(
            f"encoder.max_tokens is {limit}, and model {reference} has positions for {positions - offset} tokens; lower it"
        )
    _check_vocabulary(folder, reference, int(model.get("vocab_size", 0)))
    names = {"passage": ("passage", "document"), "question": ("query", "question")}[side]
    default_prefix = next((prompts[name] for name in names if name in prompts), "")
    stated = config.passage_prefix if side == "passage" else config.question_prefix
    return TowerSpec(
        reference=reference,
        folder=folder,
        digest=_digest(folder, weights),
        architecture=architecture,
        pooling=pooling,
        normalize=normalize,
        prefix=default_prefix if stated is None else stated,
        max_tokens=limit,
        title_join=config.title_join or ("pair" if kind == "dpr" else "space"),
        dim=int(model.get("projection_dim") or model["hidden_size"]) if kind == "dpr" else int(model["hidden_size"]),
    )


def _kind(reference: str, modules: list[str], architecture: str, side: str) -> Kind:
    if modules:
        return "sentence-transformers"
    towers = {"DPRContextEncoder": "passage", "DPRQuestionEncoder": "question"}
    if architecture not in towers:
        return "plain"
    if towers[architecture] != side:
        raise EncoderError(
            f"model {reference} is a {architecture}, which encodes {towers[architecture]}s, and is named for {side}s; set "
            "encoder.model to the context encoder and encoder.question_model to the question encoder"
        )
    return "dpr"


def _from_folder(
    folder: Path, modules: list[str], kind: Kind, config: EncoderConfig
) -> tuple[str, bool, int, dict[str, str]]:
    """Pooling, normalisation, token limit and prompts, as the folder says where the recipe does not."""
    if kind == "dpr":
        return config.pooling or "cls", bool(config.normalize), DPR_MAX_TOKENS, {}
    if kind == "plain":
        if config.pooling is None:
            raise EncoderError(f"model {folder} does not say how it pools; set encoder.pooling to cls, mean or max")
        return config.pooling, bool(config.normalize), 512, {}
    settings = _read_json(folder / "sentence_bert_config.json", optional=True)
    prompts = _read_json(folder / "config_sentence_transformers.json", optional=True).get("prompts") or {}
    limit = int(
        settings.get("max_seq_length") or _read_json(folder / "tokenizer_config.json").get("model_max_length", 512)
    )
    normalize = "Normalize" in modules if config.normalize is None else config.normalize
    return config.pooling or _pooling(folder), normalize, min(limit, 32_768), prompts


def _modules(folder: Path) -> list[str]:
    """Class names of a sentence-transformers folder's modules; empty for other folders."""
    if not (folder / "modules.json").exists():
        return []
    names = [str(module["type"]).rpartition(".")[2] for module in json.loads((folder / "modules.json").read_text())]
    unknown = [name for name in names if name not in ("Transformer", "Pooling", "Normalize")]
    if unknown or names[:2] != ["Transformer", "Pooling"]:
        raise EncoderError(
            f"model {folder} is made of {', '.join(names)}; only Transformer, Pooling and Normalize are supported"
        )
    return names


def _pooling(folder: Path) -> str:
    modules = json.loads((folder / "modules.json").read_text())
    place = next(str(module["path"]) for module in modules if str(module["type"]).endswith("Pooling"))
    settings = _read_json(folder / place / "config.json")
    if isinstance(settings.get("pooling_mode"), str):
        chosen = [settings["pooling_mode"]]
    else:
        chosen = [
            name.removeprefix("pooling_mode_")
            for name, on in settings.items()
            if name.startswith("pooling_mode_") and on is True
        ]
        chosen = [_POOLING_FLAGS.get(name, name) for name in chosen]
    if len(chosen) != 1 or chosen[0] not in _POOLING_FLAGS.values():
        raise EncoderError(
            f"model {folder} pools by {' and '.join(chosen)}; only cls, mean or max, one of them, is supported"
        )
    return str(chosen[0])


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if optional:
            return {}
        raise EncoderError(
            f"model folder {path.parent} has no {path.name}; name the folder of a whole model"
        ) from error
    except ValueError as error:
        raise EncoderError(f"{path} is not JSON: {error}") from error
    return dict(document)


def _weights(folder: Path) -> list[Path]:
    found = sorted(folder.glob("model*.safetensors"))
    if found:
        return found
    if list(folder.glob("*.bin")):
        raise EncoderError(
            f"model folder {folder} has only pickled weights (.bin), which can run code; convert them to model.safetensors"
        )
    raise EncoderError(f"model folder {folder} has no weights (model.safetensors)")


def _check_vocabulary(folder: Path, reference: str, vocabulary: int) -> None:
    tokenizer = _read_json(folder / "tokenizer.json")
    pieces = tokenizer.get("model", {}).get("vocab", {})
    added = [int(token["id"]) for token in tokenizer.get("added_tokens", [])]
    numbers = pieces.values() if isinstance(pieces, dict) else range(len(pieces))
    largest = max([*numbers, *added], default=-1)
    if largest >= vocabulary:
        raise EncoderError(
            f"the tokenizer of {reference} gives token ids up to {largest}, and its model knows {vocabulary}; they do not "
            "belong together, so get the model folder anew"
        )


def _digest(folder: Path, weights: list[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    others = [folder / name for name in ("config.json", "tokenizer.json")]
    for path in [*weights, *others]:
        digest.update(struct.pack("<Q", path.stat().st_size))
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
