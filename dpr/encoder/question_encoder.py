"""Encoding questions: in eight bits on CPUs with products of eight bits, else as passages are encoded.

Shapes: Q questions, D dimensions.
"""

import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dpr.encoder.compute import Compute
from dpr.encoder.encoded import EncodedQuestions
from dpr.encoder.int8_encoder import Int8Encoder, NotHereError
from dpr.encoder.tokens import TowerTokenizer
from dpr.encoder.tower import TowerSpec
from dpr.errors import EncoderError

if TYPE_CHECKING:
    from dpr.encoder.encode import TowerEncoder


class QuestionEncoder:
    """Turns questions into vectors: E_Q of the paper.

    In eight bits a question's vector does not depend on what it is encoded with (measured with MiniLM: the same bits
    alone, in batches of 7 and of 200). In other arithmetic it does, since how a sum is rounded depends on the size of
    the batch: in fp32 by less than 1e-6 a component, which no ranking shows; in bf16 by up to 0.002, so that of 300
    questions 23 had two of the first ten hits in another order (batches of 7 and of 300).
    """

    def __init__(self, tower: TowerSpec, compute: Compute = Compute()) -> None:
        self.tower = tower
        self._tokenizer = TowerTokenizer(tower)
        self.network, self.choice = _network(tower, compute)
        self._is_warm = False

    def encode(self, questions: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return vectors (Q, D) float32. Raises EncoderError as `encode_counted` does."""
        return self.encode_counted(questions).vectors_QD

    def encode_counted(self, questions: Sequence[str]) -> EncodedQuestions:
        """Return vectors, and the tokens that the questions lost to the token limit.

        Raises EncoderError for a question whose vector is zero or not finite, since nothing can be ranked by it.
        """
        tokens = self._tokenizer.questions(questions)
        vectors_QD: npt.NDArray[np.float32] = self.network.encode(tokens, np.float32)
        usable_Q = np.isfinite(vectors_QD).all(axis=1) & vectors_QD.any(axis=1)
        for row in np.flatnonzero(~usable_Q).tolist():
            fault = "zero" if np.isfinite(vectors_QD[row]).all() else "NaN or infinity"
            raise EncoderError(
                f"the encoder gives a vector of {fault} for question {row + 1} of {len(questions)}, "
                f"{reprlib.repr(questions[row])}; ask it in other words, or set encoder.precision to fp32"
            )
        return EncodedQuestions(vectors_QD, tokens.lost_N, tokens.cut())

    def warm_up(self) -> None:
        """Compile now, if not done yet, what would otherwise be compiled for the first questions."""
        if isinstance(self.network, Int8Encoder) and not self._is_warm:
            self.network.warm_up()
        self._is_warm = True


def _network(tower: TowerSpec, compute: Compute) -> "tuple[Int8Encoder | TowerEncoder, str]":
    """Load the encoder; also return a description of the choice and its reasons, for people."""
    try:
        rounded = Int8Encoder(tower, compute)
    except NotHereError as error:
        from dpr.encoder.encode import TowerEncoder  # PyTorch: seconds, and 300 MB

        network = TowerEncoder(tower, compute)
        return network, f"{network.choice}; not in eight bits: {error}"
    return rounded, rounded.choice
