"""Trained towers as folders that others read: sentence-transformers' layout, or Hugging Face DPR checkpoints."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor, nn

from dpr.encoder.model_files import OTHER_TOKENIZERS, TOKENIZER_FILES, read_json
from dpr.encoder.model_folder import DPR_SIDES, Side
from dpr.encoder.network import Network
from dpr.encoder.pretrained import quiet_transformers
from dpr.encoder.tower import TowerSpec
from dpr.errors import EncoderError

SavedFormat = Literal["sentence-transformers", "dpr"]
_TYPES = "sentence_transformers.models"
"""Package of the modules in modules.json; later versions have moved them, and still know this name."""
_FLAGS = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
_DPR_NAMES: Mapping[Side, tuple[str, str]] = {
    "passage": ("DPRContextEncoder", "ctx_encoder"),
    "question": ("DPRQuestionEncoder", "question_encoder"),
}
_METADATA = {"format": "pt"}
"""Metadata that transformers expects in a file of weights."""


def saved_format(wanted: str, spec: TowerSpec) -> SavedFormat:
    """Return the format that a tower is saved in. Raises EncoderError if it does not fit the wanted one."""
    if spec.architecture in DPR_SIDES:
        if wanted == "sentence-transformers":
            raise EncoderError(
                f"model {spec.reference} is a {spec.architecture}, whose projection sentence-transformers "
                "does not have; set save_as to auto or dpr"
            )
        return "dpr"
    if wanted != "dpr":
        return "sentence-transformers"
    model_type = read_json(spec.folder / "config.json", spec.reference).get("model_type")
    if model_type != "bert" or spec.pooling != "cls" or spec.normalize or spec.head:
        raise EncoderError(
            f"model {spec.reference} is of type {model_type}, pools by {spec.pooling} and "
            f"{'scales' if spec.normalize else 'does not scale'} vectors to length 1; a DPR checkpoint is a BERT that "
            "pools by cls and does not, without further modules, so set save_as to auto"
        )
    return "dpr"


def save_tower(network: Network, spec: TowerSpec, prompts: Mapping[str, str], folder: Path) -> None:
    """Save a tower as a sentence-transformers folder. `prompts`: what is put before a `query` and a `document`."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        network.body.save_pretrained(folder)
    _copy_tokenizer(spec, folder)
    pooled = spec.pooling.split("+")
    size = int(network.body.config.hidden_size)
    entries = [("", "Transformer"), ("1_Pooling", "Pooling")]
    pooling: dict[str, object] = {f"pooling_mode_{flag}": mode in pooled for mode, flag in _FLAGS.items()}
    pooling |= {"word_embedding_dimension": size, "include_prompt": spec.prompt_pooled}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    head = list(network.parts["head"].children())
    for module, loaded in zip(spec.head, head, strict=True):
        place = f"{len(entries)}_{module.kind}"
        entries.append((place, module.kind))
        _save_module(loaded, module.folder / "config.json" if module.kind != "Normalize" else None, folder / place)
    if spec.normalize:
        entries.append((f"{len(entries)}_Normalize", "Normalize"))
        (folder / entries[-1][0]).mkdir()
    width = next((module.outputs for module in reversed(spec.head) if module.outputs), size * len(pooled))
    whole: dict[str, object] = {"prompts": dict(prompts), "default_prompt_name": None}
    whole["similarity_fn_name"] = "cosine" if spec.normalize else "dot"
    if spec.dim < width:
        whole["truncate_dim"] = spec.dim
    _write_json(folder / "config_sentence_transformers.json", whole)
    limits = {"max_seq_length": spec.max_tokens, "do_lower_case": spec.lowercase}
    _write_json(folder / "sentence_bert_config.json", limits)
    modules = [
        {"idx": number, "name": str(number), "path": place, "type": f"{_TYPES}.{kind}"}
        for number, (place, kind) in enumerate(entries)
    ]
    _write_json(folder / "modules.json", modules)


def save_dpr(network: Network, spec: TowerSpec, side: Side, folder: Path) -> None:
    """Save a tower as a Hugging Face DPR checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    architecture, attribute = _DPR_NAMES[side]
    config = read_json(spec.folder / "config.json", spec.reference)
    config |= {"model_type": "dpr", "architectures": [architecture], "projection_dim": config.get("projection_dim", 0)}
    _write_json(folder / "config.json", config)
    parts = {"bert_model": network.parts["body"], "encode_proj": network.parts.get("projection")}
    weights = {
        f"{attribute}.{name}.{key}": value.detach().cpu().contiguous()
        for name, part in parts.items()
        if part is not None
        for key, value in part.state_dict().items()
        if not key.startswith("pooler.")
    }
    save_file(weights, folder / "model.safetensors", _METADATA)
    _copy_tokenizer(spec, folder)


def _save_module(module: nn.Module, config: Path | None, folder: Path) -> None:
    folder.mkdir()
    if config is None:
        return
    shutil.copyfile(config, folder / "config.json")
    state: dict[str, Tensor] = {name: value.detach().cpu() for name, value in module.state_dict().items()}
    save_file(state, folder / "model.safetensors", _METADATA)


def _copy_tokenizer(spec: TowerSpec, folder: Path) -> None:
    for name in (*TOKENIZER_FILES, *OTHER_TOKENIZERS):
        if (spec.folder / name).is_file():
            shutil.copyfile(spec.folder / name, folder / name)


def _write_json(path: Path, document: Any) -> None:  # an object or a list, as JSON has them
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
