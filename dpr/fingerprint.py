"""Fingerprints: short names that change whenever anything upstream changes, and never otherwise."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath

Json = str | int | float | bool | None | Sequence["Json"] | Mapping[str, "Json"]

FINGERPRINT_HEX_DIGITS = 16
KEY_BYTES = 16


def canonical_json(value: object) -> bytes:
    """Return the one byte string that stands for `value`: sorted keys, no white space, UTF-8, no NaN.

    Raises TypeError for anything whose text form is not stable (sets, objects, paths, non-string keys).
    """
    _refuse_unstable(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(value: object) -> str:
    """Return 16 hex digits (64 bits) of blake2b over the canonical JSON of `value`."""
    return hashlib.blake2b(canonical_json(value), digest_size=FINGERPRINT_HEX_DIGITS // 2).hexdigest()


def content_hash(title: str, text: str) -> bytes:
    """Return the 128-bit hash of what the encoder sees; the same text under another id has the same one."""
    return _hash_fields(title, text)


def passage_key(passage_id: str, title: str, text: str, extra: Sequence[str] = ()) -> bytes:
    """Return the 128-bit hash of a whole passage: same key, same passage.

    `extra` is what `key_texts` makes of extra columns.
    """
    return _hash_fields(passage_id, title, text, *extra)


def id_hash(passage_id: str) -> bytes:
    """Return the 128-bit hash of a passage id, of fixed width so that millions are compared as arrays."""
    return _hash_fields(passage_id)


def _hash_fields(*fields: str) -> bytes:
    # every field is preceded by its length, so that ("ab", "c") and ("a", "bc") differ
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for field in fields:
        data = field.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def _refuse_unstable(value: object, where: str) -> None:
    if value is None or isinstance(value, (str, bool, int, float)):
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: only strings have a stable form")
            _refuse_unstable(inner, f"{where}.{key}")
        return
    if isinstance(value, (list, tuple)) and not isinstance(value, PurePath):
        for position, inner in enumerate(value):
            _refuse_unstable(inner, f"{where}[{position}]")
        return
    raise TypeError(f"{where} is a {type(value).__name__}, which has no stable form; turn it into JSON values first")
