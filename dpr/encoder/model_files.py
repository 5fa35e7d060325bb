"""The files of a model folder: which ones count, whether they can be used, and the digest over them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dpr.errors import EncoderError
from dpr.store.cache import local_cache

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_json(path: Path, reference: str, *, optional: bool = False) -> dict[str, Any]:
    """Return a JSON object; {} for a file that is `optional` and not there. Raises EncoderError otherwise."""
    document = read_document(path, reference, optional=optional)
    if not isinstance(document, dict):
        raise EncoderError(f"model {reference}: {path} holds a {type(document).__name__}; it must hold a JSON object")
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
            "never opened; convert them to model.safetensors or name a revision that has it"
        )
    raise EncoderError(
        f"model {reference} has no weights in {folder}; only model.safetensors is read; name a folder that holds it"
    )


def digest_files(folder: Path, weights: list[str]) -> str:
    """Return the hex SHA-256 over name, size and SHA-256 of the weights, config.json and the tokenizer's files.

    A file is read once on this machine: the cache remembers the SHA-256 of files that have not changed.
    """
    cache, digest = local_cache(), hashlib.sha256()
    for name in ("config.json", *(name for name in TOKENIZER_FILES if (folder / name).is_file()), *weights):
        path = folder / name
        digest.update(f"{name} {path.stat().st_size} {cache.digest(path)}\n".encode())
    return digest.hexdigest()


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
    else:
        raise EncoderError(f"model {reference} has no tokenizer in {folder}; it needs tokenizer.json or vocab.txt")
    if largest >= vocabulary:
        raise EncoderError(
            f"the tokenizer of model {reference} gives token ids up to {largest}, and its embedding table has "
            f"{vocabulary} rows; they do not belong together, so fetch the whole model folder again"
        )
