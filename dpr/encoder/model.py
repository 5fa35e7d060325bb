"""The network of a tower: a transformers model, pooling, projection and normalisation.

Shapes: B rows of a batch, L tokens, H hidden size, D dimensions.
"""

import torch
from torch import nn
from transformers import AutoModel, DPRContextEncoder, DPRQuestionEncoder
from transformers.utils import logging

from dpr.encoder.spec import TowerSpec
from dpr.errors import EncoderError

_DPR = {
    "DPRContextEncoder": (DPRContextEncoder, "ctx_encoder"),
    "DPRQuestionEncoder": (DPRQuestionEncoder, "question_encoder"),
}


class Tower(nn.Module):
    """From token ids to vectors."""

    def __init__(self, body: nn.Module, projection: nn.Module | None, pooling: str, normalize: bool) -> None:
        super().__init__()
        self.body, self.projection = body, projection
        self._pooling, self._normalize = pooling, normalize

    @property
    def vocabulary(self) -> int:
        return int(self.body.config.vocab_size)

    @property
    def positions(self) -> int:
        return int(self.body.config.max_position_embeddings) - 2

    def forward(self, ids_BL: torch.Tensor, types_BL: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor:
        """Vectors (B, D); `mask_BL` (bool) is True at real tokens, None if all are."""
        inputs = {"input_ids": ids_BL, "attention_mask": mask_BL}
        if getattr(self.body.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = types_BL
        hidden_BLH = self.body(**inputs).last_hidden_state
        pooled_BH = pool(hidden_BLH, mask_BL, self._pooling)
        vectors_BD = pooled_BH if self.projection is None else self.projection(pooled_BH)
        return nn.functional.normalize(vectors_BD, dim=-1) if self._normalize else vectors_BD


def pool(hidden_BLH: torch.Tensor, mask_BL: torch.Tensor | None, pooling: str) -> torch.Tensor:
    """One vector (B, H) a row: of the first token (cls), or mean or maximum over real tokens."""
    if pooling == "cls":
        return hidden_BLH[:, 0]
    if mask_BL is None:
        return hidden_BLH.mean(1) if pooling == "mean" else hidden_BLH.amax(1)
    if pooling == "max":
        return hidden_BLH.masked_fill(~mask_BL[..., None], float("-inf")).amax(1)
    weights_BL1 = mask_BL[..., None].to(hidden_BLH.dtype)
    return (hidden_BLH * weights_BL1).sum(1) / weights_BL1.sum(1)


def load_tower(spec: TowerSpec) -> Tower:
    """Load a tower in float32 from safetensors; EncoderError if its weights are not those of its configuration."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    known, attribute = _DPR.get(spec.architecture, (None, ""))
    try:
        if known is None:
            body, info = AutoModel.from_pretrained(spec.folder, output_loading_info=True, **_LOADING)
            projection = None
        else:
            whole, info = known.from_pretrained(spec.folder, output_loading_info=True, **_LOADING)
            inner = getattr(whole, attribute)
            body, projection = inner.bert_model, inner.encode_proj if inner.projection_dim > 0 else None
    except (OSError, ValueError, RuntimeError) as error:
        raise EncoderError(f"model {spec.reference} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name and "position_ids" not in name)
    if missing:
        raise EncoderError(
            f"model {spec.reference} lacks {len(missing)} weights of its configuration, e.g. {missing[0]}"
        )
    return Tower(body, projection, spec.pooling, spec.normalize)


_LOADING = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32, "attn_implementation": "sdpa"}
