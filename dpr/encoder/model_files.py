"""The files of a model folder: which ones matter, whether they can be used, and the digest over them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dpr.errors import EncoderError
from dpr.json_kinds import kind_of
from dpr.store.cache import local_cache

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
OTHER_TOKENIZERS = ("vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""Files from which transformers makes a tokenizer if neither of the first two above exists."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_EXPORTS = ("*.onnx", "onnx/*.onnx", "openvino*.xml", "openvino/*.xml", "*.gguf", "*.h5", "*.msgpack")


def read_json(path: Path, reference: str, *, optional: bool = False) -> dict[str, Any]:  # as the model's maker wrote it
    """Return a JSON object; {} for a file that is `optional` and not there. Raises EncoderError otherwise."""
    document = read_document(path, reference, optional=optional)
    if not isinstance(document, dict):
        raise EncoderError(f"model {reference}: {path} holds {kind_of(document)}; it must hold a JSON object")
    return document


def read_document(path: Path, reference: str, *, optional: bool = False) -> Any:
    """Return any JSON document; {} for a file that is `optional` and not there. Raises EncoderError otherwise."""
    if optional and not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EncoderError(
            f"model {reference} has no readable {path.name} in {path.parent}; name the folder of a whole model"
        ) from error
    except ValueError as error:
        raise EncoderError(f"model {reference}: {path} is not JSON: {' '.join(str(error).split())}") from error


def weight_files(folder: Path, reference: str) -> list[str]:
    """Return the names of the safetensors files that hold the weights, and of their index if there are several.

    Raises EncoderError if there are none, or only pickled ones.
    """
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted({str(name) for name in read_json(index, reference).get("weight_map", {}).values()})
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if missing or not names:
            raise EncoderError(
                f"model {reference} lacks the weight file {missing[0] if missing else 'that its index should name'} in "
                f"{folder}; copy the whole folder"
            )
        return [index.name, *names]
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        raise EncoderError(
            f"model {reference} has its weights only as a pickle ({folder / pickled[0]}), which can run code and is "
            "never opened; load them with transformers and save them by save_pretrained, which converts them to "
            "model.safetensors, or name a revision that has it"
        )
    exported = sorted(path.name for pattern in _EXPORTS for path in folder.glob(pattern))
    what = f"has its weights only as an export for another engine ({exported[0]})" if exported else "has no weights"
    raise EncoderError(
        f"model {reference} {what} in {folder}; only model.safetensors is read, so name a folder that holds it, or "
        "convert the model that it came from (for example pytorch_model.bin) by transformers' save_pretrained"
    )


def digest_files(folder: Path, weights: list[str]) -> str:
    """Return the hex SHA-256 over name, size and SHA-256 of the weights, config.json and the tokenizer's files.

    A file is read once on this machine: the cache remembers the SHA-256 of files that have not changed.
    """
    cache, digest = local_cache(), hashlib.sha256()
    present = [name for name in ("config.json", *_tokenizer_files(folder)) if (folder / name).is_file()]
    for name in (*present, *weights):
        path = folder / name
        digest.update(f"{name} {path.stat().st_size} {cache.digest(path)}\n".encode())
    return digest.hexdigest()


def digest_head(digest: str, head: tuple[Path, ...], reference: str) -> str:
    """Return the digest of a model whose `head` folders hold modules with weights of their own."""
    parts = [digest, *(digest_files(folder, weight_files(folder, reference)) for folder in head)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest() if head else digest


def _tokenizer_files(folder: Path) -> tuple[str, ...]:
    whole = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    return TOKENIZER_FILES if whole else (*TOKENIZER_FILES, *OTHER_TOKENIZERS)


def check_tokenizer(folder: Path, reference: str, vocabulary: int) -> None:
    """Check that the folder has a tokenizer all of whose ids are rows of the embedding table.

    The table has `vocabulary` rows. Raises EncoderError if there is no tokenizer, or if an id is too large.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            largest = max(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values(), default=-1)
        except Exception as error:  # the library raises bare Exception for a file that it cannot read
            raise EncoderError(
                f"model {reference}: {path} is not a tokenizer: {' '.join(str(error).split())}"
            ) from error
    elif (folder / "vocab.txt").is_file():
        largest = len((folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")) - 1
    elif any((folder / name).is_file() for name in OTHER_TOKENIZERS):
        largest = -1  # known only after transformers has made a tokenizer of it
    else:
        raise EncoderError(f"model {reference} has no tokenizer in {folder}; it needs tokenizer.json or vocab.txt")
    if largest >= vocabulary:
        raise EncoderError(
            f"the tokenizer of model {reference} gives token ids up to {largest}, and its embedding table has "
            f"{vocabulary} rows; they do not belong together, so fetch the whole model folder again"
        )
