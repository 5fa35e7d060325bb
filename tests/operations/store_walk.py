"""The objects that snapshots lead to, found by walking the JSON of a store: independent of `dpr.operations.gc`."""

import json
from collections.abc import Iterator
from typing import Any

from tests.collection import Collection

DIGITS = 32
"""Of a digest, in the names of parts and of exact neighbours."""


def unnamed(collection: Collection) -> set[str]:
    """Return the files that no snapshot's document leads to, except those of leases."""
    files = collection.files()
    named: set[str] = set()
    prefixes = ["lease/"]
    for snapshot in sorted(name for name in files if name.startswith("snapshots/")):
        document = _read(collection, snapshot)
        body, run = document["body"], f"runs/{document['run_id']}"
        named |= {snapshot, *values(body, "name")}
        records = {f"{name.rpartition('-')[0]}.json" for name in values(body, "name")}
        codebook = body["codebook"]["object"]["sha256"][:DIGITS]
        segments = [segment["object"]["sha256"][:DIGITS] for segment in body["segments"]]
        records |= {f"parts/{codebook}/{segment}.json" for segment in segments}
        questions = f"truth/{body['encoder_id']}/{body['gate']['questions_id']}"
        records |= {f"{questions}/vectors.json"}
        stems = [f"segments/{body['encoder_id']}/{segment['segment_id']}" for segment in body["segments"]]
        records |= {name for name in files if name.endswith(".json") and name.partition(".sentences-")[0] in stems}
        results = [f"{questions}/{kind}-" for kind in ("measured", "modes", "fp8", *segments)]
        prefixes += [f"{run}/", *results]
        if f"{run}/plan.json" in files:
            records |= set(_read(collection, f"{run}/plan.json")["scans"])
        for record in records & files:
            named |= {record, *values(_read(collection, record), "name")}
    return {name for name in files - named if not name.startswith(tuple(prefixes))}


def dangling(collection: Collection) -> set[str]:
    """Return the missing objects that records name, each with its record."""
    found = set()
    for record in collection.files():
        if record.endswith(".json") and not record.startswith(("lease/", "runs/")):
            names = values(_read(collection, record), "name")
            found |= {f"{record}: {name}" for name in names if not collection.file(name).exists()}
    return found


def values(document: Any, key: str) -> Iterator[str]:
    """Yield the strings that stand under a key, anywhere in a document."""
    if isinstance(document, dict):
        yield from (value for found, value in document.items() if found == key and isinstance(value, str))
        for value in document.values():
            yield from values(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from values(value, key)


def _read(collection: Collection, name: str) -> Any:
    return json.loads(collection.file(name).read_text())
