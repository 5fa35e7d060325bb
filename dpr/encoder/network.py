"""The network of a tower, as transformers loads it, and the protocol that every forward pass implements.

Shapes: B rows of a batch, L tokens of its longest row, H hidden size, D dimensions.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, DPRContextEncoder, DPRQuestionEncoder
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from dpr.encoder.head import load_head
from dpr.encoder.model_files import read_json
from dpr.encoder.model_folder import ENCODER_HALVES
from dpr.encoder.static import StaticBody
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec
from dpr.errors import EncoderError

_DPR = {
    "DPRContextEncoder": (DPRContextEncoder, "ctx_encoder"),
    "DPRQuestionEncoder": (DPRQuestionEncoder, "question_encoder"),
}

_DIRECTIONS = ("is_causal", "use_bidirectional_attention")
"""Fields of a decoder's configuration that say whether its tokens look ahead."""


class Forward(Protocol):
    """One way to run a tower over a batch of rows."""

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """Return vectors (B, D), float32, on the CPU, in the order of the rows of `tokens`."""

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """Return the row numbers of each batch; a batch costs at most `tokens` tokens, or is one row."""


class Network:
    """A loaded encoder, the projection after it for some DPR checkpoints, and the head of its tower."""

    def __init__(self, body: Any, projection: nn.Module | None, tower: TowerSpec) -> None:
        self.body, self._projection = body, projection
        self._head, self._dim, self._normalize = load_head(tower.head, tower.reference), tower.dim, tower.normalize
        self.pad_id = int(getattr(body.config, "pad_token_id", None) or 0)
        self.vocabulary = int(body.config.vocab_size)
        self._takes_types = "token_type_ids" in inspect.signature(body.forward).parameters

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Return the modules that have weights: body, projection if there is one, head."""
        parts = {"body": self.body, "projection": self._projection, "head": self._head}
        return {name: module for name, module in parts.items() if module is not None}

    def to(self, dtype: torch.dtype, device: torch.device) -> "Network":
        """Move and convert the network in place, and return it."""
        for module in (self.body, self._projection):
            if module is not None:
                module.to(device=device, dtype=dtype)
        self._head.to(device)
        return self

    def hidden(self, ids_BL: Tensor, types_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Return token vectors (B, L, H); `mask_BL` is 1 at real tokens, and None if all tokens are real."""
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if self._takes_types:
            inputs["token_type_ids"] = types_BL
        hidden_BLH: Tensor = self.body(**inputs).last_hidden_state
        return hidden_BLH

    def project(self, pooled_BH: Tensor) -> Tensor:
        """Turn pooled vectors (B, H) in float32 into vectors (B, D): projected, cut and scaled as the tower says."""
        if self._projection is not None:
            weight = next(self._projection.parameters())
            pooled_BH = self._projection(pooled_BH.to(weight.dtype)).float()
        vectors_BD: Tensor = self._head(pooled_BH)[:, : self._dim]
        return nn.functional.normalize(vectors_BD, dim=-1) if self._normalize else vectors_BD


def load_network(tower: TowerSpec) -> Network:
    """Load a tower's network in float32 on the CPU, ready to encode.

    Raises EncoderError if transformers cannot load it, or if weights that its configuration calls for are missing.
    """
    if tower.architecture == "StaticEmbedding":
        return Network(StaticBody(tower.folder, tower.reference), None, tower)
    model_type = known_type(tower.folder, tower.reference)
    model_class, attribute = _DPR.get(tower.architecture, (_class_of(tower.architecture, model_type), ""))
    loaded = load_weights(model_class, tower.folder, tower.reference, unused="pooler")
    loaded.config.use_cache = False  # decoders would keep the keys and values of every token
    if not attribute:
        return Network(loaded, None, tower)
    inner = getattr(loaded, attribute)
    return Network(inner.bert_model, inner.encode_proj if inner.projection_dim > 0 else None, tower)


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
