"""What a run on Ray prints: lines of ours alone, also when a passage, a worker or a model fails."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpr.errors import EncoderError
from tests.collection import Collection
from tests.ray_jobs.conftest import OUR_LINE
from tests.ray_jobs.own_ray import OwnRay, own_ray
from tests.stages.test_quarantine import endless_at_poison
from tests.tiny import WORDS, make_encoder, random_texts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray() -> Iterator[OwnRay]:
    with own_ray() as running:
        yield running


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    """A collection of several slices and segments, whose encoder may be spoilt."""
    model = make_encoder(tmp_path / "model", words=[*WORDS, "poison"])
    made = Collection(tmp_path / "collection", model, random_texts(100))
    made.change(corpus={"slice_bytes": 2_000})
    return made


def start(ray: OwnRay, collection: Collection) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ray_jobs.nightly", "--recipe", str(collection.write_recipe())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ray.environment)


def check_published(run: "subprocess.Popen[str]", passages: int) -> None:
    """Check that the run ends well, with one line on stdout, and only lines of progress on stderr."""
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert re.fullmatch(rf"published snapshot 1: {passages} passages [^\n]*\n\n?", out), out
    assert [line for line in err.splitlines() if not OUR_LINE.fullmatch(line)] == []


def test_a_passage_that_the_encoder_cannot_take_adds_no_line(ray: OwnRay, collection: Collection) -> None:
    endless_at_poison(collection.model)
    collection.corpus["p007"] = "w1 poison w2"
    check_published(start(ray, collection), 99)


def test_killed_workers_add_no_line(ray: OwnRay, collection: Collection) -> None:
    run, killed = start(ray, collection), set[str]()
    while run.poll() is None and killed != {"scan", "encode"}:
        for pid, title in ray.workers().items():
            for step in {"scan", "encode"} - killed:
                if step in title:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(step)
        time.sleep(0.02)
    check_published(run, 100)
    assert killed == {"scan", "encode"}


def test_a_model_that_cannot_be_loaded_adds_one_line(ray: OwnRay, collection: Collection) -> None:
    weights = collection.model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    run = start(ray, collection)
    out, err = run.communicate(timeout=300)
    assert (run.returncode, out) == (EncoderError.exit_code, "")
    *progress, last = err.splitlines()
    assert last.startswith(f"error: model {collection.model} cannot be loaded ")
    assert [line for line in progress if not OUR_LINE.fullmatch(line)] == []
