"""Recipes: which are refused, and with what message."""

import json
import os
from datetime import date
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpr.errors import RecipeError
from dpr.recipe import Recipe
from dpr.recipe_file import load_recipe

GOOD = "store: out\ncorpus: {path: corpus.jsonl}\nencoder: {model: ./model}\n"
BOMB = "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A thousand million values, in nine lines."""


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
        (GOOD + "colour: red\n", ["colour", "unknown", "'red'", "fields of the recipe are store, corpus, encoder"]),
        (GOOD.replace("corpus:", "corpuss:"), ["field corpuss is unknown", "'corpus.jsonl'", "did you mean corpus?"]),
        (GOOD + "index: {nprob: 4}\n", ["index.nprob is unknown (value 4); did you mean index.nprobe?"]),
        (GOOD + "passage_words: 50\n", ["passage_words is unknown (value 50); did you mean corpus.passage_words?"]),
        (GOOD + "serve: {colour: 1}\n", ["serve.colour is unknown", "fields of serve are host, port"]),
        (
            GOOD + "index: {nprob: 4, shards: 0}\n",
            ["index.nprob is unknown", "; field index.shards is 0: input"],
        ),
        (GOOD + "index: {factory: IVF16,PQ8}\n", ["field index.PQ8 is unknown", "a value with a comma needs quotes"]),
        (GOOD + "index: {a: 1, b: 1, c: 1, d: 1}\n", ["index.a", "index.b", "index.c", "(and 1 more problem)"]),
        (GOOD + "resources: {segment_rows: 0}\n", ["resources.segment_rows", "0", "greater than or equal to 1"]),
        (GOOD + "index: {retrain: maybe}\n", ["index.retrain", "'maybe'", "'auto', 'always' or 'never'"]),
        (GOOD + "index: {seed: -1}\n", ["field index.seed is -1: input should be greater than or equal to 0"]),
        (GOOD + "gate: {at: []}\n", ["field gate.at is []: list should have at least 1 item"]),
        (
            GOOD + "gate: {questions: q, min_accuracy: {7: 0.5}}\n",
            ["field gate: min_accuracy demands rank 7, which is not among at [1, 5, 20, 100]; add it there"],
        ),
        (
            GOOD + "gate: {min_accuracy: {5: 0.5}}\n",
            ["field gate: min_accuracy is {5: 0.5}, and there are no questions; name them in questions"],
        ),
        (GOOD + "gate: {qrels: q.tsv}\n", ["qrels is 'q.tsv', and there are no questions; name them in questions"]),
        (
            GOOD + "lexical: {build: false, mode: bm25}\n",
            ["field lexical: mode is bm25, which needs the index of words; set build to true, or mode to dense"],
        ),
        (
            GOOD + "resources: {encoders: 3, max_encoders: 2}\n",
            ["field resources: max_encoders is 2; it must be at least encoders (3)"],
        ),
        (GOOD + "index:\n", ["recipe.yaml: field index is empty; write fields below it, or remove it"]),
        (GOOD + "index: [1]\n", ["field index is [1]: input should be a mapping of fields"]),
        (
            GOOD.replace("corpus.jsonl", "5"),
            ["yaml: field corpus.path is 5: input should be a valid string, or a valid list"],
        ),
        (
            GOOD.replace("corpus.jsonl", "c, columns: {id: null}"),
            ["yaml: field corpus.columns.id is None: input should be a valid string, or a valid integer"],
        ),
        ("store: out\nencoder: {model: m}\n", ["corpus", "missing"]),
        ("store: out\ncorpus: {}\nencoder: {model: m}\n", ["corpus.path", "missing"]),
        (GOOD.replace("corpus.jsonl", "''"), ["corpus", "path is empty", "name a file"]),
        (GOOD.replace("corpus.jsonl", "[]"), ["corpus", "path is empty"]),
        (GOOD.replace("corpus.jsonl", "[a.jsonl, '']"), ["corpus", "path is empty"]),
        (GOOD.replace("corpus.jsonl", "c, rescan: never"), ["corpus.rescan", "'never'", "'changed' or 'always'"]),
        (GOOD.replace("out", "''"), ["store", "at least 1 character"]),
        (GOOD + "gate: {questions: ''}\n", ["gate.questions", "at least 1 character"]),
        (GOOD + "gate: {min_recall: 1.5}\n", ["gate.min_recall", "1.5", "less than or equal to 1"]),
        (
            GOOD + "resources: {cpus_per_encoder: 1000000}\n",
            ["field resources.cpus_per_encoder is 1000000: input should be less than or equal to 1024"],
        ),
        (GOOD + "serve: {replicas: 1000000}\n", ["serve.replicas is 1000000", "less than or equal to 1024"]),
        (GOOD + "resources: {cache_gb: 0}\n", ["resources.cache_gb", "0", "greater than 0"]),
        (GOOD.replace("corpus.jsonl}", "c, passage_words: 5, overlap_words: 5}"), ["overlap_words is 5", "below"]),
        ("- a\n- b\n", ["holds a list, not a mapping"]),
        ("5\n", ["holds an integer, not a mapping"]),
        ("store: [", ["not YAML"]),
        ("", ["is empty"]),
        ("store: out\n\tx: y", ["not YAML, line 2"]),
        (GOOD + "store: twice\n", ["line 4", "field store occurs twice"]),
        (GOOD.replace("out", '"\\ud83d"'), ["line 1", "half of a surrogate pair"]),
        (GOOD.replace("out", '"a\\0b"'), ["line 1", "NUL character"]),
        (GOOD.replace("out", "~nobody-of-this-name/x"), ["~nobody-of-this-name/x", "no home folder"]),
        (GOOD + "resources: {segment_rows: 1" + "0" * 5000 + "}\n", ["holds a value", "digits"]),
        (GOOD + "resources: {segment_rows: 0x" + "f" * 5000 + "}\n", ["line 4", "too large"]),
        (GOOD + "index: {memory_gb: .inf}\n", ["index.memory_gb", "finite"]),
        (GOOD.replace("out", "!!bool x"), ["does not match its tag"]),
        (GOOD.replace("out", "!!python/name:os.system"), ["not YAML, line 1", "could not determine a constructor"]),
        ("[" * 5_000, ["nested too deep"]),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + BOMB, ["more than 10,000 values"]),
        ("a: &a [*a]\n", ["more than 10,000 values"]),
        (GOOD.replace("corpus.jsonl", "[[[[[[[[1]]]]]]], b]"), ["corpus.path"]),
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


