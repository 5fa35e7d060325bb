"""recipes/nq.yaml on small files of the form that docs/reproduce-nq.md downloads."""

import csv
import gzip
import io
from pathlib import Path

import pytest

from dpr.engine.executor import LocalExecutor
from dpr.operations.forecast import forecast
from dpr.recipe import Recipe
from dpr.recipe_file import load_recipe
from dpr.run import Plan, Run
from dpr.run_recipe import run_recipe
from tests.encoder.models import save_dpr
from tests.tiny import Quiet

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "nq.yaml"
PASSAGES = [(f"{n}", f"hello world number {n}", "the title") for n in range(1, 31)]


def downloaded(folder: Path) -> Recipe:
    """Return the recipe with its files below `folder`, as DPR publishes them, and small random towers."""
    (folder / "nq").mkdir()
    table = io.StringIO()
    writer = csv.writer(table, delimiter="\t")
    writer.writerow(("id", "text", "title"))
    writer.writerows(PASSAGES)
    (folder / "nq/psgs_w100.tsv.gz").write_bytes(gzip.compress(table.getvalue().encode()))
    answers = (f"which number is {n}\t['{n}', 'number {n}']\n" for n in range(1, 31))
    (folder / "nq/nq-dev.qa.csv").write_text("".join(answers))
    save_dpr(folder / "nq")  # the folders context and question
    found = load_recipe(RECIPE)
    document = found.model_dump()
    places = {
        ("store",): folder / "store",
        ("corpus", "path"): folder / "nq" / Path(found.corpus.path).name,
        ("encoder", "model"): folder / "nq" / Path(found.encoder.model).name,
        ("encoder", "question_model"): folder / "nq" / Path(str(found.encoder.question_model)).name,
        ("gate", "questions"): folder / "nq" / Path(str(found.gate.questions)).name,
    }
    for (*section, field), path in places.items():
        (document[section[0]] if section else document)[field] = str(path)
    document["resources"]["encoders"] = 1
    document["gate"]["min_recall"] = 0.0
    return Recipe.model_validate(document)


@pytest.mark.slow
def test_the_recipe_is_planned_and_run_on_files_of_the_published_form(tmp_path: Path) -> None:
    recipe = downloaded(tmp_path)
    found = forecast(Run(Plan.of(recipe), LocalExecutor(), Quiet()))
    assert (found.work.passages, found.work.embed) == (len(PASSAGES), len(PASSAGES))
    report = run_recipe(recipe, LocalExecutor(), Quiet()).snapshot.body.gate
    assert report.questions == len(PASSAGES)
    assert list(report.accuracy_index) == ["1", "5", "20", "100"]
    assert report.accuracy_exact["100"] == 1.0  # all passages are hits, and each question's answer stands in one
