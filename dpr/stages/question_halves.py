"""The halves of the gate's questions: settings are chosen on one, and measured on the other."""

import numpy as np
import numpy.typing as npt

MAX_TUNING_QUESTIONS = 1_000
"""Questions that settings are chosen on: enough to know the recall of 20 hits each to a fraction of a percent."""
MIN_HALF = 50


def split_questions(questions: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return which questions settings are chosen on, and which they are then measured on: halves, drawn by the seed.

    At most MAX_TUNING_QUESTIONS are tuned on, the rest is measured on. With fewer than MIN_HALF in a half, chance would
    choose and measure, so then all questions serve both.
    """
    if questions < 2 * MIN_HALF:
        return np.arange(questions), np.arange(questions)
    order = np.random.default_rng(seed).permutation(questions)
    tuned = min(questions // 2, MAX_TUNING_QUESTIONS)
    return np.sort(order[:tuned]), np.sort(order[tuned:])
