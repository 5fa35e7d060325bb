"""Where models come from: a local folder, a folder inside an installed package, an object store, or the hub."""

import hashlib
import importlib.util
import os
from pathlib import Path

import fsspec
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from dpr.errors import EncoderError

WANTED = ("*.json", "*.txt", "*.safetensors", "*.model")


def model_folder(reference: str, revision: str | None) -> Path:
    """The local folder of a model: as named, or after fetching it.

    Raises EncoderError with the place looked at for a model that is not there.
    """
    if reference.startswith("package:"):
        return _in_package(reference)
    if "://" in reference:
        return _from_object_store(reference)
    if os.path.isdir(reference):
        return Path(reference)
    if os.path.isabs(reference) or reference.startswith(".") or reference.count("/") > 1:
        raise EncoderError(f"model folder {reference} is not there; name a folder, package:NAME/folder, or a hub id")
    return _from_hub(reference, revision)


def _in_package(reference: str) -> Path:
    name, _, inside = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise EncoderError(f"model {reference}: Python package {name!r} is not installed; install it with pip")
    folder = Path(next(iter(spec.submodule_search_locations)), inside)
    if not folder.is_dir():
        raise EncoderError(f"model {reference}: package {name} has no folder {inside!r}")
    return folder


def _from_object_store(url: str) -> Path:
    cache = Path(os.environ.get("DPR_CACHE") or Path.home() / ".cache" / "dpr", "models")
    folder = cache / hashlib.blake2b(url.encode(), digest_size=8).hexdigest()
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        found = filesystem.find(root, detail=True)
        for path, info in found.items():
            target = folder / path.removeprefix(root).lstrip("/")
            if not target.exists() or target.stat().st_size != info["size"]:
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{os.getpid()}-{target.name}")
                filesystem.get_file(path, str(temporary))
                os.replace(temporary, target)
    except OSError as error:
        raise EncoderError(f"model {url} cannot be fetched: {error}") from error
    if not found:
        raise EncoderError(f"model {url} holds no files; name the folder with config.json and model.safetensors")
    return folder


def _from_hub(reference: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise EncoderError(
            f"model {reference} is no folder here and cannot be had from the hub ({said}); name a folder or a hub id"
        ) from error
