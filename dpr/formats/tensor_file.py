"""Where the tensors of a safetensors file lie, so that they can be mapped, or read by range."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 1 << 20
METADATA = "__metadata__"
"""The key under which safetensors keeps the metadata of the file."""


@dataclass(frozen=True)
class TensorPlace:
    """One tensor."""

    dtype: str
    """As safetensors names it: `U8`, `U32`, …"""
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""
    stop: int


@dataclass(frozen=True)
class TensorHeader:
    """The header of a file: its tensors by name, and its metadata."""

    tensors: Mapping[str, TensorPlace]
    metadata: Mapping[str, str]


def read_tensor_header(source: BinaryIO | io.RawIOBase) -> TensorHeader:
    """Read the header of a file that is open at its beginning. Raises ValueError if there is none."""
    length = int.from_bytes(source.read(LENGTH_BYTES) or b"", "little")
    if not 0 < length < MAX_HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header, first = json.loads(source.read(length) or b""), LENGTH_BYTES + length
    try:
        metadata = header.pop(METADATA, {})
        tensors = {name: _place(first, **entry) for name, entry in header.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError("the header names no tensors") from error
    return TensorHeader(tensors, metadata)


def _place(first: int, dtype: str, shape: list[int], data_offsets: list[int]) -> TensorPlace:
    start, stop = data_offsets
    return TensorPlace(dtype, tuple(shape), first + start, first + stop)
