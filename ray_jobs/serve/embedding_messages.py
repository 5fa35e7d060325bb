"""Requests for vectors, in the form of OpenAI's embeddings."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from dpr.search.embeddings import Tower
from ray_jobs.serve.messages import NOT_BLANK, Message

MAX_INPUTS, MAX_INPUT_CHARS = 256, 100_000
EMBED_EXAMPLE = '{"input": "how do I sort a list?", "model": "question"}'

InputText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_INPUT_CHARS, pattern=NOT_BLANK)]


class EmbeddingRequest(Message):
    """Texts to be turned into vectors."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "how do I sort a list?", "model": "question"},
                {"input": ["a list", "a tuple"], "model": "passage", "dimensions": 8, "encoding_format": "base64"},
            ]
        }
    )

    input: InputText | Annotated[list[InputText], Field(min_length=1, max_length=MAX_INPUTS)] = Field(
        examples=["how do I sort a list?"]
    )
    """One text, or several. The encoder cuts a text that is longer than its own token limit."""
    model: Tower
    """`question`: the tower that reads questions; `passage`: that of passages, which then have no title."""
    dimensions: int | None = Field(None, ge=1)
    """Keep only this many first components, scaled to length 1 if whole vectors are."""
    encoding_format: Literal["float", "base64"] = "float"
    """`base64`: the components as float32, little endian."""
    user: str | None = None
    """Accepted, since clients send it, and not used."""

    def texts(self) -> Sequence[str]:
        """Return the texts in order, in whichever form they came."""
        return [self.input] if isinstance(self.input, str) else self.input
