"""Networks as transformers loads them. Importing this module takes seconds, which static embeddings avoid."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, DPRContextEncoder, DPRQuestionEncoder
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from dpr.encoder.model_files import read_json
from dpr.encoder.model_folder import ENCODER_HALVES
from dpr.encoder.tower import TowerSpec
from dpr.errors import EncoderError

_DPR = {
    "DPRContextEncoder": (DPRContextEncoder, "ctx_encoder"),
    "DPRQuestionEncoder": (DPRQuestionEncoder, "question_encoder"),
}

_DIRECTIONS = ("is_causal", "use_bidirectional_attention")
"""Fields of a decoder's configuration that say whether its tokens look ahead."""


def load_tower(tower: TowerSpec) -> tuple[Any, nn.Module | None]:
    """Load a tower's network in float32 on the CPU, and the projection after it for some DPR checkpoints.

    Raises EncoderError if transformers cannot load it, or if weights that its configuration calls for are missing.
    """
    model_type = known_type(tower.folder, tower.reference)
    model_class, attribute = _DPR.get(tower.architecture, (_class_of(tower.architecture, model_type), ""))
    loaded = load_weights(model_class, tower.folder, tower.reference, unused="pooler")
    loaded.config.use_cache = False  # otherwise decoders would keep the keys and values of every token
    if not attribute:
        return loaded, None
    inner = getattr(loaded, attribute)
    return inner.bert_model, inner.encode_proj if inner.projection_dim > 0 else None


def known_type(folder: Path, reference: str) -> str:
    """Return the type of the network in a folder. Raises EncoderError if transformers does not know it."""
    config = read_json(folder / "config.json", reference)
    found = config.get("model_type")
    if found not in CONFIG_MAPPING:
        raise EncoderError(
            f"model {reference} is of type {found!r}, which transformers does not know, and "
            "code that comes with a model is never run; name a model of a known type"
        )
    _check_direction(config, str(found), reference)
    return str(found)


def _check_direction(config: Mapping[str, Any], model_type: str, reference: str) -> None:
    """Raise EncoderError if code that is not run may let a decoder look ahead, which its configuration does not state.

    gte-Qwen2 and stella are such models: transformers' own networks would silently give other vectors.
    """
    code = next((value for name, value in (config.get("auto_map") or {}).items() if name.startswith("AutoModel")), None)
    is_decoder = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if code is not None and is_decoder and not any(name in config for name in _DIRECTIONS):
        raise EncoderError(
            f"model {reference} brings code of its own for a decoder ({code}), which is never run and may let tokens "
            'look ahead; write "is_causal": false into its config.json if they do, as in gte-Qwen2 and stella, else '
            '"is_causal": true, or name another model'
        )


def load_weights(model_class: Any, folder: Path, reference: str, *, unused: str | None = None) -> Any:
    """Load a network of one of transformers' classes in float32 on the CPU, for inference.

    Weights whose names contain `unused` may be missing. Raises EncoderError if others are, or if it cannot be loaded.
    """
    try:
        with quiet_transformers():
            loaded, info = model_class.from_pretrained(folder, output_loading_info=True, **_LOADING)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EncoderError(
            f"model {reference} cannot be loaded ({' '.join(str(error).split())[:300]}); fetch its folder again"
        ) from error
    missing = sorted(name for name in info["missing_keys"] if unused is None or unused not in name)
    if missing:
        others = sorted(info["unexpected_keys"])
        instead = f", and has others, e.g. {others[0]}, so that they are those of another network" if others else ""
        raise EncoderError(
            f"model {reference} lacks {len(missing)} of the weights that a {type(loaded).__name__} needs, e.g. "
            f"{missing[0]}{instead}; fetch its folder again, or name another model"
        )
    return loaded.eval()


def _class_of(architecture: str, model_type: str) -> Any:
    """Return the class to load with: of an encoder-decoder the encoder alone, otherwise what transformers chooses."""
    if not architecture.endswith("EncoderModel") and model_type in ENCODER_HALVES:
        architecture = {"longt5": "LongT5EncoderModel", "umt5": "UMT5EncoderModel"}.get(
            model_type, f"{model_type.upper()}EncoderModel"
        )
    return getattr(transformers, architecture) if architecture.endswith("EncoderModel") else AutoModel


# without attn_implementation, so that networks that have no sdpa in transformers compute attention in plain PyTorch
_LOADING = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False, "dtype": torch.float32}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bar and its report on weights that are not used."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
