"""The network of a tower, as transformers loads it, and the protocol that every forward pass implements.

Shapes: B rows of a batch, L tokens of its longest row, H hidden size, D dimensions.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, DPRContextEncoder, DPRQuestionEncoder
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from dpr.encoder.model_files import read_json
from dpr.encoder.tokens import TokenBatch
from dpr.encoder.tower import TowerSpec
from dpr.errors import EncoderError

_DPR = {
    "DPRContextEncoder": (DPRContextEncoder, "ctx_encoder"),
    "DPRQuestionEncoder": (DPRQuestionEncoder, "question_encoder"),
}


class Forward(Protocol):
    """One way to run a tower over a batch of rows."""

    def __call__(self, tokens: TokenBatch) -> Tensor:
        """Return vectors (B, D), float32, on the CPU, in the order of the rows of `tokens`."""

    def batches(self, lengths_N: npt.NDArray[np.int64], tokens: int) -> list[npt.NDArray[np.int64]]:
        """Return the row numbers of each batch; a batch costs at most `tokens` tokens, or is one row."""


class Network:
    """A loaded transformers encoder and, for some DPR checkpoints, the projection after it."""

    def __init__(self, body: Any, projection: nn.Module | None) -> None:
        self.body, self._projection = body, projection
        self.pad_id = int(getattr(body.config, "pad_token_id", None) or 0)
        self.vocabulary = int(body.config.vocab_size)
        self._takes_types = "token_type_ids" in inspect.signature(body.forward).parameters

    def to(self, dtype: torch.dtype, device: torch.device) -> "Network":
        """Move and convert the network in place, and return it."""
        for module in (self.body, self._projection):
            if module is not None:
                module.to(device=device, dtype=dtype)
        return self

    def hidden(self, ids_BL: Tensor, types_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Return token vectors (B, L, H); `mask_BL` is 1 at real tokens, and None if all tokens are real."""
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if self._takes_types:
            inputs["token_type_ids"] = types_BL
        hidden_BLH: Tensor = self.body(**inputs).last_hidden_state
        return hidden_BLH

    def project(self, pooled_BH: Tensor) -> Tensor:
        """Turn pooled vectors (B, H) in float32 into vectors (B, D)."""
        if self._projection is None:
            return pooled_BH
        weight = next(self._projection.parameters())
        vectors_BD: Tensor = self._projection(pooled_BH.to(weight.dtype)).float()
        return vectors_BD


def load_network(tower: TowerSpec) -> Network:
    """Load a tower's network in float32 on the CPU, ready to encode.

    Raises EncoderError if transformers cannot load it, or if weights that its configuration calls for are missing.
    """
    config = read_json(tower.folder / "config.json", tower.reference)
    if config.get("model_type") not in CONFIG_MAPPING:
        raise EncoderError(
            f"model {tower.reference} is of type {config.get('model_type')!r}, which transformers does not know, and "
            "code that comes with a model is never run; name a model of a known type"
        )
    model_class, attribute = _DPR.get(tower.architecture, (AutoModel, ""))
    try:
        with _quietly():
            loaded, info = model_class.from_pretrained(tower.folder, output_loading_info=True, **_LOADING)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EncoderError(
            f"model {tower.reference} cannot be loaded ({' '.join(str(error).split())[:300]}); fetch its folder again"
        ) from error
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)  # a head that is not used
    if missing:
        raise EncoderError(
            f"model {tower.reference} lacks {len(missing)} of the weights that its config.json calls for, e.g. "
            f"{missing[0]}; fetch its folder again"
        )
    loaded.eval()
    if not attribute:
        return Network(loaded, None)
    inner = getattr(loaded, attribute)
    return Network(inner.bert_model, inner.encode_proj if inner.projection_dim > 0 else None)


_LOADING = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32, "attn_implementation": "sdpa"}


@contextmanager
def _quietly() -> Iterator[None]:
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
