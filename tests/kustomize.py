"""The part of kustomize that the overlays of cluster/ use; everything else is refused."""

import copy
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

OVERLAY_FIELDS = {"apiVersion", "kind", "resources", "configMapGenerator", "generatorOptions", "patches"}


def read_all(path: Path) -> list[Json]:
    """Return the documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def build(folder: Path) -> list[Json]:
    """Return the documents that `kubectl apply -k FOLDER` would send, in no particular order."""
    (overlay,) = read_all(folder / "kustomization.yaml")
    assert overlay["kind"] == "Kustomization"
    assert overlay.keys() <= OVERLAY_FIELDS
    assert overlay.get("generatorOptions", {}) in ({}, {"disableNameSuffixHash": True})
    documents: list[Json] = []
    for resource in overlay["resources"]:
        path = folder / resource
        documents += build(path.resolve()) if path.is_dir() else read_all(path)
    documents += [_config_map(folder, made) for made in overlay.get("configMapGenerator", [])]
    return patched(documents, folder)


def patched(documents: list[Json], folder: Path) -> list[Json]:
    """Return documents with the patches of an overlay or component; each patch must find one document."""
    (overlay,) = read_all(folder / "kustomization.yaml")
    documents = copy.deepcopy(documents)
    for patch in overlay.get("patches", []):
        assert patch.keys() == {"target", "path"}
        target = patch["target"]
        (found,) = (
            document
            for document in documents
            if (document["kind"], document["metadata"]["name"]) == (target["kind"], target["name"])
        )
        (operations,) = read_all(folder / patch["path"])
        for operation in operations:
            _apply(operation, found)
    return documents


def _config_map(folder: Path, made: Json) -> Json:
    assert made.keys() == {"name", "files"}
    data = {name: (folder / name).read_text(encoding="utf-8") for name in made["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"]}, "data": data}


def _apply(operation: Json, document: Json) -> None:
    """Carry out one operation of a JSON patch (RFC 6902)."""
    assert operation.keys() == {"op", "path", "value"}
    *parents, last = operation["path"].removeprefix("/").split("/")
    inner: Any = document
    for name in parents:
        inner = inner[int(name) if isinstance(inner, list) else name]
    match operation["op"]:
        case "add" if last == "-":
            inner.append(operation["value"])
        case "add":
            assert last not in inner, f"{operation['path']} is there already: replace it"
            inner[last] = operation["value"]
        case "replace":
            assert last in inner, f"{operation['path']} is not there: add it"
            inner[last] = operation["value"]
        case "test":
            assert inner[last] == operation["value"], operation
        case other:
            raise AssertionError(f"no such operation here: {other}")
