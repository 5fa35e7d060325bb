"""The modules of a sentence-transformers folder: modules.json, and the settings of each module after the pooling."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpr.encoder.model_files import read_document, read_json
from dpr.errors import EncoderError

HeadKind = Literal["Dense", "LayerNorm", "Normalize"]
ACTIVATIONS = (
    "ELU",
    "GELU",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "Mish",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
)
"""Classes of torch.nn that a Dense module may apply."""

_VECTOR = "sentence_embedding"
_FIRST = ("Transformer", "StaticEmbedding")


@dataclass(frozen=True)
class Module:
    """An entry of modules.json."""

    kind: str
    """The class, without the package, which sentence-transformers has renamed."""
    folder: Path


@dataclass(frozen=True)
class HeadModule:
    """A module that changes pooled vectors."""

    kind: HeadKind
    folder: Path
    """The folder that holds its config.json and its weights; a Normalize module has none."""
    inputs: int = 0
    """Components of its input; 0: any number."""
    outputs: int = 0
    """Components of its output; 0: as many as of its input."""
    bias: bool = True
    activation: str = "Identity"
    """One of ACTIVATIONS, after the product of a Dense module."""
    residual: bool = False
    """Whether a Dense module adds its input to its output."""


def read_modules(folder: Path, reference: str) -> list[Module]:
    """Return the modules of a sentence-transformers folder in their order; [] for other folders.

    Raises EncoderError for a list that is not Transformer and Pooling, or StaticEmbedding, followed by modules that
    change the pooled vector.
    """
    listed = read_document(folder / "modules.json", reference, optional=True)
    if not listed:
        return []
    try:
        pairs = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in listed]
    except (TypeError, KeyError) as error:
        raise EncoderError(f"model {reference}: modules.json is not a list of modules with type and path") from error
    for name, place in pairs:
        if not (folder / place).resolve().is_relative_to(folder.resolve()):
            raise EncoderError(f"model {reference}: modules.json puts {name} at {place!r}, outside the model's folder")
    names = [name for name, _ in pairs]
    start = 2 if names[:2] == ["Transformer", "Pooling"] else 1
    if names[0] not in _FIRST or (names[0] == "Transformer" and start == 1) or not _all_known(names[start:]):
        raise EncoderError(
            f"model {reference} is made of the modules {', '.join(names)}; only Transformer and Pooling, or "
            "StaticEmbedding, followed by Dense, LayerNorm, Dropout or Normalize are supported, so name another model"
        )
    return [Module(name, folder / place) for name, place in pairs]


def read_head(modules: list[Module], reference: str) -> tuple[HeadModule, ...]:
    """Return the modules after the pooling; Dropout is left out, since it acts only in training.

    Raises EncoderError for a module that reads or writes anything but the pooled vector, or has an unknown activation.
    """
    return tuple(_head_module(module, reference) for module in modules if module.kind != "Dropout")


def _all_known(names: list[str]) -> bool:
    return all(name in ("Dense", "LayerNorm", "Dropout", "Normalize") for name in names)


def _head_module(module: Module, reference: str) -> HeadModule:
    settings = read_json(module.folder / "config.json", reference, optional=module.kind == "Normalize")
    if module.kind == "Normalize" and "module_input_name" not in settings:
        return HeadModule("Normalize", module.folder)  # its folder may be that of the model, with its config.json
    source = settings.get("module_input_name") or _VECTOR
    target = settings.get("module_output_name") or source
    if (source, target) != (_VECTOR, _VECTOR):
        raise EncoderError(
            f"model {reference}: its module {module.kind} reads {source} and writes {target}; only modules that change "
            "the pooled vector are supported, so name another model"
        )
    if module.kind == "Normalize":
        return HeadModule("Normalize", module.folder)
    if module.kind == "LayerNorm":
        return HeadModule("LayerNorm", module.folder, inputs=_size(settings, "dimension", module, reference))
    return HeadModule(
        "Dense",
        module.folder,
        inputs=_size(settings, "in_features", module, reference),
        outputs=_size(settings, "out_features", module, reference),
        bias=bool(settings.get("bias", True)),
        activation=activation_name(
            str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")), "a Dense module", reference
        ),
        residual=bool(settings.get("use_residual", False)),
    )


def _size(settings: Mapping[str, Any], name: str, module: Module, reference: str) -> int:
    value = settings.get(name)
    if isinstance(value, int) and value > 0:
        return value
    raise EncoderError(
        f"model {reference}: {module.folder / 'config.json'} has no usable {name} ({value!r}); it must be a number "
        "above 0, so fetch the whole folder again"
    )


def activation_name(stated: str, where: str, reference: str) -> str:
    """Return the one of ACTIVATIONS that a folder states for some part. Raises EncoderError for any other."""
    package, _, name = stated.rpartition(".")
    if not package.startswith("torch.nn") or name not in ACTIVATIONS:
        raise EncoderError(
            f"model {reference} has {where} with the activation {stated}; those of torch.nn that are supported "
            f"are {', '.join(ACTIVATIONS)}, so name another model"
        )
    return name
