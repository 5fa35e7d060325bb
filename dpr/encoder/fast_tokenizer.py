"""transformers' tokenizer of a model folder, as the `tokenizers` library describes it.

As a program, this writes the description to a file: `python -P -m dpr.encoder.fast_tokenizer FOLDER REFERENCE FILE`.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dpr.errors import EncoderError
from dpr.store.temporary import temporary_folder


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
    if "transformers" in sys.modules or not sys.executable:
        return _described(folder, reference)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    with temporary_folder() as temporary:
        file = temporary / "tokenizer.json"
        # -P: else files of the working folder would stand for modules of the same names
        command = [sys.executable, "-P", "-m", __name__, str(folder), reference, str(file)]
        ended = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            last = ": ".join([str(ended.returncode), *ended.stderr.splitlines()[-1:]])
            raise EncoderError(_cannot(reference, f"the process that reads it ended with {last}"))
        written = json.loads(file.read_text(encoding="utf-8"))
    if "error" in written:
        raise EncoderError(written["error"])
    return FastTokenizer(**written)


def from_transformers(folder: Path, reference: str) -> Any:
    """Return transformers' own tokenizer of a model folder, which must be a fast one."""
    from transformers import AutoTokenizer  # takes seconds to import, and specs are read without it

    try:
        loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
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


def main(folder: str, reference: str, file: str) -> None:
    """Write the description of a tokenizer to a file, or the error."""
    try:
        found = asdict(_described(Path(folder), reference))
    except EncoderError as error:
        found = {"error": str(error)}
    Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
