"""Python's documentation as a corpus, against `pydoc` and the live objects; and the demo's questions about it."""

import ast
import inspect
import json
import os
import pydoc
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from demo import docstrings
from demo.python_docs import python_passages, write_corpus
from dpr.corpus.reading import read_slice
from dpr.corpus.rows import Passage
from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.recipe import CorpusConfig
from dpr.recipe_file import load_recipe

ROOT = Path(__file__).resolve().parents[2]

WRITE_WITH_REPLACED_FUNCTIONS = """
import builtins, os, sys, time
from pathlib import Path

def replacement(*args):
    "Something else than Python's own, as debuggers, Ray and others put it in place."

builtins.print = os.getcwdb = time.sleep = sys.excepthook = replacement
from demo.python_docs import write_corpus
assert write_corpus(Path(sys.argv[1]))
assert not {"this", "antigravity", "idlelib", "tkinter", "turtle", "lib2to3"} & sys.modules.keys()
"""


@pytest.fixture(scope="module")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "deep" / "corpus.jsonl"
    assert write_corpus(path)
    return path


@pytest.fixture(scope="module")
def passages(corpus_file: Path) -> list[Passage]:
    """Give all passages as the ordinary reader reads them."""
    corpus = CorpusConfig(path=str(corpus_file))
    rows = [row for slice_ in plan_slices(corpus).slices for row in read_slice(slice_, corpus)]
    assert [row for row in rows if row.passage is None] == []
    return [row.passage for row in rows if row.passage is not None]


@pytest.fixture(scope="module")
def entries(passages: list[Passage]) -> dict[str, str]:
    """Entry name → its whole text, put together again."""
    texts: dict[str, list[str]] = defaultdict(list)
    for passage in passages:
        name, _, number = passage.id.rpartition("#")
        assert int(number) == len(texts[name])
        texts[name].append(passage.text)
    return {name: " ".join(parts) for name, parts in texts.items()}


@pytest.mark.slow
def test_there_are_some_thousands_of_informative_passages(passages: list[Passage], entries: dict[str, str]) -> None:
    assert 4000 <= len(passages) <= 6500
    assert len({passage.id for passage in passages}) == len(passages)
    assert max(len(passage.text.split()) for passage in passages) == 100
    assert min(len(text.split()) for text in entries.values()) >= 12
    docs = [text for name, text in entries.items() if not name.startswith("topic:")]
    assert len(set(docs)) == len(docs), "the same text under two names"


