"""The recipe of a training: a mistake is reported in one sentence that names the field."""

from pathlib import Path

import pytest

from dpr.errors import RecipeError
from dpr.recipe_file import load_recipe
from dpr.train.train_recipe import load_train_recipe

GOOD = "store: ./s\nencoder: {model: ./m}\ndata: {path: [a.jsonl, b], qrels: q.tsv}\ndev: {path: dev}\n"


def test_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(GOOD)
    recipe = load_train_recipe(path)
    assert recipe.store == str(tmp_path / "s")
    assert recipe.encoder.model == str(tmp_path / "m")
    assert recipe.data.path == [str(tmp_path / "a.jsonl"), str(tmp_path / "b")]
    assert recipe.data.qrels == str(tmp_path / "q.tsv")
    assert recipe.dev is not None
    assert recipe.dev.path == str(tmp_path / "dev")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; it needs store, encoder and data"),
        (GOOD.replace("data:", "date:"), "did you mean data?"),
        (GOOD + "objective: {batch: 1}\n", "field objective.batch is 1: input should be greater than or equal to 2"),
        (
            GOOD + "objective: {temprature: 1}\n",
            "objective.temprature is unknown (value 1); did you mean objective.temperature?",
        ),
        (
            GOOD + "optimiser: {learning_rate: 0}\n",
            "field optimiser.learning_rate is 0: input should be greater than 0",
        ),
        (GOOD + "optimiser: {seed: -1}\n", "field optimiser.seed is -1: input should be greater than or equal to 0"),
        (GOOD + "save_as: dpr\n", "DPR checkpoints are one network a side; set towers: two, or another save_as"),
        (
            GOOD.replace("./m", "./m, question_model: ./q"),
            "encoder.question_model is another network, so towers cannot be shared; set towers: two",
        ),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as raised:
        load_train_recipe(path)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["medquad-train.yaml", "medquad-train-small.yaml"])
def test_the_recipes_of_the_project_are_valid(name: str) -> None:
    folder = Path(__file__).parents[2] / "recipes"
    recipe, then = load_train_recipe(folder / name), load_recipe(folder / "medquad.yaml")
    assert recipe.dev is not None
    assert recipe.data.path == recipe.dev.path == then.corpus.path
    assert recipe.dev.qrels == then.gate.qrels
