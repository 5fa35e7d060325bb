"""Every command of docs/reproduce-nq.md, on small files of the form and the names that it downloads."""

import csv
import gzip
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.encoder.models import save_dpr
from tests.ray_jobs.conftest import Dpr

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/reproduce-nq.md").read_text()
PASSAGES = 30
pytestmark = pytest.mark.slow


def blocks() -> list[str]:
    """Return the code blocks of the document."""
    return re.findall(r"```\n(.+?)```", DOCUMENT, re.DOTALL)


def commands() -> list[list[str]]:
    """Return the arguments of its `dpr` commands."""
    lines = [line for block in blocks() for line in block.splitlines() if line.startswith("dpr ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def download(folder: Path) -> None:
    """Write what the document's `curl` commands fetch into the folder that it names, with other contents."""
    (block,) = (block for block in blocks() if "curl" in block)
    target = re.search(r"mkdir -p (\S+) && cd \1\n", block)
    assert target is not None
    where = folder / target[1]
    where.mkdir(parents=True)
    table = io.StringIO()
    rows = [("id", "text", "title"), *((n, f"hello world number {n}", "the title") for n in range(1, PASSAGES + 1))]
    csv.writer(table, delimiter="\t").writerows(rows)
    answers = "".join(f"which number is {n}\t['{n}', 'number {n}']\n" for n in range(1, PASSAGES + 1))
    addresses = re.findall(r"curl -O (.+?)(?:  |\n)", block)
    names = [Path(name).name for line in addresses for name in line.split() if name != "-O"]
    assert len(names) == 4
    for name in names:
        data = (table.getvalue() if name.startswith("psgs") else answers).encode()
        (where / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)


def publish_weights(folder: Path) -> None:
    """Write the models that the document names, small and random, as pickles, where transformers looks first."""
    names = re.findall(r'"(facebook/\S+)"', DOCUMENT)
    for made, name in zip(save_dpr(folder / "made"), names, strict=True):
        shutil.copytree(made, folder / name)
        weights = folder / name / "model.safetensors"
        torch.save(load_file(weights), folder / name / "pytorch_model.bin")
        weights.unlink()


def test_the_commands_of_the_document_work_on_small_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dpr: Dpr
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    download(tmp_path)
    publish_weights(tmp_path)
    (code,) = (block for block in blocks() if "save_pretrained" in block)
    exec(code.partition("\n")[2].rpartition("END")[0], {})
    shutil.rmtree("facebook")

    check, plan, run, *evals = commands()
    assert [check[0], plan[0], run[0], *(each[0] for each in evals)] == ["check", "plan", "run", "eval", "eval"]
    code_, out, _ = dpr(*check, "--json")
    assert (code_, [found["topic"] for found in json.loads(out) if not found["ok"]]) == (0, [])
    work = json.loads(dpr(*plan, "--json", "--local")[1])["work"]
    assert (work["passages"], work["embed"]) == (PASSAGES, PASSAGES)
    done = json.loads(dpr(*run, "--json", "--local")[1])
    assert done["published"]
    assert done["gate"]["questions"] == PASSAGES
    assert list(done["gate"]["accuracy_index"]) == ["1", "5", "20", "100"]
    assert done["gate"]["accuracy_exact"]["100"] == 1.0  # all passages are hits, and each answer stands in one
    for each in evals:
        document = json.loads(dpr(*each, "--json")[1])
        assert document["answers"] == "strings"
        assert list(document["modes"]) == ["dense", "bm25", "hybrid"]
        assert all({"accuracy@20", "accuracy@100"} <= found.keys() for found in document["modes"].values())
        assert document["modes"]["bm25"]["accuracy@20"]["mean"] == 1.0  # the number stands in one passage alone
