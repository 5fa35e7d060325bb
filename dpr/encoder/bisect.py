"""Encoding a unit in which some rows make the encoder fail: bisection finds these rows.

Shapes: N rows, D dimensions.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dpr.encoder.tokens import SHORTEST, TokenBatch
from dpr.errors import UnitError
from dpr.formats.stored_vectors import Vectors

if TYPE_CHECKING:
    from dpr.encoder.encode import TowerEncoder

MAX_BAD_ROWS = 100
"""If the encoder refuses more rows of one unit than this, then the encoder is at fault, not the rows."""


def encode_rows(encoder: "TowerEncoder", tokens: TokenBatch) -> tuple[Vectors, dict[int, str]]:
    """Encode all rows that can be encoded: return vectors (N, D) float16, and row number → reason for all others.

    Raises UnitError if too many rows fail, or if the encoder cannot even encode a row that any encoder can.
    """
    vectors_ND, bad_rows = _encode_or_halve(encoder, tokens, np.arange(len(tokens)))
    for row in np.flatnonzero(~np.isfinite(vectors_ND).all(axis=1)).tolist():
        bad_rows.setdefault(row, "the encoder gave a vector that is not finite")
    if len(bad_rows) > MAX_BAD_ROWS:
        raise UnitError(
            f"the encoder failed on {len(bad_rows)} of {len(tokens)} passages (first: {next(iter(bad_rows.values()))});"
            f" more than {MAX_BAD_ROWS} point to the model or the machine, so nothing was quarantined; check them "
            "and start the run again"
        )
    if bad_rows:
        _check_encoder(encoder, next(iter(bad_rows.values())))
    return vectors_ND, bad_rows


def _check_encoder(encoder: "TowerEncoder", reason: str) -> None:
    """Raise UnitError if the encoder fails on a row that any encoder can encode: then the rows are not at fault."""
    try:
        works = bool(np.isfinite(encoder.encode(SHORTEST)).all())
    except RuntimeError:
        works = False
    if not works:
        raise UnitError(
            f"the encoder fails even on a passage of two tokens ({reason}); that points to the model or the machine, "
            "so nothing was quarantined; start the run again, on another machine if it fails again"
        )


def _encode_or_halve(
    encoder: "TowerEncoder", tokens: TokenBatch, rows: npt.NDArray[np.int64]
) -> tuple[Vectors, dict[int, str]]:
    try:
        return encoder.encode(tokens.select(rows)), {}
    except (RuntimeError, ValueError, IndexError) as error:
        if len(rows) == 1:
            reason = f"the encoder failed on it: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
            return np.full((1, encoder.dim), np.nan, np.float16), {int(rows[0]): reason}
    first_rows, second_rows = np.array_split(rows, 2)
    first_ND, first_bad = _encode_or_halve(encoder, tokens, first_rows)
    if len(first_bad) > MAX_BAD_ROWS:  # there are too many already, so the other half need not be tried
        return np.full((len(rows), encoder.dim), np.nan, np.float16), first_bad
    second_ND, second_bad = _encode_or_halve(encoder, tokens, second_rows)
    return np.concatenate([first_ND, second_ND]), first_bad | second_bad
