"""Commands over a corpus of one passage speak of one row, one file, one passage."""

import json
import re
from pathlib import Path

import pytest

from tests.collection import Collection
from tests.ray_jobs.conftest import Dpr

pytestmark = pytest.mark.without_ray
WRONG = re.compile(r"(?<!of )(?<![\d.,#])1 (?:[a-z]+ )?(?:row|file|question|passage|segment|object|problem)s\b")
"""After "of", the whole is meant: 1 of 1 rows."""


def test_what_is_printed_is_in_the_singular(tmp_path: Path, static_encoder: Path, dpr: Dpr) -> None:
    made = Collection(tmp_path, static_encoder, {"a": "w1 w2"}, encoder={"pooling": None, "normalize": None})
    made.write_corpus()
    recipe, questions = tmp_path / "recipe.yaml", tmp_path / "questions.jsonl"
    recipe.write_text(json.dumps(made.recipe.model_dump(mode="json")))
    questions.write_text(json.dumps({"question": "w1", "answers": ["a"]}) + "\n")
    printed = []
    for command in (
        ("plan", recipe, "--local"),
        ("check", recipe),
        ("run", recipe, "--local", "--until", "embed"),
        ("run", recipe, "--local"),
        ("status", made.store.url),
        ("status", made.store.url, "--watch"),
        ("eval", made.store.url, "--questions", questions),
        ("verify", made.store.url, "--deep", "--recipe", recipe),
        ("gc", made.store.url),
        ("inspect", made.store.url),
    ):
        code, out, err = dpr(*command)
        assert code == 0, err
        printed += [out, err]
    text = "".join(printed)
    assert WRONG.findall(text) == []
    for one in ("with 1 passage\n", "1 segment with 1 live passage\n", "1 row in ", "1 snapshot checked", "1 question"):
        assert one in text
