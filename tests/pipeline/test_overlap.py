"""Runs and publishers that meet: one works or wins, the others are told, and what is published is a serial history."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import pytest
import yaml

from dpr.errors import ConflictError, PublishRaceError
from dpr.engine.stage import LocalExecutor
from dpr.nightly import run_recipe
from dpr.recipe import Recipe, load_recipe
from dpr.formats.snapshots import live_snapshot, numbers, publish, read_snapshot, rollback
from dpr.store import LocalStore
from tests.tiny import Quiet, make_encoder, write_jsonl

RUN_AND_WAIT = """
import sys
from dpr.errors import DprError
from dpr.engine.stage import LocalExecutor
from dpr.run import Plan
from dpr.nightly import run_plan
from dpr.recipe import load_recipe
from tests.tiny import Quiet

class Waiting(Quiet):
    def start(self, stage, total_rows, done_rows):
        super().start(stage, total_rows, done_rows)
        if stage == "gate":
            print("before the gate", flush=True)
            sys.stdin.readline()

try:
    plan = Plan.of(load_recipe(sys.argv[1]))
    outcome = run_plan(plan, LocalExecutor(), Waiting(), lease_ttl_seconds=float(sys.argv[2]))
    print("published", outcome.snapshot.number)
except DprError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def passages(count: int, word: str = "w1") -> dict[str, str]:
    return {f"p{number}": f"{word} w{number}" for number in range(count)}


def write_recipe(folder: Path, encoder: Path) -> Path:
    document = {
        "store": "store",
        "corpus": {"path": "corpus.jsonl", "format": "jsonl"},
        "encoder": {"model": str(encoder), "pooling": "mean", "normalize": True, "title_join": "space"},
        "resources": {"segment_rows": 40, "cpus_per_encoder": 1},
    }
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    write_jsonl(folder / "corpus.jsonl", passages(60))
    return folder / "recipe.yaml"


