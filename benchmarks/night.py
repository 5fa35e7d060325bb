"""One nightly run as a process of its own, watched from outside, and the corpus and recipe that it works on."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.processes import name_and_peak, objects_of, with_descendants
from tests.tiny import make_encoder, write_jsonl

VOCABULARY = 20_000
TOPICS = 1_000
TOPIC_WORDS = 200
FILES = 8
STAGE_LINE = re.compile(r"^(\w+) .* ([\d,]+) rows in ([\d.]+) s$", re.MULTILINE)
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Setting:
    """One collection that is kept up to date."""

    folder: Path
    passages: int
    words: int
    """Words of a passage on average; they have a fifth more or less."""
    dim: int
    factory: str
    questions: int


@dataclass
class Night:
    """What one night took."""

    name: str
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    changed: int = 0
    embedded: int = 0
    written: dict[str, int] = field(default_factory=dict)
    """Bytes by the first part of the objects' names."""
    driver_bytes: int = 0
    """Peak of resident memory."""
    workers: dict[str, int] = field(default_factory=dict)
    """The same for each other process that the night started, by name."""


class Corpus:
    """Passages in JSONL files, of which any share can be given new texts."""

    def __init__(self, setting: Setting) -> None:
        self._rng = np.random.default_rng(0)
        letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
        made = ("".join(self._rng.choice(letters, self._rng.integers(1, 11))) for _ in range(2 * VOCABULARY))
        self.words = list(dict.fromkeys(made))[:VOCABULARY]
        self._array = np.array(self.words, object)
        self._topics = self._rng.integers(0, len(self.words), (TOPICS, TOPIC_WORDS))
        self._setting = setting
        self.texts = [self.draw() for _ in range(setting.passages)]

    def draw(self) -> str:
        """A passage on some topic."""
        mean = self._setting.words
        at_N = self._rng.random((2, self._rng.integers(mean * 4 // 5, mean * 6 // 5 + 1)))
        # Zipf: a rank r is drawn as often as 1 / r says, so its logarithm is nearly uniform
        general_N, own_N = (
            (np.exp(at * np.log(most)) - 1).astype(np.intp)
            for at, most in zip(at_N, (len(self.words), TOPIC_WORDS), strict=True)
        )
        topic = self._topics[self._rng.integers(TOPICS)]
        return " ".join(self._array[np.where(self._rng.random(len(own_N)) < 0.5, topic[own_N], general_N)])

    def change(self, share: float) -> int:
        """Give so many passages other texts; how many those are."""
        chosen = self._rng.choice(len(self.texts), round(share * len(self.texts)), replace=False)
        for row in chosen.tolist():
            self.texts[row] = self.draw()
        return len(chosen)

    def write(self) -> None:
        folder = self._setting.folder / "corpus"
        folder.mkdir(exist_ok=True)
        rows = list(enumerate(self.texts))
        for number in range(FILES):
            share = rows[number * len(rows) // FILES : (number + 1) * len(rows) // FILES]
            write_jsonl(folder / f"{number}.jsonl", ((f"p{row}", text) for row, text in share))


def write_recipe(setting: Setting, corpus: Corpus) -> Path:
    make_encoder(setting.folder / "encoder", dim=setting.dim, words=corpus.words, max_tokens=192)
    document: dict[str, Any] = {
        "store": "store",
        "corpus": {"path": "corpus", "format": "jsonl"},
        "encoder": {"model": "./encoder", "pooling": "mean", "normalize": True, "title_join": "space"},
        "index": {"factory": setting.factory},
    }
    if setting.questions:
        rng = np.random.default_rng(1)
        rows = rng.choice(setting.passages, setting.questions, replace=False).tolist()
        questions = [{"question": " ".join(corpus.texts[row].split()[:12]), "answers": [f"p{row}"]} for row in rows]
        (setting.folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
        document["gate"] = {"questions": "questions.jsonl"}
    path = setting.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run_night(setting: Setting, name: str, changed: int) -> Night:
    """One nightly run as a process, watched from outside."""
    night = Night(name, changed=changed)
    store = setting.folder / "store"
    before = objects_of(store)
    command = [sys.executable, "-m", "ray_jobs.nightly", "--recipe", str(setting.folder / "recipe.yaml")]
    environment = os.environ | {"DPR_CACHE": str(setting.folder / "cache"), "COLUMNS": "200"}
    with (setting.folder / "night.log").open("w+") as log:
        started = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            watch(process.pid, night)
            time.sleep(POLL_SECONDS)
        night.seconds = time.monotonic() - started
        log.seek(0)
        output = log.read()
    if process.returncode:
        sys.exit(f"night {name!r} ended with code {process.returncode}:\n{output}")
    night.stages = {stage: float(seconds) for stage, _, seconds in STAGE_LINE.findall(output)}
    for path in objects_of(store) - before:
        part = path.relative_to(store).parts[0]
        night.written[part] = night.written.get(part, 0) + path.stat().st_size
        if part == "segments" and path.suffix == ".json":
            record = json.loads(path.read_bytes())
            night.embedded += record["rows"] if record["tokens"] else 0  # copied rows have no tokens
    print(f"{setting.passages:,} passages, {name}: {night.seconds:.1f} s {night.stages}", file=sys.stderr, flush=True)
    return night


def watch(pid: int, night: Night) -> None:
    """Note the peaks of a process and of all that descend from it; the last look counts, since peaks only grow."""
    for process in with_descendants(pid):
        name, peak = name_and_peak(process)
        if process == pid:
            night.driver_bytes = max(night.driver_bytes, peak)
        else:
            night.workers[name] = max(night.workers.get(name, 0), peak)
