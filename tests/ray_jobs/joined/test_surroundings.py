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
from tests.tiny import random_texts

ROOT = Path(__file__).resolve().parents[3]
SHADOWS = ("tokenizers", "torch", "json", "ray", "pyarrow", "typing_extensions", "yaml")
"""Names of modules that a user's own scripts may have."""
DEAD_PROXY = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "ALL_PROXY", "grpc_proxy"), "http://127.0.0.1:9")


def write_shadows(folder: Path) -> Path:
    """Write scripts that must not be imported."""
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text("raise RuntimeError('imported from the current folder')\n")
    (folder / "numpy").mkdir()
    (folder / "numpy/__init__.py").write_text("raise RuntimeError('imported from the current folder')\n")
    return folder


def test_a_run_needs_neither_a_clean_folder_nor_a_home_nor_short_paths(tmp_path: Path, encoder: Path) -> None:
    """Files are named like dependencies, PYTHONPATH has an empty entry, proxies are dead, the terminal knows ASCII."""
    texts = random_texts(30) | {"é": "w1 東京"}
    recipe = Collection(tmp_path / "collection", encoder, texts).write_recipe()
    temporary = tmp_path / ("x" * 100)
    temporary.mkdir()
    environment = os.environ | DEAD_PROXY
    environment |= {"PYTHONPATH": f"{os.pathsep}{ROOT}", "TMPDIR": str(temporary), "PYTHONIOENCODING": "ascii"}
    for name in ("HOME", "RAY_ADDRESS", "RAY_TMPDIR"):
        environment.pop(name, None)
    ended = subprocess.run(
        [sys.executable, "-m", "ray_jobs.nightly", "--recipe", str(recipe)],
        cwd=write_shadows(tmp_path / "here"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("published snapshot 1: 31 passages ")


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
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding))
    guard_streams()
    document = {"é": "東京 😀 \udc80"}
    print_json(document)
    sys.stdout.flush()
    assert json.loads(file.getvalue().decode(encoding)) == document
