"""The commands that look after a store, as a user types them."""

import json
import os
from pathlib import Path

import pytest

from dpr.errors import ConflictError
from dpr.formats.snapshots import open_snapshot, read_snapshot
from dpr.store import LocalStore
from dpr.store.lease import Lease
from ray_jobs.cli_common import summary
from tests.collection import Collection, FirstNights, let_pass
from tests.ray_jobs.conftest import Dpr
from tests.tiny import Quiet, random_texts

pytestmark = pytest.mark.without_ray

DAY = 24 * 3600.0


@pytest.fixture
def nights(tmp_path: Path, first_nights: FirstNights) -> Collection:
    """A collection after three nights, in each of which w1 had another answer."""
    made = first_nights.copy(tmp_path, random_texts(30) | {"changing": "w1"})
    for text in ("w2 w2", "w3 w3 w3"):
        made.corpus["changing"] = text
        made.night()
    return made


def objects(collection: Collection) -> set[str]:
    """Return the names of all objects but the lease's."""
    return {name for name in collection.files() if not name.startswith("lease/")}


def test_history_lists_every_snapshot(nights: Collection, dpr: Dpr, tmp_path: Path) -> None:
    code, out, _ = dpr("history", nights.store.url, "--json")
    assert code == 0
    assert [(row["snapshot"], row["passages"]) for row in json.loads(out)] == [(1, 31), (2, 31), (3, 31)]
    dpr("rollback", nights.store.url, 1)
    rows = json.loads(dpr("history", nights.store.url, "--json")[1])
    assert [row["note"] for row in rows] == ["", "", "", "rollback to 1"]
    code, out, _ = dpr("history", nights.store.url)
    assert (code, out.splitlines()[0]) == (0, f"snapshots of {nights.store.url}")
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [(cell[0], cell[2], cell[-1]) for cell in cells] == [
        (str(row["snapshot"]), f"{row['passages']:,}", row["note"]) for row in rows
    ]
    assert [cell[1] for cell in cells] == [row["published"][:16].replace("T", " ") for row in rows]
    assert max(map(len, out.splitlines()[1:])) <= 80
    code, out, _ = dpr("history", nights.store.url, "--report", tmp_path / "report")
    assert (code, out.splitlines()[-1]) == (0, str(tmp_path / "report" / "history.html"))


def test_the_history_of_no_store_is_one_sentence(tmp_path: Path, dpr: Dpr) -> None:
    code, out, err = dpr("history", tmp_path / "nowhere")
    assert (code, out) == (5, "")
    assert err == f"error: store {tmp_path}/nowhere has no snapshot; `dpr run RECIPE` makes the first\n"


def test_ranks_are_shown_in_their_order(nights: Collection) -> None:
    snapshot = read_snapshot(nights.store, 3)
    gate = snapshot.body.gate.model_copy(update={"accuracy_index": {"1": 0.2, "20": 0.7, "5": 0.4}})
    shown = snapshot.model_copy(update={"body": snapshot.body.model_copy(update={"gate": gate})})
    assert summary(shown)["answered"] == "top-1 0.2000, top-5 0.4000, top-20 0.7000"


def test_rollback_brings_the_old_answers_back_and_the_next_night_the_new(nights: Collection, dpr: Dpr) -> None:
    def text() -> str:
        found = json.loads(dpr("search", nights.store.url, "w1", "-k", 31, "--json")[1])
        return next(hit["text"] for hit in found["hits"] if hit["id"] == "changing")

    assert text() == "w3 w3 w3"
    code, out, _ = dpr("rollback", nights.store.url, 1)
    assert (code, out) == (0, "snapshot 4 is live, with the body of snapshot 1\n")
    assert text() == "w1"
    outcome = nights.night()
    assert outcome.snapshot.number == 5
    assert text() == "w3 w3 w3"
    code, _, err = dpr("rollback", nights.store.url, 5)
    assert (code, err.count("\n")) == (2, 1)
    assert "snapshot 5 of" in err
    assert "is live already" in err
    code, _, err = dpr("rollback", nights.store.url, 9)
    assert code == 5
    assert "it has 1 to 5" in err
    code, out, _ = dpr("rollback", nights.store.url, 1, "--json")
    assert (code, json.loads(out)) == (0, {"snapshot": 6, "body_of": 1})


def test_diff_shows_what_changed(nights: Collection, dpr: Dpr) -> None:
    nights.corpus["added"] = "w9"
    del nights.corpus["p000"]
    nights.night()
    code, out, _ = dpr("diff", nights.store.url, 1, 4)
    assert code == 0
    assert out.splitlines() == ["+ added", "- p000", "~ changing", "1 added, 1 removed, 1 changed"]
    assert json.loads(dpr("diff", nights.store.url, 4, 1, "--json")[1]) == {
        "added": ["p000"],
        "removed": ["added"],
        "changed": ["changing"],
    }
    assert dpr("diff", nights.store.url, 1, 9)[0] == 5


