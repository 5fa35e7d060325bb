"""The reduced run of README on real questions, reduced further: MiniLM learns from a hundred questions of MedQuAD."""

from pathlib import Path

import pytest

from dpr.train.run_training import train_here
from dpr.train.train_recipe import load_train_recipe
from tests.data import data_folder
from tests.tiny import Quiet
from tests.train.tiny_training import CPU

RECIPE = Path(__file__).parents[2] / "recipes" / "medquad-train-small.yaml"


@pytest.mark.slow
def test_a_hundred_real_questions_make_minilm_better(tmp_path: Path) -> None:
    folder = str(data_folder("medquad"))
    recipe = load_train_recipe(RECIPE)
    assert recipe.dev is not None
    recipe = recipe.model_copy(
        update={
            "store": str(tmp_path / "store"),
            "encoder": recipe.encoder.model_copy(update={"max_tokens": 32}),
            "data": recipe.data.model_copy(update={"path": folder, "max_questions": 96}),
            "dev": recipe.dev.model_copy(
                update={"path": folder, "qrels": f"{folder}/qrels.dev.tsv.gz", "max_questions": 150}
            ),
            "objective": recipe.objective.model_copy(update={"batch": 16}),
        }
    )
    before, after = train_here(recipe, Quiet(), CPU).measured
    assert after.accuracy > before.accuracy + 0.02
    assert after.average_rank < before.average_rank