@pytest.mark.slow
def test_a_file_that_differs_is_written_and_the_same_in_another_process_whose_functions_were_replaced(
    corpus_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(corpus_file.read_bytes()[:-1])
    command = [sys.executable, "-W", "error", "-c", WRITE_WITH_REPLACED_FUNCTIONS, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_bytes() == corpus_file.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_the_file_is_written_only_if_the_corpus_changed(corpus_file: Path) -> None:
    os.utime(corpus_file, ns=(1, 1))
    command = [sys.executable, "-m", "demo.python_docs", str(corpus_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"{corpus_file} is up to date\n"
    assert corpus_file.stat().st_mtime_ns == 1
    assert list(corpus_file.parent.iterdir()) == [corpus_file]


def test_the_recipe_names_files_of_the_repository() -> None:
    recipe = load_recipe(ROOT / "demo" / "demo.yaml")
    assert recipe.store == str(ROOT / ".demo" / "store")
    assert recipe.corpus.path == str(ROOT / ".demo" / "corpus.jsonl")
    assert recipe.gate.questions == str(ROOT / "demo" / "questions.jsonl")


@pytest.mark.slow
def test_every_paragraph_of_the_topics_is_there_once(entries: dict[str, str]) -> None:
    texts = {name: text for name, text in entries.items() if name.startswith("topic:")}
    everything = " ".join(texts.values())
    for name, topic in topics.items():
        lines = [line for line in topic.splitlines() if not re.fullmatch(r"\s*([*=~^-])\1{3,}\s*", line)]
        for paragraph in "\n".join(lines).split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words.split()) >= 40:
                assert everything.count(words) == 1, (name, words[:80])
            elif name != "if":  # "else" is the same topic
                assert words in everything, (name, words[:80])
    assert texts["topic:with"].startswith('The "with" statement')


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "asyncio.gather",
        "builtins.str.split",
        "builtins.zip",
        "collections.Counter.most_common",
        "email.message_from_string",
        "heapq.nlargest",
        "itertools.zip_longest",
        "json.dumps",
        "os.makedirs",
        "os.path.realpath",
        "pathlib.Path.resolve",
        "re.sub",
        "shutil.copytree",
        "socket.socket.connect",
        "textwrap.dedent",
        "unittest.TestCase.assertRaises",
        "zlib.crc32",
    ],
)
def test_an_entry_is_signature_and_docstring_of_the_object_of_that_name(entries: dict[str, str], name: str) -> None:
    live = pydoc.locate(name)
    doc = " ".join(str(inspect.getdoc(live)).split())
    assert entries[name].endswith(doc)
    signature = entries[name].removesuffix(doc).strip()
    try:
        parameters = inspect.signature(live).parameters  # type: ignore[arg-type]
    except ValueError:  # older ones in C do not know theirs, and their docstrings begin with it
        assert signature == ""
        return
    (function,) = ast.parse(f"def {signature}: ...").body
    assert isinstance(function, ast.FunctionDef)
    assert function.name == name.rpartition(".")[2]
    found = {each.arg for each in ast.walk(function) if isinstance(each, ast.arg)}
    assert found == set(list(parameters)["self" in parameters :])
    defaults = [ast.unparse(each) for each in (*function.args.defaults, *function.args.kw_defaults) if each]
    assert len(defaults) == sum(each.default is not inspect.Parameter.empty for each in parameters.values())


@pytest.mark.slow
def test_titles_are_the_names_that_users_know(passages: list[Passage]) -> None:
    titles = {passage.id: passage.title for passage in passages}
    assert titles["builtins.str.join#0"] == "str.join"
    iterators = "Functional tools for creating and using iterators."
    assert titles["itertools.groupby#0"] == f"itertools.groupby ({iterators})"
    threads = "Thread module emulating a subset of Java's threading model."
    assert titles["threading.Event.wait#0"] == f"threading.Event.wait ({threads} Class implementing event objects.)"
    assert titles["heapq.nlargest#0"] == "heapq.nlargest (Heap queue algorithm (a.k.a. priority queue).)"
    assert titles["functools.wraps#0"] == "functools.wraps (Tools for working with functions and callable objects)"
    assert titles["topic:with#1"] == 'with: The "with" statement'
    assert titles["topic:nonlocal#0"] == 'nonlocal: The "nonlocal" statement'


@pytest.mark.slow
def test_short_docstrings_join_the_entry_of_their_class_or_module(entries: dict[str, str]) -> None:
    assert "os.path.getsize" not in entries
    assert f"getsize: {' '.join(str(inspect.getdoc(pydoc.locate('os.path.getsize'))).split())}" in entries["os.path"]


@pytest.mark.slow
def test_nothing_private_and_no_module_with_effects_is_there(entries: dict[str, str]) -> None:
    parts = {part for name in entries for part in name.removeprefix("topic:").split(".")}
    assert not {part for part in parts if part.startswith("_")}
    assert not {"test", "tests", "idlelib", "lib2to3", "antigravity", "this"} & {name.split(".")[0] for name in entries}


def test_a_python_without_its_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(CorpusError, match="holds no sources of the standard library; use a Python"):
        list(python_passages())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("questions", 50), ("further_questions", 96)])
def test_every_answer_of_the_demo_questions_is_an_entry(entries: dict[str, str], name: str, number: int) -> None:
    questions = [json.loads(line) for line in (ROOT / "demo" / f"{name}.jsonl").read_text().splitlines()]
    assert len({one["question"] for one in questions}) == number
    answers = [answer for one in questions for answer in one["answers"]]
    assert [answer for answer in answers if answer not in entries] == []
    assert len({answer.split(".")[0] for answer in answers}) >= 25, "they are about many modules and topics"
