"""The weights of a safetensors file as arrays that are mapped from it: processes of a machine share their memory."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Weights = Mapping[str, npt.NDArray[np.float32]]
_LENGTH_BYTES = 8
"""At the start of the file: the length of the JSON that says where each tensor lies."""


def mapped_weights(path: Path) -> Weights | None:
    """Return the float32 tensors of a file by name; None if it holds others, or cannot be read."""
    try:
        mapped = np.memmap(path, np.uint8, "r")
        first = _LENGTH_BYTES + int.from_bytes(mapped[:_LENGTH_BYTES].tobytes(), "little")
        header = json.loads(mapped[_LENGTH_BYTES:first].tobytes())
        header.pop("__metadata__", None)
        if any(entry["dtype"] not in ("F32", "I64") for entry in header.values()):
            return None
        return {
            name: mapped[first + entry["data_offsets"][0] : first + entry["data_offsets"][1]]
            .view(np.float32)
            .reshape(entry["shape"])
            for name, entry in header.items()
            if entry["dtype"] == "F32"  # the others number positions
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
