"""Recipes: what is refused, and what a refusal says."""

from pathlib import Path

import pytest

from dpr.errors import RecipeError
from dpr.recipe_file import load_recipe

GOOD = "store: out\ncorpus: {path: corpus.jsonl}\nencoder: {model: ./model}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.store == str(tmp_path / "out")
    assert recipe.corpus.path == str(tmp_path / "corpus.jsonl")
    assert recipe.encoder.model == str(tmp_path / "model")


def test_urls_packages_and_hub_ids_stay(tmp_path: Path) -> None:
    text = "store: s3://b/p\ncorpus: {path: s3://b/c.jsonl}\nencoder: {model: org/name}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert (recipe.store, recipe.corpus.path, recipe.encoder.model) == ("s3://b/p", "s3://b/c.jsonl", "org/name")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (GOOD + "colour: red\n", ["colour", "unknown", "'red'"]),
        (GOOD + "resources: {segment_rows: 0}\n", ["resources.segment_rows", "0", "greater than or equal to 1"]),
        (GOOD + "index: {retrain: maybe}\n", ["index.retrain", "'maybe'", "'auto', 'always' or 'never'"]),
        ("store: out\nencoder: {model: m}\n", ["corpus", "missing"]),
        ("store: out\ncorpus: {}\nencoder: {model: m}\n", ["corpus.path", "missing"]),
        (GOOD.replace("corpus.jsonl", "''"), ["corpus", "path is empty", "name a file"]),
        (GOOD.replace("corpus.jsonl", "[]"), ["corpus", "path is empty"]),
        (GOOD.replace("corpus.jsonl", "[a.jsonl, '']"), ["corpus", "path is empty"]),
        (GOOD.replace("corpus.jsonl", "c, rescan: never"), ["corpus.rescan", "'never'", "'changed' or 'always'"]),
        (GOOD + "gate: {min_recall: 1.5}\n", ["gate.min_recall", "1.5", "less than or equal to 1"]),
        (GOOD + "resources: {cache_gb: 0}\n", ["resources.cache_gb", "0", "greater than 0"]),
        (GOOD.replace("corpus.jsonl}", "c, passage_words: 5, overlap_words: 5}"), ["overlap_words is 5", "below"]),
        ("- a\n- b\n", ["list", "mapping"]),
        ("store: [", ["not YAML"]),
    ],
)
def test_a_refusal_names_field_value_and_bound(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    message = str(refused.value)
    assert str(path) in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_defaults_are_safe(tmp_path: Path) -> None:
    """A night whose index misses most of what it should find is not published, unless the recipe says otherwise."""
    recipe = load_recipe(write(tmp_path, GOOD))
    assert (recipe.gate.min_recall, recipe.corpus.rescan, recipe.serve.host) == (0.9, "changed", "127.0.0.1")


def test_a_missing_recipe_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")
