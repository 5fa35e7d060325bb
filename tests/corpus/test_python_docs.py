"""Python's documentation as a corpus, against `pydoc` and the live objects; and the demo's questions about it."""

import hashlib
import inspect
import json
import pydoc
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from dpr.corpus import docstrings
from dpr.corpus.plan import plan_slices
from dpr.corpus.python_docs import python_entries
from dpr.corpus.read import read_slice
from dpr.corpus.rows import Passage
from dpr.errors import CorpusError
from dpr.recipe import CorpusConfig

CORPUS = CorpusConfig(format="python-docs")
QUESTIONS = Path(__file__).resolve().parents[2] / "recipes" / "demo-questions.jsonl"

DIGEST = """
import builtins, hashlib, os, sys, time

def mine(*args):
    "Something else than Python's own, as debuggers, Ray and others put it in place."

write = sys.stdout.write
builtins.print = os.getcwdb = time.sleep = sys.excepthook = mine
from dpr.corpus.plan import plan_slices
from dpr.corpus.read import read_slice
from dpr.recipe import CorpusConfig
corpus = CorpusConfig(format="python-docs")
rows = [row for slice_ in plan_slices(corpus) for row in read_slice(slice_, corpus)]
assert not {"this", "antigravity", "idlelib", "tkinter", "turtle", "lib2to3"} & sys.modules.keys()
write(hashlib.sha256(repr([row.passage for row in rows]).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    rows = [row for slice_ in plan_slices(CORPUS) for row in read_slice(slice_, CORPUS)]
    assert [row.position for row in rows] == list(range(len(rows)))
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


def test_there_are_some_thousands_of_informative_passages(passages: list[Passage], entries: dict[str, str]) -> None:
    assert 4000 <= len(passages) <= 6500
    assert len({passage.id for passage in passages}) == len(passages)
    assert max(len(passage.text.split()) for passage in passages) == 100
    assert min(len(text.split()) for text in entries.values()) >= 12
    docs = [text for name, text in entries.items() if not name.startswith("topic:")]
    assert len(set(docs)) == len(docs), "the same text under two names"


def test_the_passages_are_the_same_in_another_process_whose_functions_were_replaced(passages: list[Passage]) -> None:
    command = [sys.executable, "-W", "error", "-c", DIGEST]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == hashlib.sha256(repr(passages).encode()).hexdigest()


def test_every_topic_is_there_word_for_word(entries: dict[str, str]) -> None:
    def words(text: str) -> list[str]:
        return [word for word in text.split() if not re.fullmatch(r"([*=~^-])\1{3,}", word)]

    assert {name for name in entries if name.startswith("topic:")} == {f"topic:{name}" for name in topics}
    for name, text in topics.items():
        assert words(entries[f"topic:{name}"]) == words(text)


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
def test_an_entry_is_the_docstring_of_the_object_of_that_name(entries: dict[str, str], name: str) -> None:
    live = inspect.getdoc(pydoc.locate(name))
    assert live is not None
    assert entries[name] == " ".join(live.split())


def test_titles_are_the_names_that_users_know(passages: list[Passage]) -> None:
    titles = {passage.id: passage.title for passage in passages}
    assert titles["builtins.str.join#0"] == "str.join"
    assert titles["itertools.groupby#0"] == "itertools.groupby"
    assert titles["topic:with#1"] == "with"


def test_short_docstrings_join_the_entry_of_their_class_or_module(entries: dict[str, str]) -> None:
    assert "os.path.getsize" not in entries
    assert f"getsize: {' '.join(str(inspect.getdoc(pydoc.locate('os.path.getsize'))).split())}" in entries["os.path"]


def test_nothing_private_and_no_module_with_effects_is_there(entries: dict[str, str]) -> None:
    parts = {part for name in entries for part in name.removeprefix("topic:").split(".")}
    assert not {part for part in parts if part.startswith("_")}
    assert not {"test", "tests", "idlelib", "lib2to3", "antigravity", "this"} & {name.split(".")[0] for name in entries}


def test_a_slice_planned_with_another_python_is_refused() -> None:
    (slice_,) = plan_slices(CORPUS)
    other = type(slice_).from_json({**slice_.to_json(), "identity": "CPython-2.7.18-linux"})
    with pytest.raises(CorpusError, match=r"planned with CPython-2\.7\.18-linux and is read with CPython-3"):
        next(read_slice(other, CORPUS))


def test_a_python_without_its_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docstrings.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(CorpusError, match="python-docs has no sources to read in"):
        python_entries()


def test_every_answer_of_the_demo_questions_is_an_entry(entries: dict[str, str]) -> None:
    questions = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    assert len({one["question"] for one in questions}) == 50
    answers = [answer for one in questions for answer in one["answers"]]
    assert [answer for answer in answers if answer not in entries] == []
    assert len({answer.split(".")[0] for answer in answers}) >= 25, "they are about many modules and topics"
