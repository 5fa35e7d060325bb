"""Splitting long texts into windows: each is as long as the encoder's token limit allows, and repeats a quarter.

A window ends at white space where there is some in its second half, otherwise between two tokens. How many tokens a
window gives is measured, not estimated: a window that would still be cut is made shorter.

Shapes: N texts.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dpr.encoder.loaded_tokenizer import LoadedTokenizer
from dpr.encoder.tokens import TowerTokenizer
from dpr.encoder.tower import TowerSpec

OVERLAP = 4
"""A window repeats this share, one fourth, of the previous one's length."""
MIN_ROOM = 4
"""Windows are as long as prefix and title allow, if these leave at least this share, one fourth, of the tokens to the
text."""
_ENCODED_AT_ONCE = 16
"""Long texts whose tokens are held as the library gives them, about 100 bytes each."""

Bounds = npt.NDArray[np.int64]


class TextWindows:
    """Splits the texts of passages so that a tower reads all of them. Several threads may call it."""

    def __init__(self, tower: TowerSpec, loaded: LoadedTokenizer | None = None) -> None:
        self._tower = tower
        self._tokenizer = TowerTokenizer(tower, loaded=loaded)

    def split(self, titles: Sequence[str], texts: Sequence[str]) -> list[list[str]]:
        """Return the windows of each of N texts, in their order; a text that is short enough is its own only window.

        Two windows of a text are never the same. Where title and prefix leave less than a fourth of the tokens: a pair
        loses the end of its title, and the text gets half of the tokens; a text joined to its title by a space is not
        split, since no window would be read.
        """
        lost_N = self._tokenizer.passages(titles, texts).lost_N
        windows = [[text] for text in texts]
        long = np.flatnonzero(lost_N).tolist()
        for first in range(0, len(long), _ENCODED_AT_ONCE):
            rows = long[first : first + _ENCODED_AT_ONCE]
            encoded = self._tokenizer.uncut.encode_batch([texts[row] for row in rows], add_special_tokens=False)
            for row, encoding in zip(rows, encoded, strict=True):
                offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
                starts = np.maximum.accumulate(offsets[:, 0]) if len(offsets) else offsets[:, 0]
                windows[row] = self._windows(titles[row], texts[row], starts)
        return windows

    def _windows(self, title: str, text: str, starts: Bounds) -> list[str]:
        """Return the windows of a text whose tokens begin at characters `starts`."""
        is_pair = self._tower.title_join == "pair"
        specials = self._tokenizer.uncut.num_special_tokens_to_add(is_pair=is_pair)
        room = self._tower.max_tokens - specials
        alone = self._tokenizer.passages([title], [""])
        size = self._tower.max_tokens - int(alone.lengths()[0] + alone.lost_N[0])
        if size < max(1, room // MIN_ROOM):
            return _cut(text, starts, room // 2) if is_pair and room > 1 else [text]
        while size > 0:
            windows = _cut(text, starts, size)
            lost = int(self._tokenizer.passages([title] * len(windows), windows).lost_N.max(initial=0))
            if not lost:
                return windows
            size -= lost
        return [text]


def _cut(text: str, starts: Bounds, size: int) -> list[str]:
    """Return windows of at most `size` tokens, each once."""
    windows = [text[begin:end].strip() for begin, end in spans(text, starts, size)]
    return [window for window in dict.fromkeys(windows) if window]


def spans(text: str, starts: Bounds, size: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of windows of `text` of at most `size` tokens, which begin at characters `starts`, ascending.

    Tokens that are parts of one character begin at the same place, so a window may have a few tokens more.
    """
    begin = first = 0
    while first + size < len(starts):
        limit = int(starts[first + size])
        end = max(_space_before(text, limit, (begin + limit) // 2), begin + 1)
        yield begin, end
        back = min(int(np.searchsorted(starts, end)), len(starts) - 1) - size // OVERLAP
        again = min(int(starts[max(first, back)]), end)
        begin = max(_word_after(text, again, end), begin + 1)
        first = int(np.searchsorted(starts, begin))
    yield begin, len(text)


def _space_before(text: str, end: int, least: int) -> int:
    """Return the last place up to `end` and after `least` at which white space begins; `end` if there is none."""
    place = end
    while place > least and not text[place - 1].isspace():
        place -= 1
    return place if place > least else end


def _word_after(text: str, begin: int, end: int) -> int:
    """Return where the first word begins after white space, from `begin` on and before `end`; `begin` if none does."""
    place = begin
    while place < end and not text[place].isspace() and not (place and text[place - 1].isspace()):
        place += 1
    while place < end and text[place].isspace():
        place += 1
    return place if place < end else begin
