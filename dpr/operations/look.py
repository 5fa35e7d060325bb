"""A look at a corpus, in seconds: some rows of many slices, read as a scan reads them."""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dpr.corpus.place import describe_place
from dpr.corpus.reading import read_slice
from dpr.corpus.rows import Passage, Row, Slice
from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.plurals import counted
from dpr.recipe import CorpusConfig, Limits

LOOK_ROWS = 20_000
LOOK_SECONDS = 5.0
MIN_ROWS_PER_SLICE = 50


@dataclass
class Look:
    """What a look at a corpus found."""

    slices: Sequence[Slice]
    rows: int = 0
    """Rows that were read, usable or not."""
    row_bytes: int = 0
    """Their size in the input, unpacked."""
    is_whole: bool = False
    """Whether these are all rows."""
    ids: set[str] = field(default_factory=set)
    """Ids of the usable rows."""
    first: Passage | None = None
    """The first usable one."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Unusable rows by reason."""
    examples: dict[str, Row] = field(default_factory=dict)
    """The first row of each reason."""

    @property
    def input_bytes(self) -> int:
        return sum(slice_.size_bytes for slice_ in self.slices)

    @property
    def min_passages(self) -> int:
        """Return about the smallest number of passages; a compressed file holds more than its size suggests."""
        return len(self.ids) if self.is_whole else int(len(self.ids) * self.input_bytes / max(self.row_bytes, 1))

    def add(self, row: Row) -> None:
        """Count a row."""
        self.rows += 1
        self.row_bytes += len(row.raw)
        reason = row.reason.partition(":")[0]
        if row.passage is not None and row.passage.id in self.ids:
            reason = "duplicate id"
        if reason:
            self.reasons[reason] += 1
            self.examples.setdefault(reason, row)
        elif row.passage is not None:
            self.ids.add(row.passage.id)
            self.first = self.first or row.passage

    def describe(self) -> str:
        """Describe the corpus, and how many of its rows cannot be used."""
        files = len({file.path for s in self.slices for file in s.files} | {s.path for s in self.slices if not s.files})
        formats = ", ".join(sorted({slice_.format for slice_ in self.slices}))
        size = f"{counted(files, 'file')}, {self.input_bytes / 1e6:,.1f} MB, {formats}"
        usable = self.describe_unusable() if self.reasons else "all can be used"
        return f"{size}; {'all' if self.is_whole else 'a sample of'} {counted(self.rows, 'row')} read, {usable}"

    def describe_unusable(self) -> str:
        """Say how many rows cannot be used, with the commonest reason and an example of it."""
        reason, count = self.reasons.most_common(1)[0]
        row = self.examples[reason]
        place = describe_place(row.source, row.position, row.raw)
        unusable = self.reasons.total()
        return (
            f"{unusable:,} of {self.rows:,} rows ({unusable / self.rows:.1%}) cannot be used, most of them for "
            f"{row.reason or reason!r} ({counted(count, 'row')}, such as {place})"
        )

    def check(self, limits: Limits) -> None:
        """Raise CorpusError if a run over rows like these would stop."""
        unusable = self.reasons.total()
        too_many = unusable > limits.max_quarantine_share * self.rows or unusable > limits.max_quarantine_rows
        if self.rows and (too_many or not self.ids):
            raise CorpusError(
                f"{self.describe_unusable()}; the recipe allows {limits.max_quarantine_share:.1%} "
                "(limits.max_quarantine_share)"
            )


def look_at(corpus: CorpusConfig, seconds: float = LOOK_SECONDS, store: str | None = None) -> Look:
    """Read rows from the beginning of many slices, in random order, for at most about `seconds`.

    Raises CorpusError for a corpus that cannot be planned, or a file that cannot be read; and, as `plan_slices` does,
    RecipeError for a `store` that lies among the files.
    """
    slices = plan_slices(corpus, store=store).slices
    look, give_up = Look(slices), time.monotonic() + seconds
    most = max(MIN_ROWS_PER_SLICE, LOOK_ROWS // len(slices))
    whole = 0
    for slice_ in random.Random(7).sample(list(slices), len(slices)):
        if look.rows >= LOOK_ROWS or time.monotonic() > give_up:
            break
        left = most
        for row in read_slice(slice_, corpus):
            if not left:
                break
            look.add(row)
            left -= 1
        else:
            whole += 1
    look.is_whole = whole == len(slices)
    return look