def test_a_misspelt_field_is_not_said_to_be_missing_too(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe(write(tmp_path, GOOD.replace("corpus:", "corpuss:")))
    assert "missing" not in str(refused.value)


def test_the_fields_of_a_section_are_listed_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"field dev is unknown .*; remove it") as refused:
        load_recipe(write(tmp_path, GOOD + "data: {path: pairs}\ndev: {path: dev}\n"))
    assert str(refused.value).count("the fields of the recipe are") == 1


def test_defaults_are_safe(tmp_path: Path) -> None:
    """An index with low recall is not published, unless the recipe allows it."""
    recipe = load_recipe(write(tmp_path, GOOD))
    assert (recipe.gate.min_recall, recipe.corpus.rescan, recipe.serve.host) == (0.9, "changed", "127.0.0.1")


def test_a_missing_recipe_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_a_folder_as_recipe_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)


def test_what_json_escapes_is_read_as_it_was_meant(tmp_path: Path) -> None:
    document = {"store": "out", "corpus": {"path": "emoji😀.jsonl"}, "encoder": {"model": "é/\ud83d\ude00"}}
    recipe = load_recipe(write(tmp_path, json.dumps(document)))
    assert (recipe.corpus.path, recipe.encoder.model) == (str(tmp_path / "emoji😀.jsonl"), "é/😀")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_recipe_may_have_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "recipe.yaml"
    mark = "\ufeff" if encoding.startswith("utf-16-") else ""
    path.write_text(mark + GOOD.replace("out", "été"), encoding=encoding)
    assert load_recipe(path).store == str(tmp_path / "été")


def test_dates_are_names_and_merge_keys_are_followed(tmp_path: Path) -> None:
    text = GOOD.replace("out", "2026-01-31") + "index: {<<: {nprobe: 3, seed: 1}, seed: 2}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert (recipe.store, recipe.index.nprobe, recipe.index.seed) == (str(tmp_path / "2026-01-31"), 3, 2)


SCALARS = st.sampled_from(
    [None, True, -1, 2**64, 0.5, float("nan"), "", "x", "\0", "\ud83d", date(2026, 1, 1), b"\xff"]
)
FIELDS = st.sampled_from([*Recipe.model_fields, "path", "model", "columns", "<<", "at", "x", 1, None])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3), max_leaves=5
)
DOCUMENTS = st.dictionaries(FIELDS, VALUES, max_size=4)
TEXTS = [
    "store",
    "corpus: ",
    "!!int ",
    "!!set",
    "<<: *a",
    "&a ",
    "0b_",
    "\\ud83d",
    *"[]{}&*!|>%@`'\":,-?#=~ \t\n\\0.:eE\0\ufeff",
]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=40)
    | st.lists(st.sampled_from(TEXTS)).map(lambda parts: "".join(parts).encode())
    | DOCUMENTS.map(lambda document: yaml.dump(document).encode())
    | DOCUMENTS.map(lambda document: yaml.dump(yaml.safe_load(GOOD) | document).encode())
)
def test_no_file_gives_anything_but_a_recipe_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_bytes(content)
    sentence = ""
    try:
        recipe = load_recipe(path)
        paths = recipe.corpus.path
        for name in (recipe.store, recipe.encoder.model, *([paths] if isinstance(paths, str) else paths)):
            os.fsencode(name)
    except RecipeError as error:
        sentence = str(error)
    assert "\n" not in sentence
    assert len(sentence) < 1000
