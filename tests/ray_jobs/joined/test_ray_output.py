"""The output of a run on Ray: only lines of this project, also when a passage, a worker or a model fails."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from dpr.errors import EncoderError
from tests.collection import Collection
from tests.ray_jobs.conftest import OUR_LINE
from tests.ray_jobs.forked import Forked, Forks
from tests.ray_jobs.own_ray import OwnRay
from tests.stages.test_quarantine import endless_at_poison
from tests.tiny import WORDS, make_encoder, random_texts

pytestmark = pytest.mark.slow


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """A collection of several slices and segments, with an encoder that a test may damage."""
    model = make_encoder(tmp_path / "model", words=[*WORDS, "poison"])
    made = Collection(tmp_path / "collection", model, random_texts(100))
    made.change(corpus={"slice_bytes": 2_000})
    return made


def start(drivers: Forks, collection: Collection) -> Forked:
    return drivers.start(collection.folder / "run", "ray_jobs.nightly", "--recipe", collection.write_recipe())


def test_killed_workers_and_a_passage_that_the_encoder_cannot_take_add_no_line(
    lasting_ray: OwnRay, drivers: Forks, collection: Collection
) -> None:
    endless_at_poison(collection.model)
    collection.corpus["p007"] = "w1 poison w2"
    run, killed = start(drivers, collection), set[str]()
    while run.poll() is None and killed != {"scan", "encode"}:
        for pid, title in lasting_ray.workers().items():
            for step in {"scan", "encode"} - killed:
                if step in title:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(step)
        time.sleep(0.02)
    code = run.wait(300)
    out, err = run.output(), run.errors()
    assert code == 0, err
    assert re.fullmatch(r"published snapshot 1: 99 passages [^\n]*\n\n?", out), out
    assert [line for line in err.splitlines() if not OUR_LINE.fullmatch(line)] == []
    assert killed == {"scan", "encode"}


def test_a_model_that_cannot_be_loaded_adds_one_line(drivers: Forks, collection: Collection) -> None:
    weights = collection.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    run = start(drivers, collection)
    assert (run.wait(300), run.output()) == (EncoderError.exit_code, "")
    *progress, last = run.errors().splitlines()
    assert last.startswith(f"error: model {collection.model} cannot be loaded ")
    assert [line for line in progress if not OUR_LINE.fullmatch(line)] == []
