"""Rolling back: an old body is live again, nothing is lost, and rows of kept snapshots are not embedded again."""

from pathlib import Path

import numpy as np
import pytest

from dpr.errors import MissingObjectError, RecipeError, StoreError
from dpr.formats.snapshots import numbers, read_snapshot
from dpr.operations.gc import collect
from dpr.operations.rollback import rollback
from dpr.operations.verify import verify
from dpr.store import LocalStore
from dpr.store.lease import Lease
from tests.collection import Collection, FirstNights, let_pass
from tests.tiny import Quiet

DAY = 24 * 3600.0


@pytest.fixture(scope="module")
def three_nights(first_nights: FirstNights, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Each changes and adds passages, and the third makes most of the first segments dead."""
    nights = first_nights.copy(tmp_path_factory.mktemp("rollback") / "nights")
    nights.corpus |= {"p001": "w1 w2", "second": "w3 w4"}
    nights.night()
    nights.corpus |= {f"p{n:03d}": f"w{n} w{n + 1} w{n + 2}" for n in range(25)} | {"third": "w5 w6"}
    nights.night()
    return nights


@pytest.fixture
def nights(three_nights: Collection, tmp_path: Path) -> Collection:
    return three_nights.copy(tmp_path / "nights")


def texts(nights: Collection, number: int) -> dict[str, str]:
    return {id_: text for id_, (text, _) in nights.live_rows(nights.body(number)).items()}


def test_an_old_body_lives_again_under_a_new_number(nights: Collection) -> None:
    before = nights.files()
    answers = {number: nights.answers(number) for number in (1, 2, 3)}
    snapshot = rollback(nights.store, 1)
    assert (snapshot.number, snapshot.parent, snapshot.note) == (4, 3, "rollback to 1")
    assert snapshot.body == nights.body(1)
    assert snapshot.inputs is None  # so the next run reads the corpus again
    assert snapshot.run_id == read_snapshot(nights.store, 1).run_id
    assert nights.files() - before == {"snapshots/00000004.json"}  # no marker and no probe stays
    assert before <= nights.files()
    for number in (1, 2, 3):
        assert nights.answers(number) == answers[number]
    assert nights.answers(4) == answers[1]


def test_what_cannot_be_rolled_back_to_is_refused(nights: Collection) -> None:
    with pytest.raises(RecipeError, match=r"snapshot 3 of .* is live already; name an older one"):
        rollback(nights.store, 3)
    with pytest.raises(MissingObjectError, match="has no snapshot 7; it has 1 to 3"):
        rollback(nights.store, 7)
    assert numbers(nights.store) == [1, 2, 3]
    assert list(nights.store.list("readers/")) == []


class Replacing(LocalStore):
    """A folder that replaces existing objects, as S3 servers without If-None-Match do."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True


def test_a_store_that_would_let_another_replace_a_snapshot_is_refused(nights: Collection) -> None:
    with pytest.raises(StoreError, match="lets a second writer replace an object"):
        rollback(Replacing(nights.recipe.store), 1)
    assert numbers(nights.store) == [1, 2, 3]
    assert list(nights.store.list("readers/")) == []


def test_after_a_rollback_nothing_that_a_kept_snapshot_holds_is_embedded_again(nights: Collection) -> None:
    rollback(nights.store, 1)
    third = nights.body(3)
    nights.corpus["more"] = "w100 w3"
    progress = Quiet()
    outcome = nights.night(progress=progress)
    assert progress.rows["embed"] == 1
    assert outcome.report
    assert (outcome.report.base, outcome.report.found.embedded, outcome.report.found.new) == (4, 1, 1)
    assert outcome.snapshot.number == 5
    assert texts(nights, 5) == nights.corpus
    vectors, before = nights.live_rows(nights.body(5)), nights.live_rows(third)
    for id_, (_, vector_D) in before.items():
        np.testing.assert_array_equal(vectors[id_][1], vector_D)
    assert verify(nights.store, [5], deep=True)[1] == []


@pytest.mark.parametrize("times", [1, 2])
def test_a_rollback_and_back_embeds_nothing(nights: Collection, times: int) -> None:
    """The corpus is as on the third night: its rows live again, whichever kept snapshot holds them."""
    for _ in range(times):
        rollback(nights.store, 1)
    progress = Quiet()
    outcome = nights.night(progress=progress)
    assert progress.rows["embed"] == 0
    assert (outcome.published, outcome.snapshot.number) == (True, 4 + times)
    assert texts(nights, 4 + times) == nights.corpus
    assert [hits[0] for hits in nights.answers(4 + times)] == [hits[0] for hits in nights.answers(3)]
    assert nights.night().published is False


def test_what_was_collected_is_embedded_again(nights: Collection) -> None:
    """A retired segment whose object is gone is no source of vectors."""
    rollback(nights.store, 1)
    let_pass(nights.store, 2 * DAY)
    with Lease.acquire(nights.store, "gc") as lease:
        collect(nights.store, 1, lease)
    assert numbers(nights.store) == [4]
    progress = Quiet()
    nights.night(progress=progress)
    assert progress.rows["embed"] == 27
    assert texts(nights, 5) == nights.corpus


def test_a_passage_of_two_kept_snapshots_lives_once(nights: Collection) -> None:
    """After nights before and after a rollback, several segments hold the same passage; one of these rows is live."""
    rollback(nights.store, 1)
    nights.night()
    rollback(nights.store, 2)
    nights.corpus["more"] = "w100 w3"
    progress = Quiet()
    nights.night(progress=progress)
    assert progress.rows["embed"] == 1
    assert texts(nights, numbers(nights.store)[-1]) == nights.corpus
    assert verify(nights.store, numbers(nights.store), deep=True)[1] == []
