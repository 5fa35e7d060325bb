"""Rows that cannot be used: collected into one file of the run, and counted against the recipe's limits."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dpr.errors import CorpusError
from dpr.formats import layout
from dpr.formats.objects import open_parts, put_object
from dpr.formats.quarantine import join_quarantine
from dpr.formats.records import ObjectRef
from dpr.recipe import Limits
from dpr.store import Store
from dpr.store.temporary import temporary_folder


def collect_quarantine(store: Store, run_id: str, files: Sequence[ObjectRef | None]) -> tuple[str, Counter[str]]:
    """Put all rows of several quarantine files into one; returns its name and how many rows have which reason.

    The name is empty, and nothing is stored, if there is no such row.
    """
    there = [ref for ref in files if ref is not None]
    if not there:
        return "", Counter()
    with temporary_folder() as folder:
        path = Path(folder, "quarantine.parquet")
        reasons = join_quarantine(path, (open_parts(store, ref) for ref in there))
        return put_object(store, layout.quarantine(run_id), path).name, reasons


def max_unusable(rows: int, limits: Limits) -> int:
    """Return how many of so many corpus rows may be unusable before a run must stop. Pure."""
    by_share = int(round(limits.max_quarantine_share * rows, 6))  # 0.29 of 100 is 28.999999999999996
    return max(limits.max_quarantine_rows, by_share)


def check_quarantine(store: Store, name: str, unusable_rows: int, passages: int, limits: Limits) -> None:
    """Raise CorpusError if more rows are unusable than the recipe allows; the rows are stored either way."""
    if unusable_rows > max_unusable(unusable_rows + passages, limits):
        share = unusable_rows / (unusable_rows + passages)
        raise CorpusError(
            f"{unusable_rows} of {unusable_rows + passages} corpus rows ({share:.1%}) cannot be used, the recipe "
            f"allows {limits.max_quarantine_rows} rows or {limits.max_quarantine_share:.1%} (limits); nothing was "
            f"published, and the rows with their reasons are in {name} of {store.url}"
        )


def check_duplicates(duplicates: int, passages: int, max_duplicates: int) -> None:
    """Raise CorpusError if more passages repeat the id of an earlier one than `max_duplicates`."""
    if duplicates > max_duplicates:
        raise CorpusError(
            f"{duplicates} of {passages} passages have the id of an earlier one, more unusable rows than the recipe "
            "allows (limits); nothing was published: look at columns.id, and for files that are in the corpus twice"
        )


def check_size(passages: int, before: int, limits: Limits, *, allow_shrink: bool) -> None:
    """Raise CorpusError for an empty corpus, or one that lost too large a share of the passages it had `before`."""
    if passages == 0:
        raise CorpusError("the corpus holds no usable passage, so there is nothing to index; look at corpus.path")
    lost = 1 - passages / before if before else 0.0
    if lost > limits.max_shrink and not allow_shrink:
        raise CorpusError(
            f"the corpus shrank from {before} to {passages} passages ({lost:.0%} fewer, limits.max_shrink is "
            f"{limits.max_shrink:.0%}); nothing was published: look at corpus.path, or pass --allow-shrink"
        )
