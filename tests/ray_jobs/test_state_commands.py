"""The commands that say how a store stands, as a user types them."""

import json
import os
from pathlib import Path

import pytest

from dpr.errors import GateError
from dpr.store import LocalStore
from tests.collection import FirstNights
from tests.ray_jobs.conftest import Dpr
from tests.store.test_lease import claim_of_another_machine

pytestmark = pytest.mark.without_ray


def test_watching_ends_as_the_run_has_ended(first_nights: FirstNights, tmp_path: Path, dpr: Dpr) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    url = collection.store.url
    assert dpr("status", url, "--watch") == (0, "published snapshot 1 with 30 passages\n", "")
    collection.change(gate={"min_recall": 1.0, "max_questions": 5}, index={"factory": "PQ1x4", "rescore": 0})
    with pytest.raises(GateError):
        collection.night()
    code, out, _ = dpr("status", url, "--watch")
    assert code == 3
    assert "recall" in out
    code, out, _ = dpr("status", url, "--watch", "--json")
    document = json.loads(out)
    assert (code, document["is_over"], document["run"]["ending"]["exit_code"]) == (3, True, 3)
    assert f"pid {os.getpid()}" in document["holder"]


def test_watching_a_run_that_died_ends_with_a_sentence(tmp_path: Path, dpr: Dpr) -> None:
    store = LocalStore(tmp_path / "store")
    assert dpr("status", store.url, "--watch") == (0, f"nobody has worked on store {store.url} yet\n", "")
    claim_of_another_machine(store, 1, ttl_seconds=0.2)
    code, out, err = dpr("status", store.url, "--watch", "--poll-seconds", 0.1)
    assert code == 11
    assert out.startswith("no stage has begun; run of elsewhere (host elsewhere, ")
    assert err.startswith("error: run of elsewhere (host elsewhere, ")
    assert err.endswith("it has died, or cannot reach the store; start the run again to go on from there\n")


def test_why_answers_for_one_passage(first_nights: FirstNights, tmp_path: Path, dpr: Dpr) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    collection.corpus["p003"] = "w1 w2 w3"
    collection.night()
    code, out, _ = dpr("why", collection.store.url, "p003")
    assert (code, out.count("\n")) == (0, 1)
    assert "since snapshot 2 (20" in out
    assert ": embedded; edited: its title, text, windows or extra columns differ from " in out
    (row,) = json.loads(dpr("why", collection.store.url, "p003", "--snapshot", 1, "--json")[1])
    assert (row["reason"], row["is_copied"], row["since"]) == ("new", False, 1)
    code, _, err = dpr("why", collection.store.url, "nobody")
    assert (code, err.count("\n")) == (2, 1)
    assert "has no passage with the id 'nobody'" in err


def test_the_report_of_a_run_is_written_beside_that_of_its_index(
    first_nights: FirstNights, tmp_path: Path, dpr: Dpr
) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    code, out, _ = dpr("report", collection.store.url, "--out", tmp_path / "report")
    assert (code, out.splitlines()) == (0, [str(tmp_path / "report" / name) for name in ("report.html", "run.html")])
    assert "Published snapshot 1 with 30 passages" in (tmp_path / "report" / "run.html").read_text()
