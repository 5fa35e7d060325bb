"""Read a recipe from its YAML file, with problems explained in one sentence and paths made absolute."""

import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError

from dpr.errors import RecipeError
from dpr.json_kinds import kind_of
from dpr.plurals import counted
from dpr.recipe import Recipe
from dpr.recipe_yaml import read_yaml

M = TypeVar("M", bound=BaseModel)
_SHOWN = 3
"""Problems that a message names, at most."""
_KINDS = ("str", "int", "list[str]")
"""Parts of pydantic's locations that are no fields: the kinds of value that one field may have."""
_MAPPING = "input should be a mapping of fields"
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
        raise RecipeError(f"recipe {path} holds {kind_of(document)}, not a mapping of fields; it needs {needs}")
    try:
        return anchored(kind.model_validate(document), path.resolve().parent)
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {_problems(error, kind)}") from error
    except RecipeError as error:
        raise RecipeError(f"recipe {path}: {error}") from error


def _problems(error: ValidationError, kind: type[BaseModel]) -> str:
    """Describe the first problems of a document; unknown fields first, since a missing field may be a misspelt one."""
    known, found, named = list(_field_names(kind)), list[str](), set[str]()
    for problem in sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden"):
        field = ".".join(str(part) for part in problem["loc"] if part not in _KINDS)[:200] or "recipe"
        value = _SHORT.repr(problem["input"])
        if problem["type"] == "extra_forbidden":
            meant, section = _meant(field, known), field.rpartition(".")[0]
            advice = f"did you mean {meant}?" if meant else _allowed(section, known)
            if not meant and section in named:  # its fields were listed already
                advice = "remove it"
            named.add(meant or section)
            if problem["input"] is None and not meant:  # {factory: IVF16,PQ8} has a field PQ8
                advice += "; within { }, a value with a comma needs quotes"
            found.append(f"field {field} is unknown (value {value}); {advice}")
        elif problem["type"] == "missing":
            if field not in named:
                found.append(f"field {field} is missing; add it")
        elif problem["type"] == "value_error":
            found.append(f"field {field}: {problem['msg'].removeprefix('Value error, ')}")
        elif problem["type"] in ("model_type", "dict_type"):
            what = "empty; write fields below it, or remove it" if problem["input"] is None else f"{value}: {_MAPPING}"
            found.append(f"field {field} is {what}")
        elif found and found[-1].startswith(f"field {field} is {value}: "):  # another kind that it may have
            found[-1] += f", or {problem['msg'].removeprefix('Input should be ')}"
        else:
            found.append(f"field {field} is {value}: {problem['msg'][0].lower()}{problem['msg'][1:]}")
    more = len(found) - _SHOWN
    return "; ".join(found[:_SHOWN]) + (f" (and {counted(more, 'more problem')})" if more > 0 else "")


def _field_names(kind: type[BaseModel], section: str = "") -> Iterator[str]:
    """Yield the names of all fields of a document, those of sections with the section before them."""
    for name, field in kind.model_fields.items():
        yield section + name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _field_names(inner, f"{section}{name}.")


def _meant(field: str, known: Sequence[str]) -> str:
    """Return the field that an unknown one probably stands for: of another section, or of a similar name; else ""."""
    section, _, name = field.rpartition(".")
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    if len(elsewhere) == 1:
        return elsewhere[0]
    alike = get_close_matches(name, [other.rpartition(".")[2] for other in siblings], 1, cutoff=0.75)
    return ".".join(filter(None, [section, *alike])) if alike else ""


def _allowed(section: str, known: Sequence[str]) -> str:
    names = [other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == section]
    return f"the fields of {section or 'the recipe'} are {', '.join(names)}" if names else "remove it"


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