def test_verify_names_what_is_damaged(nights: Collection, dpr: Dpr) -> None:
    code, out, _ = dpr("verify", nights.store.url, "--deep", "--all")
    assert code == 0
    assert out.endswith("objects of 3 snapshots checked, 0 problems\n")
    second = json.loads((Path(nights.store.url) / "snapshots/00000002.json").read_text())["body"]
    named = second["index"]["loose"]  # that night's only new row, which is dead in the third
    (Path(nights.store.url) / named["name"]).unlink()
    assert dpr("verify", nights.store.url)[0] == 0  # of the live snapshot nothing is missing
    code, out, err = dpr("verify", nights.store.url, "--all")
    assert code == 6
    assert f"snapshot 2: {named['name']}: " in out
    assert err.endswith("has 1 problem, and its live snapshot 3 has none; mend what is named above\n")
    code, out, _ = dpr("verify", nights.store.url, "--all", "--json")
    assert code == 6
    assert [problem["object"] for problem in json.loads(out)["problems"]] == [named["name"]]
    (Path(nights.store.url) / second["segments"][0]["object"]["name"]).unlink()  # which all snapshots name
    assert dpr("verify", nights.store.url, "--all")[2].endswith("has 2 problems; roll back to a snapshot without any\n")


@pytest.mark.parametrize("content", [b"{bad", b"{}"])
def test_an_older_damaged_document_is_named_and_stops_only_what_needs_it(
    nights: Collection, dpr: Dpr, tmp_path: Path, content: bytes
) -> None:
    url = nights.store.url
    nights.file("snapshots/00000002.json").write_bytes(content)
    problem = f"snapshot 2 of {url} is "

    code, out, _ = dpr("history", url, "--json")
    first, damaged, last = json.loads(out)
    assert (code, first["snapshot"], last["snapshot"], damaged.keys()) == (0, 1, 3, {"snapshot", "damaged"})
    assert damaged["damaged"].startswith(problem)
    code, out, _ = dpr("history", url, "--report", tmp_path / "report")
    rows = [line for line in out.splitlines() if line.startswith("│")]
    assert (code, len(rows), "damaged" in rows[1]) == (0, 3, True)
    assert f"damaged: {problem}" in " ".join(out.split())
    assert problem in (tmp_path / "report" / "history.html").read_text()
    code, out, _ = dpr("inspect", url)
    assert (code, f"damaged: {problem}" in " ".join(out.split())) == (0, True)
    assert [row["snapshot"] for row in json.loads(dpr("inspect", url, "--json")[1])["snapshots"]] == [1, 2, 3]

    for every in ((), ("--all",)):
        code, out, err = dpr("verify", url, *every)
        assert (code, out.count("snapshots/00000002.json: snapshot 2 of ")) == (6, 1)
        assert err.endswith("has 1 problem, and its live snapshot 3 has none; mend what is named above\n")
    for command in (("status", url), ("search", url, "w3"), ("diff", url, 1, 3), ("report", url, "--out", tmp_path)):
        assert dpr(*command)[0] == 0, command
    for command in (("diff", url, 2, 3), ("rollback", url, 2), ("inspect", url, "--snapshot", 2), ("gc", url)):
        code, _, err = dpr(*command)
        assert (code, err.startswith(f"error: {problem}"), err.count("\n")) == (6, True, 1), command
    assert dpr("gc", url, "--keep", 1)[0] == 0

    nights.corpus["changing"] = "w4"
    progress = Quiet()
    outcome = nights.night(progress=progress)
    assert (outcome.snapshot.number, outcome.snapshot.parent) == (4, 3)
    (told,) = (message for message in progress.messages if message.startswith(f"store: {problem}"))
    assert told.endswith("; the run continues, and embeds again what only that snapshot holds")


def test_why_names_a_damaged_document_that_may_have_the_answer(nights: Collection, dpr: Dpr) -> None:
    url = nights.store.url
    nights.file("snapshots/00000001.json").write_bytes(b"{bad")
    code, _, err = dpr("why", url, "p003")
    assert (code, err.startswith(f"error: snapshot 1 of {url} is damaged: ")) == (6, True)
    code, out, _ = dpr("why", url, "changing")
    assert (code, "since snapshot 3" in out) == (0, True)


