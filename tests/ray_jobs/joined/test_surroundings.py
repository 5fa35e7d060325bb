"""Commands in surroundings that are not as they should be: folder, environment, terminal, stdout. Real processes."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dpr.errors import OutputError
from ray_jobs.output import guard_streams, print_json
from tests.collection import Collection, FirstNights
from tests.ray_jobs.conftest import OUR_LINE
from tests.tiny import random_texts

ROOT = Path(__file__).resolve().parents[3]
SHADOWS = ("tokenizers", "torch", "json", "ray", "pyarrow", "typing_extensions", "yaml")
"""Names of modules that a user's own scripts may have."""
DEAD_PROXY = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY", "grpc_proxy"), "http://127.0.0.1:9")


def bare_system() -> list[str]:
    """Return a command that runs others as a user without a name, and without shared memory; [] where it may not."""
    bare = 'mount -t tmpfs -o ro none /dev/shm && exec unshare --user --map-user=54321 --map-group=54321 "$@"'
    command = ["unshare", "--mount", "sh", "-c", bare, "sh"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return command


def write_shadows(folder: Path) -> Path:
    """Write scripts that must not be imported."""
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text("raise RuntimeError('imported from the current folder')\n")
    (folder / "numpy").mkdir()
    (folder / "numpy/__init__.py").write_text("raise RuntimeError('imported from the current folder')\n")
    return folder


def test_a_run_needs_neither_a_clean_folder_nor_a_home_nor_short_paths(tmp_path: Path, static_encoder: Path) -> None:
    """Files are named like dependencies, PYTHONPATH has an empty entry, proxies are dead, the terminal knows ASCII.

    Where the system lets this test do so, the user has no name, and so no home, and there is no shared memory.
    """
    texts = random_texts(30) | {"é": "w1 東京"}
    recipe = Collection(tmp_path / "collection", static_encoder, texts).write_recipe()
    temporary = tmp_path / ("x" * 100)
    temporary.mkdir()
    environment = os.environ | DEAD_PROXY
    environment |= {"PYTHONPATH": f"{os.pathsep}{ROOT}", "TMPDIR": str(temporary), "PYTHONIOENCODING": "ascii"}
    environment["DPR_CACHE"] = str(tmp_path / "cache")
    for name in ("HOME", "RAY_ADDRESS", "RAY_TMPDIR"):
        environment.pop(name, None)
    ended = subprocess.run(
        [*bare_system(), sys.executable, "-m", "ray_jobs.nightly", "--recipe", str(recipe)],
        cwd=write_shadows(tmp_path / "here"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("published snapshot 1: 31 passages ")
    assert [line for line in ended.stderr.splitlines() if not OUR_LINE.fullmatch(line)] == []


@pytest.mark.without_ray
@pytest.mark.slow
def test_stdout_may_be_full_or_closed_and_know_ascii_alone(tmp_path: Path, first_nights: FirstNights) -> None:
    store = first_nights.copy(tmp_path / "[red]é").recipe.store
    command = [sys.executable, "-m", "ray_jobs.cli", "status", store]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert ended.returncode == OutputError.exit_code
    sentence = b"error: the result cannot be written to stdout: No space left on device; what the command did is done\n"
    assert ended.stderr == sentence
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert ended.stdout.decode("ascii").startswith(f"{tmp_path}/[red]\\xe9/store\n")


@pytest.mark.without_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("raise RuntimeError(1)", ["ray_jobs.cli", "run", "--local"]),
        ("Tokenizer = None", ["ray_jobs.cli", "run", "--local"]),
        ("", ["ray_jobs.cli", "run", "--local"]),
        ("raise RuntimeError(1)", ["ray_jobs.nightly", "--recipe"]),
    ],
)
def test_a_script_of_pythonpath_that_is_taken_for_a_library_is_named(
    tmp_path: Path, encoder: Path, text: str, command: list[str]
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/tokenizers.py").write_text(text)
    recipe = Collection(tmp_path / "collection", encoder, random_texts(3)).write_recipe()
    ended = subprocess.run(
        [sys.executable, "-m", *command, recipe],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["scripts", str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines()[-1].startswith(
        f"error: {tmp_path}/scripts/tokenizers.py is imported in place of the library of that name"
    )


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.without_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("surroundings", "code", "sentence"),
    [
        ({"COLUMNS": "0", "MPLBACKEND": "module://of_jupyter"}, 5, b"error: store "),
        ({"PYTHONOPTIMIZE": "2"}, 2, b"error: Python leaves out docstrings (-OO or PYTHONOPTIMIZE=2), which Ray needs"),
        ({"gone": "the current folder"}, 2, b"error: the current folder is not there any more; change to another one"),
    ],
)
def test_surroundings_that_no_command_works_in_are_named(
    tmp_path: Path, surroundings: dict[str, str], code: int, sentence: bytes
) -> None:
    gone = "cd $(mktemp -d -p .) && rmdir $PWD; " if "gone" in surroundings else ""
    ended = subprocess.run(
        ["/bin/sh", "-c", f"{gone}exec {sys.executable} -m ray_jobs.cli report nowhere"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | surroundings,
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (code, b"")
    assert ended.stderr.startswith(sentence)
    assert ended.stderr.count(b"\n") == 1


@pytest.mark.without_ray
def test_names_that_the_locale_cannot_spell_are_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("store: s\ncorpus: {path: é.jsonl}\nencoder: {model: ./m}\n", "utf-8")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/é.jsonl").write_text('{"id": "a", "title": "", "text": "x"}\n')
    code = "from dpr.corpus.input_files import find_files; from dpr.recipe_file import load_recipe\n"
    for call in ("load_recipe('recipe.yaml')", "find_files('d')"):
        code += f"try: {call}\nexcept Exception as error: print(type(error).__name__, ascii(str(error)))\n"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | ASCII | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    recipe, folder = ended.stdout.splitlines()
    assert recipe.startswith("RecipeError ")
    assert r"path \xe9.jsonl cannot be a file name where names are in ascii" in recipe
    assert folder.startswith("CorpusError ")
    assert "has a name that is not UTF-8; the locale's encoding is ascii: set LC_ALL=C.UTF-8" in folder


@pytest.mark.without_ray
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding))
    guard_streams()
    document = {"é": "東京 😀 \udc80"}
    print_json(document)
    sys.stdout.flush()
    assert json.loads(file.getvalue().decode(encoding)) == document
