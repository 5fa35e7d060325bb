"""Vectors of texts, in the form of OpenAI's embeddings."""

import base64
import sys
from array import array
from typing import Literal

from dpr.answers.answered import Answered, StepTimings

Tower = Literal["question", "passage"]


class Embedding(Answered):
    """The vector of one text."""

    object: Literal["embedding"] = "embedding"
    """Always `embedding`."""
    index: int
    """Place of the text in the request, from 0."""
    embedding: list[float] | str
    """Its components; or base64 of them as float32, little endian, if that was requested."""


class Usage(Answered):
    """The tokens of the texts."""

    prompt_tokens: int
    """Tokens that the encoder read."""
    total_tokens: int
    """The same."""
    lost_tokens: int
    """Tokens that it did not read, since texts are longer than its token limit."""


class EmbeddingAnswer(Answered):
    """Vectors, and what they were made with."""

    object: Literal["list"] = "list"
    """Always `list`."""
    data: list[Embedding]
    """One for each text, in the order of the request."""
    model: Tower
    """As in the request."""
    usage: Usage
    """Tokens."""
    snapshot: int
    """Number of the snapshot whose encoder it is."""
    encoder_id: str
    """Fingerprint of the encoder."""
    timings_ms: StepTimings
    """Time taken."""

    def vectors(self) -> list[list[float]]:
        """Return the vectors in the order of the texts."""
        return [_components(one.embedding) for one in self.data]


def _components(embedding: list[float] | str) -> list[float]:
    if not isinstance(embedding, str):
        return embedding
    components = array("f", base64.b64decode(embedding))
    if sys.byteorder == "big":
        components.byteswap()
    return components.tolist()