def test_verify_finds_a_corpus_file_that_changed_without_a_sign(nights: Collection, dpr: Dpr) -> None:
    recipe = nights.write_recipe()
    code, out, _ = dpr("verify", nights.store.url, "--deep", "--recipe", recipe)
    assert (code, out.splitlines()[-1]) == (0, "1 scanned slice of the corpus read again, 0 changed files")
    status, data = nights.path.stat(), nights.path.read_bytes()
    nights.path.write_bytes(data.replace(b"w3 w3 w3", b"w4 w4 w4"))
    os.utime(nights.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, out, err = dpr("verify", nights.store.url, "--deep", "--recipe", recipe)
    assert code == 6
    assert f"corpus file {nights.path}: it was changed after it was scanned, though its size and time (or ETag)" in out
    assert err == "error: 1 corpus file changed without a sign; write them again and run the recipe\n"
    nights.path.touch()
    assert dpr("verify", nights.store.url, "--deep", "--recipe", recipe)[0] == 0  # the next run reads it anyway
    code, _, err = dpr("verify", nights.store.url, "--recipe", recipe)
    assert (code, "reads the whole corpus, so it needs --deep" in err) == (2, True)


def test_a_foreign_file_among_snapshots_is_told_and_breaks_no_command(nights: Collection, dpr: Dpr) -> None:
    url = nights.store.url
    Path(url, "snapshots/.DS_Store").write_bytes(b"Finder's")
    code, out, _ = dpr("verify", url, "--all")
    assert code == 0
    assert out.splitlines()[0] == "snapshots/.DS_Store is not a snapshot, and no command reads it; it does no harm"
    assert out.endswith("objects of 3 snapshots checked, 0 problems\n")
    assert json.loads(dpr("verify", url, "--json")[1])["foreign"] == ["snapshots/.DS_Store"]
    commands = [("status", url), ("inspect", url), ("history", url), ("diff", url, 1, 2), ("gc", url, "--keep", 2)]
    commands += [("gc", url, "--keep", 2, "--delete"), ("search", url, "w1"), ("rollback", url, 2)]
    assert [dpr(*command)[0] for command in commands] == [0] * len(commands)
    nights.corpus["changing"] = "w4"
    assert nights.night().snapshot.number == 5


def test_gc_deletes_only_on_request(nights: Collection, dpr: Dpr) -> None:
    store = nights.store
    let_pass(store, 2 * DAY)
    there = objects(nights)
    assert json.loads(dpr("gc", store.url, "--json")[1])["objects"] == []  # seven are kept

    code, out, _ = dpr("gc", store.url, "--keep", 1)
    assert code == 0
    assert "kept: snapshots 3" in out
    assert "would be deleted; pass --delete to do it" in out
    listed = [line.split()[1] for line in out.splitlines()[:-2]]
    assert "snapshots/00000001.json" in listed
    assert objects(nights) == there

    _, marker = open_snapshot(store, 1)
    with marker:
        code, out, _ = dpr("gc", store.url, "--keep", 1, "--delete", "--json")
        document = json.loads(out)
        assert (code, document["kept"], document["deleted"]) == (0, [1, 3], True)
        assert [reader["snapshot"] for reader in document["readers"]] == [1]
        assert f"pid {os.getpid()}" in document["readers"][0]["who"]
        assert dpr("search", store.url, "w1", "--snapshot", 1)[0] == 0
        assert dpr("search", store.url, "w1", "--snapshot", 2)[0] == 5
        assert "snapshot 1 is read: host " in dpr("gc", store.url, "--keep", 1)[1]
    rest = json.loads(dpr("gc", store.url, "--keep", 1, "--delete", "--json")[1])
    deleted = {*document["objects"], *rest["objects"]}
    assert deleted == set(listed)
    assert objects(nights) == there - deleted
    assert dpr("verify", store.url, "--deep", "--all")[0] == 0
    assert dpr("gc", store.url, "--keep", 0)[0] == 2


def test_gc_and_runs_exclude_each_other(nights: Collection, dpr: Dpr) -> None:
    let_pass(nights.store, 2 * DAY)
    there = objects(nights)
    with Lease.acquire(nights.store, "run of tonight"):
        code, _, err = dpr("gc", nights.store.url, "--keep", 1, "--delete")
        assert code == 8
        assert "is held by run of tonight (host " in err
    assert objects(nights) == there
    nights.corpus["changing"] = "w4"
    with Lease.acquire(nights.store, "gc"), pytest.raises(ConflictError, match="held by gc"):
        nights.night()


def test_gc_leaves_a_folder_alone_that_is_no_store(tmp_path: Path, dpr: Dpr) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "keep.txt").write_text("precious")
    let_pass(LocalStore(tmp_path), 2 * DAY)
    code, _, err = dpr("gc", tmp_path, "--delete")
    assert code == 5
    assert "has no snapshot" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert (tmp_path / "runs" / "keep.txt").exists()
