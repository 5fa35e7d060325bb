"""Rows that cannot be used: collected into one file of the run, and counted against the recipe's limits."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpr.corpus.place import describe_place
from dpr.errors import CorpusError, DprError, EncoderError
from dpr.formats import layout
from dpr.formats.objects import open_parts, put_object
from dpr.formats.quarantine import Reasons, join_quarantine
from dpr.formats.records import ObjectRef
from dpr.plurals import counted
from dpr.recipe import Limits
from dpr.store import Store
from dpr.store.temporary import temporary_folder

OF_THE_ENCODER = "the encoder "
"""Start of the reason of a row that the encoder refused."""
REFUSED_TEXT = "the encoder refused the same text"
"""Reason of a row with the text of another row that the encoder refused."""


@dataclass(frozen=True)
class Quarantine:
    """The rows that a run could not use."""

    name: str
    """The object that holds them; empty if there is none."""
    reasons: Reasons

    @property
    def rows(self) -> int:
        return self.reasons.counts.total()


def collect_quarantine(store: Store, run_id: str, files: Sequence[ObjectRef | None]) -> Quarantine:
    """Put all rows of several quarantine files into one. Nothing is stored if there is no such row."""
    there = [ref for ref in files if ref is not None]
    if not there:
        return Quarantine("", Reasons(Counter(), {}))
    with temporary_folder() as folder:
        path = Path(folder, "quarantine.parquet")
        reasons = join_quarantine(path, (open_parts(store, ref) for ref in there))
        return Quarantine(put_object(store, layout.quarantine(run_id), path).name, reasons)


def max_unusable(rows: int, limits: Limits) -> int:
    """Return how many of `rows` corpus rows may be unusable before a run must stop. Pure."""
    by_share = int(round(limits.max_quarantine_share * rows, 6))  # 0.29 of 100 is 28.999999999999996
    return min(limits.max_quarantine_rows, by_share)


def describe_limits(limits: Limits) -> str:
    """Describe how many unusable rows a recipe allows."""
    return (
        f"{limits.max_quarantine_share:.1%} and {counted(limits.max_quarantine_rows, 'row')} (limits.max_quarantine_…)"
    )


def check_quarantine(store: Store, found: Quarantine, passages: int, limits: Limits) -> None:
    """Raise an error if more rows are unusable than the recipe allows, or all; the rows are stored either way.

    It is an EncoderError if most of them were refused by the encoder, else a CorpusError. The sentence has the
    commonest reason, an example of it, and where all of them are.
    """
    rows = found.rows + passages
    if not found.rows or (passages and found.rows <= max_unusable(rows, limits)):
        return
    reason, count = _commonest(found.reasons.counts)
    example = found.reasons.examples[reason]
    error: type[DprError] = EncoderError if reason.startswith(OF_THE_ENCODER) else CorpusError
    nothing = "" if passages else "the corpus holds no usable passage: "
    allowed = f", and the recipe allows {describe_limits(limits)}" if passages else ""
    raise error(
        f"{nothing}{found.rows:,} of {rows:,} corpus rows ({found.rows / rows:.1%}) cannot be used{allowed}; the "
        f"commonest reason is {example.reason!r} ({counted(count, 'row')}, the first is "
        f"{describe_place(example.source, example.position, example.raw)}); nothing was published, and all these rows "
        f"with their reasons are in {found.name} of {store.url}"
    )


def _commonest(counts: Counter[str]) -> tuple[str, int]:
    """Return the commonest reason and its rows; copies of a refused text count for the reason of that text."""
    others = Counter({reason: count for reason, count in counts.items() if reason != REFUSED_TEXT})
    (reason, count), *_ = others.most_common(1) or counts.most_common(1)
    return reason, count + (counts[REFUSED_TEXT] if others and reason.startswith(OF_THE_ENCODER) else 0)


def check_size(passages: int, before: int, limits: Limits, *, allow_shrink: bool) -> None:
    """Raise CorpusError for an empty corpus, or one that lost too large a share of the passages it had `before`."""
    if passages == 0:
        raise CorpusError("the files of the corpus hold no rows, so there is nothing to index; look at corpus.path")
    lost = 1 - passages / before if before else 0.0
    if lost > limits.max_shrink and not allow_shrink:
        raise CorpusError(
            f"the corpus shrank from {before} to {counted(passages, 'passage')} ({lost:.0%} fewer, limits.max_shrink "
            f"is {limits.max_shrink:.0%}); nothing was published: look at corpus.path, or pass --allow-shrink"
        )
