"""Encoding around rows that the encoder refuses: they are found by halving what failed.

Shapes: N rows, D dimensions.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dpr.encoder.tokens import SHORTEST, TokenBatch
from dpr.errors import UnitError
from dpr.segment import Vectors

if TYPE_CHECKING:
    from dpr.encoder.encode import TowerEncoder

MAX_BAD_ROWS = 100
"""More rows of one unit than this that the encoder refuses mean that the encoder is at fault, not the rows."""


def encode_rows(encoder: "TowerEncoder", tokens: TokenBatch) -> tuple[Vectors, dict[str, str]]:
    """Vectors (N, D) float16, and row number → reason for those that have none; UnitError if those are too many."""
    vectors_ND, bad = _encode_or_bisect(encoder, tokens, np.arange(len(tokens)))
    for row in np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1)):
        bad.setdefault(str(row), "the encoder gave a vector that is not finite")
    if len(bad) > MAX_BAD_ROWS:
        raise UnitError(
            f"the encoder refused {len(bad)} of {len(tokens)} passages (first: {next(iter(bad.values()))}); that "
            f"many (over {MAX_BAD_ROWS}) point to the model or the machine, so nothing was quarantined"
        )
    if bad:
        _check_encodes(encoder, next(iter(bad.values())))
    return vectors_ND, bad


def _check_encodes(encoder: "TowerEncoder", reason: str) -> None:
    """Raise UnitError if the encoder refuses what any encoder can encode, since the rows are not at fault then."""
    try:
        sound = bool(np.isfinite(encoder.encode(SHORTEST)).all())
    except RuntimeError:
        sound = False
    if not sound:
        raise UnitError(
            f"the encoder refuses even a passage of two tokens ({reason}); that points to the model or the machine, so "
            "nothing was quarantined: start the run again, elsewhere if it happens again"
        )


def _encode_or_bisect(
    encoder: "TowerEncoder", tokens: TokenBatch, rows: npt.NDArray[np.int64]
) -> tuple[Vectors, dict[str, str]]:
    try:
        return encoder.encode(tokens.select(rows)), {}
    except (RuntimeError, ValueError, IndexError) as error:
        if len(rows) == 1:
            reason = f"the encoder failed on it: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
            return np.full((1, encoder.dim), np.nan, np.float16), {str(rows[0]): reason}
    halves = np.array_split(rows, 2)
    first_ND, first_bad = _encode_or_bisect(encoder, tokens, halves[0])
    if len(first_bad) > MAX_BAD_ROWS:  # no use in asking for the rest
        return np.full((len(rows), encoder.dim), np.nan, np.float16), first_bad
    second_ND, second_bad = _encode_or_bisect(encoder, tokens, halves[1])
    return np.concatenate([first_ND, second_ND]), first_bad | second_bad
