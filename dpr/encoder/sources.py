"""Where models come from: a local folder, a folder inside an installed package, an object store, or the hub.

Fetched models are cached: object-store models in this machine's cache (`dpr.store.cache`), hub models in the hub's
own cache.
"""

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import fsspec

from dpr.errors import EncoderError, StoreError
from dpr.fingerprint import fingerprint
from dpr.store.cache import local_cache

FETCHED_SUFFIXES = (".json", ".txt", ".safetensors", ".model")
"""Files that are fetched: weights as safetensors, configuration and tokenizer; never pickles."""

_PLACES = "a folder, package:NAME/folder, s3://bucket/folder or a hub id"
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class FoundModel:
    """A model's files on this machine."""

    folder: Path
    commit: str | None = None
    """The commit of the hub repository; None for a model that is not from the hub."""


def fetch_model(reference: str, revision: str | None = None) -> FoundModel:
    """Return the files of a model, after fetching them if they are not on this machine.

    `package:NAME/sub/folder` lies inside an installed Python package, `scheme://…` in an object store. What is neither
    of these nor a local folder is a hub id, taken at `revision`, or at the revision in `ID@REVISION`. Raises
    EncoderError if there is no such model.
    """
    if "://" in reference:
        return FoundModel(_from_object_store(reference))
    return _on_disk(reference) or _from_hub(reference, revision)


def find_model(reference: str, revision: str | None) -> FoundModel | None:
    """Return the files of a model that are on this machine already; None if they would have to be fetched.

    Makes no request. A hub model is found only if `revision` is a commit, because only a commit never changes. Raises
    EncoderError if the reference is a local folder or package that is not there.
    """
    if "://" in reference:
        return None
    if found := _on_disk(reference):
        return found
    hub_id, commit = split_revision(reference, revision)
    if commit is None or not _COMMIT.fullmatch(commit):
        return None
    try:
        return _hub_snapshot(hub_id, commit, local_files_only=True)
    except OSError:
        return None


def pin_commit(reference: str, commit: str) -> str:
    """Return the reference of a hub model at one commit."""
    return f"{split_revision(reference, None)[0]}@{commit}"


def split_revision(reference: str, revision: str | None) -> tuple[str, str | None]:
    """Return hub id and revision; the revision in the reference overrides the separate one."""
    hub_id, _, own_revision = reference.partition("@")
    return hub_id, own_revision or revision


def _on_disk(reference: str) -> FoundModel | None:
    """Return a local folder or a folder in a package; None for what can only be a hub id."""
    if reference.startswith("package:"):
        return FoundModel(_in_package(reference))
    folder = Path(reference)
    if folder.is_dir():
        return FoundModel(folder)
    if folder.is_absolute() or reference.startswith(".") or folder.exists():
        raise EncoderError(f"model folder {reference} does not exist; name {_PLACES}")
    return None


def _in_package(reference: str) -> Path:
    name, _, inside = reference.removeprefix("package:").partition("/")
    # a top-level package is found without running any of its code; finding a dotted name would import its parents
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise EncoderError(f"model {reference} needs the Python package {name!r}, which is not installed; install it")
    for location in found.submodule_search_locations:
        root = Path(location).resolve()
        folder = (root / inside).resolve()
        if folder.is_dir() and folder.is_relative_to(root):
            return folder
    raise EncoderError(f"model {reference}: package {name} has no folder {inside!r}; name one that holds config.json")


def _from_object_store(url: str) -> Path:
    try:
        filesystem, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)  # a cached one may have an old listing
        paths = sorted(path for path in filesystem.find(root) if path.endswith(FETCHED_SUFFIXES))
        # a changed remote file gives another key, so that a cached folder is never a mixture
        version = fingerprint([url, *(f"{path} {filesystem.ukey(path)}" for path in paths)])

        def fetch_all(folder: Path) -> None:
            for path in paths:
                target = folder / path.removeprefix(root).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                filesystem.get_file(path, str(target))

        if paths:
            return local_cache().fetch_folder(f"models/{version}", fetch_all)
    except StoreError:  # of the cache on this machine
        raise
    except Exception as error:  # every scheme has exceptions of its own, not all of them OSErrors
        raise EncoderError(
            f"model {url} cannot be fetched: {type(error).__name__}: {_shorten(error)}; check the address and "
            "the credentials"
        ) from error
    raise EncoderError(f"model {url} holds no model files; name the folder that holds config.json")


def _from_hub(reference: str, revision: str | None) -> FoundModel:
    hub_id, revision = split_revision(reference, revision)
    try:
        return _hub_snapshot(hub_id, revision)
    except OSError as error:
        at = f" at revision {revision}" if revision else ""
        raise EncoderError(
            f"model {reference} is not a local folder, and the hub did not give it{at} ({_shorten(error)}); "
            f"name {_PLACES}"
        ) from error


def _hub_snapshot(hub_id: str, revision: str | None, *, local_files_only: bool = False) -> FoundModel:
    """Return the files of a hub model. Raises OSError if the hub does not give it, or has no such ids."""
    # workers that only hash a model, or use what others have loaded, avoid this import
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    patterns = [f"*{suffix}" for suffix in FETCHED_SUFFIXES]
    try:
        folder = Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=patterns, local_files_only=local_files_only)
        )
    except HFValidationError as error:
        raise OSError(str(error)) from error
    return FoundModel(folder, folder.name)  # the hub's cache names the folder of a snapshot by its commit


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
