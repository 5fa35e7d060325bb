"""Rows whose texts are longer than the encoder's token limit become several rows, one for each window of the text.

All windows of a passage have its id and its title. A window is at the position of its row, times 2^20, plus the
window's number. So each window has a position of its own, and positions show which windows belong to one passage.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from dpr.corpus.rows import WINDOW_BITS, Row, Windows, unusable_row

if TYPE_CHECKING:
    from dpr.encoder.text_windows import TextWindows

ROWS_AT_ONCE = 256
"""Rows that are tokenised together: the tokenizer is called for many texts at once."""


def split_long(rows: Iterable[Row], windows: Windows) -> Iterator[Row]:
    """Yield the windows of all rows; a row that cannot be used stays as it is, except for its position.

    Raises EncoderError as `load_splitter` does.
    """
    splitter = load_splitter(windows)
    rows = iter(rows)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        passages = [row.passage for row in some if row.passage is not None]
        found = iter(splitter.split([passage.title for passage in passages], [passage.text for passage in passages]))
        for row in some:
            place = row.position << WINDOW_BITS
            if row.passage is None:
                yield row._replace(position=place)
                continue
            texts = next(found)
            if len(texts) > 1 << WINDOW_BITS:
                yield unusable_row((row.source, place), row.stored, f"more than {1 << WINDOW_BITS:,} windows")
                continue
            for number, text in enumerate(texts):
                yield row._replace(position=place + number, passage=row.passage._replace(text=text))


def load_splitter(windows: Windows) -> "TextWindows":
    """Return the splitter, which takes seconds to load, and stays loaded for the next slice.

    Raises EncoderError if this machine's encoder is another than the one the run was planned with.
    """
    return _splitter(windows.model_dump_json())


@lru_cache(maxsize=2)  # the slices of a process share one
def _splitter(windows: str) -> "TextWindows":
    from dpr.encoder.spec import resolve_same
    from dpr.encoder.text_windows import TextWindows  # imports tokenizers, which is needed only if texts are split

    planned = Windows.model_validate_json(windows)
    return TextWindows(resolve_same(planned.encoder, planned.encoder_id).passage)
