"""Comparing snapshots shows what happened to passages, whatever happened to segments."""

from pathlib import Path

import pytest

from dpr.errors import IntegrityError, MissingObjectError
from dpr.formats.snapshots import numbers
from dpr.operations.compare import compare
from dpr.operations.rollback import rollback
from tests.collection import FirstNights
from tests.formats.samples import cut_short


def test_any_two_snapshots_differ_as_their_corpora_do(first_nights: FirstNights, tmp_path: Path) -> None:
    history = first_nights.copy(tmp_path / "history")
    corpora = [dict(history.corpus)]
    for night in range(1, 5):
        match night:
            case 1:  # an edit, a removal, an addition
                history.corpus |= {"p001": "w1", "new": "w2"}
                del history.corpus["p002"]
            case 2:  # a revert, a rename
                history.corpus["renamed"] = history.corpus.pop("p003")
                history.corpus["p001"] = corpora[0]["p001"]
            case 3:  # most of a segment dies, so the rest is compacted
                history.corpus = dict(list(history.corpus.items())[9:])
            case 4:
                history.corpus |= dict(list(corpora[0].items())[:3])
        corpora.append(dict(history.corpus))
        history.night()
    corpora.append(corpora[1])
    rollback(history.store, 2)
    assert numbers(history.store) == [1, 2, 3, 4, 5, 6]
    for a, before in enumerate(corpora, 1):
        for b, after in enumerate(corpora, 1):
            found = compare(history.store, a, b)
            assert found.added == sorted(after.keys() - before.keys())
            assert found.removed == sorted(before.keys() - after.keys())
            assert found.changed == sorted(i for i in before.keys() & after.keys() if before[i] != after[i])
    with pytest.raises(MissingObjectError, match="has no snapshot 7; it has 1 to 6"):
        compare(history.store, 1, 7)
    assert list(history.store.list("readers/")) == []


def test_only_segments_that_differ_are_read(first_nights: FirstNights, tmp_path: Path) -> None:
    history = first_nights.copy(tmp_path / "history")
    history.corpus["new"] = "w1"
    history.night()
    first, second = ({entry.object.name for entry in history.body(number).segments} for number in (1, 2))
    for name in first & second:
        history.file(name).unlink()
    assert compare(history.store, 1, 2).added == ["new"]
    (other,) = second - first
    cut_short(history.file(other))
    with pytest.raises(IntegrityError, match="its record says"):
        compare(history.store, 1, 2)
    assert list(history.store.list("readers/")) == []
