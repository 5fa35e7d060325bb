"""The weights of a safetensors file as arrays that are mapped from it: processes of a machine share their memory."""

import json
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[np.float32]
_LENGTH_BYTES = 8
"""At the start of the file: the length of the JSON that says where each tensor lies."""
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


class MappedWeights(Mapping[str, Tensor]):
    """The float32 tensors of a file by name."""

    def __init__(self, path: Path) -> None:
        """Raise an error of `_UNREADABLE` for what is no such file."""
        with path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        content = np.frombuffer(self._mapped, np.uint8)
        first = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
        header = json.loads(content[_LENGTH_BYTES:first].tobytes())
        header.pop("__metadata__", None)
        kinds = {entry["dtype"] for entry in header.values()}
        if not kinds <= {"F32", "I64"}:
            raise ValueError(f"tensors are of types {kinds}")
        self._tensors = {
            name: content[first + entry["data_offsets"][0] : first + entry["data_offsets"][1]]
            .view(np.float32)
            .reshape(entry["shape"])
            for name, entry in header.items()
            if entry["dtype"] == "F32"  # the others number positions
        }

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def give_back(self) -> None:
        """Let this process hold no pages of the file until they are read again: the system keeps them in its cache."""
        self._mapped.madvise(mmap.MADV_DONTNEED)


def mapped_weights(path: Path) -> MappedWeights | None:
    """Return the float32 tensors of a file; None if it holds others, or cannot be read."""
    try:
        return MappedWeights(path)
    except _UNREADABLE:
        return None