class PausedRun:
    """A whole run in another process, which waits before its gate until it is told to go on."""

    def __init__(self, recipe: Path, ttl_seconds: float = 60.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN_AND_WAIT, str(recipe), str(ttl_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "before the gate\n"

    def go_on(self) -> str:
        """What it says in the end."""
        said, _ = self.process.communicate("\n", timeout=120)
        return said.strip()


def nightly(recipe: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray_jobs.cli", "run", str(recipe), "--local"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_of_two_nightly_runs_one_works_and_the_other_names_it(tmp_path: Path, encoder: Path) -> None:
    recipe = write_recipe(tmp_path, encoder)
    first = PausedRun(recipe)
    second = nightly(recipe)
    assert second.returncode == ConflictError.exit_code == 8
    store = tmp_path / "store"
    assert second.stderr.splitlines()[-1].startswith(f"error: store {store} is held by run of {store} (host ")
    assert f"pid {first.process.pid}, since " in second.stderr
    assert second.stderr.endswith("wait until it ends or stop it, then start again\n")
    assert first.go_on() == "published 1"
    assert "snapshot 1 is up to date" in nightly(recipe).stdout


def test_a_run_that_lost_its_lease_publishes_nothing(tmp_path: Path, encoder: Path) -> None:
    recipe = write_recipe(tmp_path, encoder)
    stopped = PausedRun(recipe, ttl_seconds=0.5)
    stopped.process.send_signal(signal.SIGSTOP)  # alive, without a heartbeat
    try:
        write_jsonl(tmp_path / "corpus.jsonl", passages(50))
        until = time.monotonic() + 60
        while (other := nightly(recipe)).returncode == ConflictError.exit_code:
            assert time.monotonic() < until
        assert "published snapshot 1: 50 passages" in other.stdout
    finally:
        stopped.process.send_signal(signal.SIGCONT)
    said = stopped.go_on()
    assert said.startswith(f"ConflictError: the lease of store {tmp_path / 'store'} was lost (fencing number 1) to ")
    assert said.endswith("nothing was published, start the run again")
    store = LocalStore(tmp_path / "store")
    assert numbers(store) == [1]
    assert live_snapshot(store).body.passages == 50


class Interrupting(Quiet):
    """Does one of `acts` each time a stage begins."""

    def __init__(self, stage: str, acts: Iterable[Callable[[], object]]) -> None:
        super().__init__()
        self._stage_to_interrupt, self._acts = stage, iter(acts)

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        super().start(stage, total_rows, done_rows)
        if stage == self._stage_to_interrupt and (act := next(self._acts, None)):
            act()


def three_nights(folder: Path, encoder: Path) -> Recipe:
    """Two published nights, and the corpus of a third."""
    recipe = load_recipe(write_recipe(folder, encoder))
    run_recipe(recipe, LocalExecutor(), Quiet())
    write_jsonl(folder / "corpus.jsonl", passages(60) | {"p1": "w9 w9", "p2": "w8"})
    run_recipe(recipe, LocalExecutor(), Quiet())
    write_jsonl(folder / "corpus.jsonl", passages(60) | {"p1": "w9 w9", "p3": "w7", "new": "w6 w6"})
    return recipe


def test_a_run_that_was_overtaken_is_planned_again_on_the_new_parent(tmp_path: Path, encoder: Path) -> None:
    serial = three_nights(tmp_path / "serial", encoder)
    rollback(LocalStore(serial.store), 1)
    expected = run_recipe(serial, LocalExecutor(), Quiet()).snapshot

    recipe = three_nights(tmp_path / "raced", encoder)
    store = LocalStore(recipe.store)
    outcome = run_recipe(recipe, LocalExecutor(), Interrupting("gate", [lambda: rollback(store, 1)]))
    assert outcome.published
    assert (outcome.snapshot.number, outcome.snapshot.parent) == (4, 3)
    assert outcome.snapshot.body_bytes() == expected.body_bytes()
    assert [read_snapshot(store, number).note for number in numbers(store)] == ["", "", "rollback to 1", ""]


def test_a_run_that_is_always_overtaken_gives_up_with_a_sentence(tmp_path: Path, encoder: Path) -> None:
    recipe = three_nights(tmp_path / "raced", encoder)
    store = LocalStore(recipe.store)
    progress = Interrupting("scan", repeat(lambda: rollback(store, live_snapshot(store).number - 1)))
    with pytest.raises(PublishRaceError, match=r"another publisher was first .* start the run again to build on it"):
        run_recipe(recipe, LocalExecutor(), progress)
    assert all(read_snapshot(store, number).note for number in numbers(store)[2:])
    assert run_recipe(recipe, LocalExecutor(), Quiet()).published


def test_a_run_without_changes_notices_that_its_snapshot_is_live_no_more(tmp_path: Path, encoder: Path) -> None:
    recipe = three_nights(tmp_path, encoder)
    store = LocalStore(recipe.store)
    third = run_recipe(recipe, LocalExecutor(), Quiet()).snapshot
    (tmp_path / "corpus.jsonl").touch()  # looks changed, and is not
    outcome = run_recipe(recipe, LocalExecutor(), Interrupting("gate", [lambda: rollback(store, 1)]))
    assert (outcome.published, outcome.snapshot.number) == (True, 5)
    assert outcome.snapshot.body.passages == third.body.passages


def test_of_publishers_at_once_one_wins_each_number(tmp_path: Path, encoder: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, encoder))
    body = run_recipe(recipe, LocalExecutor(), Quiet()).snapshot.body
    store = LocalStore(recipe.store)
    publishers, rounds = 4, 25
    gate = threading.Barrier(publishers)

    def try_it(me: int) -> list[bool]:
        won = []
        for number in range(1, rounds + 1):
            gate.wait(60)
            try:
                snapshot = publish(store, body, number, run_id=f"{me}", inputs=None)
                won.append(True)
                assert (snapshot.number, snapshot.run_id) == (number + 1, f"{me}")
            except PublishRaceError:
                won.append(False)
            gate.wait(60)
        return won

    with ThreadPoolExecutor(publishers) as pool:
        outcomes = list(pool.map(try_it, range(publishers)))
    for number, won in enumerate(zip(*outcomes, strict=True), start=2):
        assert sum(won) == 1
        assert read_snapshot(store, number).run_id == f"{won.index(True)}"
    assert numbers(store) == list(range(1, rounds + 2))
