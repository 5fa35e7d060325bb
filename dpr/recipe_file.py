"""Read a recipe from its YAML file, with problems explained in one sentence and paths made absolute."""

import os
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from dpr.errors import RecipeError
from dpr.recipe import Recipe
from dpr.recipe_yaml import read_yaml

M = TypeVar("M", bound=BaseModel)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe. Relative paths in it are relative to the recipe's own folder.

    Raises RecipeError naming the file, the field, the value and what is allowed.
    """
    return checked_document(Path(path), Recipe, "store, corpus and encoder", _anchored)


def checked_document(path: Path, kind: type[M], needs: str, anchored: Callable[[M, Path], M]) -> M:
    """Return the content of a YAML file as a document of a kind, in which `anchored` makes paths absolute.

    `needs` names the fields that it must have. Raises RecipeError as `load_recipe` does.
    """
    document = read_yaml(path)
    if document is None:
        raise RecipeError(f"recipe {path} is empty; it needs {needs}")
    if not isinstance(document, dict):
        raise RecipeError(f"recipe {path} holds a {type(document).__name__}, not a mapping of fields; it needs {needs}")
    try:
        return anchored(kind.model_validate(document), path.resolve().parent)
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {_first_problem(error)}") from error
    except RecipeError as error:
        raise RecipeError(f"recipe {path}: {error}") from error


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    first = problems[0]
    field = ".".join(map(str, first["loc"]))[:200] or "recipe"
    value = _SHORT.repr(first["input"])
    if first["type"] == "extra_forbidden":
        message = f"field {field} is unknown (value {value}); remove it, or see docs/formats.md for all fields"
    elif first["type"] == "missing":
        message = f"field {field} is missing; add it"
    elif first["type"] == "value_error":
        message = f"field {field}: {first['msg'].removeprefix('Value error, ')}"
    else:
        message = f"field {field} is {value}: {first['msg'][0].lower()}{first['msg'][1:]}"
    more = len(problems) - 1
    return message + (f" (and {more} more problem{'s' if more > 1 else ''})" if more else "")


def resolve_path(reference: str, folder: Path) -> str:
    """Return `reference` as it is if it is a URL, a `package:` reference or absolute, else below `folder`.

    Raises RecipeError for the home folder of a user who has none, and for what cannot be the name of a file here.
    """
    if "://" in reference or reference.startswith("package:"):
        return reference
    try:
        os.fsencode(reference)
        return reference if os.path.isabs(reference) else os.path.normpath(folder / Path(reference).expanduser())
    except RuntimeError as error:
        raise RecipeError(f"path {reference}: this user has no home folder for ~; write the path out") from error
    except UnicodeEncodeError as error:
        raise RecipeError(
            f"path {reference} cannot be a file name where names are in {error.encoding}, as the locale says; set "
            "LC_ALL=C.UTF-8"
        ) from error


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    paths = recipe.corpus.path
    corpus_path = (
        [resolve_path(path, folder) for path in paths] if isinstance(paths, list) else resolve_path(paths, folder)
    )
    questions, qrels = recipe.gate.questions, recipe.gate.qrels
    return recipe.model_copy(
        update={
            "store": resolve_path(recipe.store, folder),
            "corpus": recipe.corpus.model_copy(update={"path": corpus_path}),
            "encoder": recipe.encoder.model_copy(
                update={
                    "model": resolve_model(recipe.encoder.model, folder),
                    "question_model": recipe.encoder.question_model
                    and resolve_model(recipe.encoder.question_model, folder),
                }
            ),
            "rerank": recipe.rerank
            and recipe.rerank.model_copy(update={"model": resolve_model(recipe.rerank.model, folder)}),
            "gate": recipe.gate.model_copy(
                update={
                    "questions": questions and resolve_path(questions, folder),
                    "qrels": qrels and resolve_path(qrels, folder),
                }
            ),
        }
    )


def resolve_model(reference: str, folder: Path) -> str:
    """Return the reference of a model, in which a path relative to `folder` is absolute."""
    # "org/name" may be a hub id: it is a folder only if it says so (./, ../) or is there
    if reference.startswith((".", "~")) or os.path.isdir(folder / reference):
        return resolve_path(reference, folder)
    return reference
