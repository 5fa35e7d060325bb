"""Vectors of texts for clients that need vectors: by the question tower or the passage tower of a snapshot's encoder.

Shapes: N texts, D dimensions, d dimensions that are kept.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from dpr.encoder.compute import Compute
from dpr.encoder.spec import resolve_passage
from dpr.errors import EncoderError, RecipeError
from dpr.formats.manifest import EncoderDescription
from dpr.index.truth import Scores

if TYPE_CHECKING:
    from dpr.encoder.encode import PassageEncoder
    from dpr.encoder.question_encoder import QuestionEncoder

Tower = Literal["question", "passage"]


@dataclass(frozen=True)
class Embedded:
    """Vectors, and the tokens that they were made of."""

    vectors_Nd: Scores
    tokens: int
    lost_tokens: int
    """Tokens beyond the encoder's limit, which it did not read."""


class Embedder:
    """Both towers of an encoder; that of passages is loaded when it is first used, and shares what it can."""

    def __init__(self, description: EncoderDescription, questions: "QuestionEncoder") -> None:
        self._description, self._questions = description, questions
        self._passages: PassageEncoder | None = None
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], tower: Tower, dimensions: int | None = None) -> Embedded:
        """Return a vector of each text.

        `dimensions`: only this many first components, scaled to length 1 if the encoder scales its vectors. Raises
        RecipeError for more than there are, and where the passage tower is not on this machine; EncoderError for a text
        whose vector is not finite.
        """
        dim = self._description.dim
        if dimensions is not None and dimensions > dim:
            raise RecipeError(f"dimensions is {dimensions}, and vectors of this encoder have {dim}; ask for fewer")
        if tower == "question":
            encoded = self._questions.encode_counted(texts)
        else:
            encoded = self._passage_encoder().encode_counted(texts)
            if not np.isfinite(encoded.vectors_QD).all():
                raise EncoderError("the encoder gives a vector of NaN or infinity; set encoder.precision to fp32")
        vectors_Nd = encoded.vectors_QD[:, :dimensions]
        if self._description.question.normalize and vectors_Nd.shape[1] < dim:
            vectors_Nd = vectors_Nd / np.maximum(np.linalg.norm(vectors_Nd, axis=1, keepdims=True), 1e-12)
        lost_tokens = int(encoded.lost_Q.sum())
        return Embedded(vectors_Nd, encoded.cut.tokens - lost_tokens, lost_tokens)

    def _passage_encoder(self) -> "PassageEncoder":
        from dpr.encoder.encode import PassageEncoder, TowerEncoder

        with self._lock:
            if self._passages is None:
                question = self._questions.tower
                try:
                    tower = resolve_passage(self._description, question)
                except EncoderError as error:
                    raise RecipeError(f"model passage cannot be used here: {error}") from error
                same_network = (tower.folder, tower.pooling, tower.prompt_pooled, tower.dim, tower.normalize) == (
                    question.folder,
                    question.pooling,
                    question.prompt_pooled,
                    question.dim,
                    question.normalize,
                )
                network = self._questions.network
                # the encoder of questions, in eight bits, gives other vectors than those that are stored
                is_shared = same_network and tower.prompt_pooled
                shared = network if isinstance(network, TowerEncoder) and is_shared else None
                self._passages = PassageEncoder(tower, Compute(self._description.config.precision), shared)
            return self._passages
