"""Static embeddings: a table with one vector for each token, in the layouts of sentence-transformers and of model2vec.

Shapes: V rows of the vocabulary, B rows of a batch, L tokens of its longest row, D dimensions.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from dpr.encoder.model_files import weight_files
from dpr.errors import EncoderError

_TABLES = ("embedding.weight", "embeddings")
"""Names of the table: sentence-transformers' and model2vec's."""


def table_shape(folder: Path, reference: str) -> tuple[int, int]:
    """Return rows and columns (V, D) of the table, without reading it."""
    with _opened(folder, reference, "np") as weights:  # "pt" imports PyTorch
        rows, columns = weights.get_slice(_table(weights, folder, reference)).get_shape()
        if "mapping" in weights.keys():  # noqa: SIM118  (the file is no mapping)
            (rows,) = weights.get_slice("mapping").get_shape()
    return rows, columns


class StaticBody:
    """The table in the place of a network; mean pooling over a row's token vectors makes it an encoder."""

    def __init__(self, folder: Path, reference: str) -> None:
        from torch import nn  # reading specs does not need it

        with _opened(folder, reference, "pt") as weights:
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
            table_VD = tensors[_table(weights, folder, reference)]
        if "mapping" in tensors:  # model2vec: several tokens may share a row of the table
            table_VD = table_VD[tensors["mapping"].long()]
        if "weights" in tensors:  # model2vec: a weight for each token
            table_VD = table_VD * tensors["weights"][:, None]
        self._table = nn.Embedding.from_pretrained(table_VD.float())  # type: ignore[no-untyped-call]
        self.config = SimpleNamespace(model_type="static embeddings", vocab_size=len(table_VD), pad_token_id=0)

    def to(self, device: Any, dtype: Any) -> "StaticBody":
        """Move and convert the table in place, and return it."""
        self._table.to(device=device, dtype=dtype)
        return self

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:  # noqa: ARG002
        """Return token vectors (B, L, D) as `last_hidden_state`."""
        return SimpleNamespace(last_hidden_state=self._table(input_ids))

    __call__ = forward


def _opened(folder: Path, reference: str, framework: Literal["np", "pt"]) -> Any:
    files = [name for name in weight_files(folder, reference) if name.endswith(".safetensors")]
    if len(files) > 1:
        raise EncoderError(f"model {reference} has a table of token vectors in several files; save it as one")
    try:
        return safe_open(folder / files[0], framework=framework)
    except (OSError, SafetensorError) as error:
        raise EncoderError(
            f"model {reference}: {folder / files[0]} cannot be read ({error}); fetch it again"
        ) from error


def _table(weights: Any, folder: Path, reference: str) -> str:
    names = set(weights.keys())
    for name in _TABLES:
        if name in names:
            return name
    raise EncoderError(
        f"model {reference} has no table of token vectors in {folder}; it must be called {' or '.join(_TABLES)}"
    )
