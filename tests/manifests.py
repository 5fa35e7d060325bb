"""The documents that cluster/ gives Kubernetes, by overlay, and how tests find their parts."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.kustomize import Json, build, patched

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
OVERLAYS = ("cpu", "gpu", "spot")
BUILDS = {name: build(CLUSTER / "overlays" / name) for name in OVERLAYS}
BUILDS["gradual"] = patched(BUILDS["gpu"], CLUSTER / "components" / "gradual-upgrade")
DOCUMENTS = [document for documents in BUILDS.values() for document in documents]
UNITS = {"": 1, "m": 1e-3, "Mi": 2**20, "Gi": 2**30}


def one(kind: str, overlay: str = "gpu") -> Json:
    """The one document of a kind in an overlay."""
    (found,) = (document for document in BUILDS[overlay] if document["kind"] == kind)
    return found


def every(kind: str) -> list[Json]:
    """The documents of a kind in all overlays."""
    return [document for document in DOCUMENTS if document["kind"] == kind]


def inside(node: object, field: str) -> Iterator[Json]:
    """Every object within a document that has this field."""
    if isinstance(node, dict):
        if field in node:
            yield node
        for inner in node.values():
            yield from inside(inner, field)
    elif isinstance(node, list):
        for inner in node:
            yield from inside(inner, field)


def container_of(group: Json) -> Json:
    """The one container of the pods of a group."""
    (container,) = group["template"]["spec"]["containers"]
    return dict(container)


def amount(quantity: str) -> float:
    """A quantity of Kubernetes as a number."""
    found = re.fullmatch(r"(\d+)(\D*)", quantity)
    assert found
    return int(found[1]) * UNITS[found[2]]


PODS = list(inside(DOCUMENTS, "containers"))
CONTAINERS = [container for pod in PODS for container in pod["containers"]]
