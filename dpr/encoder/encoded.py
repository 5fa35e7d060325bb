"""Vectors of questions, and of passages that are encoded like them. Shapes: Q questions, D dimensions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpr.formats.cut_texts import CutTexts


@dataclass(frozen=True)
class EncodedQuestions:
    """Vectors of questions, or of passages, and the tokens that these lost to the token limit."""

    vectors_QD: npt.NDArray[np.float32]
    lost_Q: npt.NDArray[np.int64]
    """Tokens that each lost."""
    cut: CutTexts
