"""transformers' tokenizer of a model folder, as the `tokenizers` library describes it.

As a program, this prints the description for another process: `python -m dpr.encoder.fast_tokenizer FOLDER REFERENCE`.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpr.errors import EncoderError


@dataclass(frozen=True)
class FastTokenizer:
    """The fast backend of a tokenizer of transformers."""

    json: str
    """The `tokenizers` library's own description."""
    truncation_side: str
    """Which end a text that is too long loses: `left` or `right`."""


def read_fast(folder: Path, reference: str) -> FastTokenizer:
    """Read the tokenizer of a model folder; `reference` is what errors call the model.

    A process of its own imports transformers, unless this one has done so: with PyTorch, it takes seconds and 160 MB,
    which a replica would keep as long as it lives. Raises EncoderError if there is no fast tokenizer.
    """
    if "transformers" in sys.modules:
        return _described(folder, reference)
    command = [sys.executable, "-m", __name__, str(folder), reference]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        said = ended.stderr.strip().splitlines() or [_cannot(reference, f"its process ended with {ended.returncode}")]
        raise EncoderError(said[-1])
    return FastTokenizer(**json.loads(ended.stdout.splitlines()[-1]))


def from_transformers(folder: Path, reference: str) -> Any:
    """Return transformers' own tokenizer of a model folder, which must be a fast one."""
    from transformers import AutoTokenizer  # takes seconds to import, and specs are read without it

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ImportError, OSError, ValueError, RuntimeError, TypeError, AttributeError, LookupError) as error:
        raise EncoderError(_cannot(reference, " ".join(str(error).split())[:300])) from error
    if not loaded.is_fast:
        raise EncoderError(f"model {reference} has no fast tokenizer; save it once as tokenizer.json")
    return loaded


def _cannot(reference: str, why: str) -> str:
    return f"the tokenizer of model {reference} cannot be loaded ({why}); fetch the whole model folder again"


def _described(folder: Path, reference: str) -> FastTokenizer:
    loaded = from_transformers(folder, reference)
    return FastTokenizer(loaded.backend_tokenizer.to_str(), loaded.truncation_side)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(_described(Path(sys.argv[1]), sys.argv[2]))))
    except EncoderError as error:
        sys.exit(str(error))
