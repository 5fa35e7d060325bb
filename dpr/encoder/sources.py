"""Where models come from: a local folder, a folder inside an installed package, an object store, or the hub."""

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import fsspec
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from dpr.errors import EncoderError
from dpr.fingerprint import fingerprint

WANTED_SUFFIXES = (".json", ".txt", ".safetensors", ".model")
"""Files that are fetched: weights as safetensors, configuration and tokenizer; never pickles."""


def fetch_model(reference: str, revision: str | None = None) -> Path:
    """The local folder of `reference`: as it is, or after fetching it into a cache.

    `package:NAME/sub/folder` lies inside an installed Python package, `scheme://…` in an object store; what is neither
    of these nor a folder here is a hub id, taken at `revision`. Raises EncoderError if there is no such model.
    """
    if reference.startswith("package:"):
        return _in_package(reference)
    if "://" in reference:
        return _from_object_store(reference)
    folder = Path(reference)
    if folder.is_dir():
        return folder
    if folder.is_absolute() or reference.startswith(".") or folder.exists():
        raise EncoderError(
            f"model folder {reference} is not there; name a folder, package:NAME/folder, s3://bucket/folder or a hub id"
        )
    return _from_hub(reference, revision)


def _in_package(reference: str) -> Path:
    name, _, inside = reference.removeprefix("package:").partition("/")
    # a top-level package is found without running any of its code; finding a dotted name would import its parents
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise EncoderError(f"model {reference}: there is no Python package {name!r} here; install it with pip")
    for location in found.submodule_search_locations:
        root = Path(location).resolve()
        folder = (root / inside).resolve()
        if folder.is_dir() and folder.is_relative_to(root):
            return folder
    raise EncoderError(f"model {reference}: package {name} has no folder {inside!r}; name one that holds config.json")


def _from_object_store(url: str) -> Path:
    try:
        filesystem, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)  # a cached one may hold an old listing
        paths = sorted(path for path in filesystem.find(root) if path.endswith(WANTED_SUFFIXES))
        # a changed remote file gives another folder, so that a cached one is never a mixture
        version = fingerprint([url, *(f"{path} {filesystem.ukey(path)}" for path in paths)])
        folder = cache_folder() / version
        if paths and not folder.is_dir():
            names = {path: path.removeprefix(root).lstrip("/") for path in paths}
            _fetch_whole(filesystem, names, folder)
    except Exception as error:  # every scheme brings exceptions of its own, not all of them OSErrors
        raise EncoderError(
            f"model {url} cannot be fetched: {type(error).__name__}: {_short(error)}; check the address and credentials"
        ) from error
    if not paths:
        raise EncoderError(f"model {url} holds no model files; name the folder that holds config.json")
    return folder


def _fetch_whole(filesystem: fsspec.AbstractFileSystem, names: dict[str, str], folder: Path) -> None:
    """Copy remote files to `folder`, which appears with all of them or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        for path, name in names.items():
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(path, str(target))
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same files
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cache_folder() -> Path:
    """Where fetched models are kept: below $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dpr", "models")


def _from_hub(reference: str, revision: str | None) -> Path:
    wanted = [f"*{suffix}" for suffix in WANTED_SUFFIXES]
    try:
        return Path(snapshot_download(reference, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise EncoderError(
            f"model {reference} is no folder here, and the hub did not give it{at} ({_short(error)}); name a folder, "
            "package:NAME/folder, s3://bucket/folder or a hub id"
        ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
