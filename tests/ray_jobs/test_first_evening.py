"""What a user types first: `dpr init` writes a recipe, `dpr check` says whether it works, `dpr run` runs it."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dpr.errors import CorpusError
from tests.ray_jobs.conftest import Dpr
from tests.tiny import make_cross_encoder, make_encoder, random_texts

pytestmark = [pytest.mark.without_ray, pytest.mark.slow]
TEXTS = random_texts(30)


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch, sentence_model: Path) -> None:
    """Take a tiny model as the default, which states its pooling as sentence-transformers' models do."""
    monkeypatch.setattr("dpr.operations.first_recipe.default_model", lambda: str(sentence_model))


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_encoder(tmp_path_factory.mktemp("first-evening") / "model")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    return folder


def write_json(path: Path, names: Sequence[str]) -> Path:
    lines = "".join(json.dumps(dict(zip(names, (*row, 7), strict=False))) + "\n" for row in TEXTS.items())
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def write_parquet(path: Path) -> Path:
    pq.write_table(pa.table({"Text": list(TEXTS.values()), "doc_id": list(TEXTS)}), path)
    return path


def write_beir(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    write_json(folder / "corpus.jsonl", ("_id", "text"))
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "w1 w2"}\n')
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp003\t1\n")
    return folder


def write_documents(folder: Path) -> Path:
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


@pytest.mark.parametrize("kind", ["jsonl", "pyserini.jsonl.gz", "parquet", "beir", "documents"])
def test_a_recipe_of_init_passes_the_check_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dpr: Dpr, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = {
        "jsonl": lambda: write_json(tmp_path / "c.jsonl", ("id", "text", "year")),
        "pyserini.jsonl.gz": lambda: write_json(tmp_path / "c.jsonl.gz", ("docid", "contents")),
        "parquet": lambda: write_parquet(tmp_path / "c.parquet"),
        "beir": lambda: write_beir(tmp_path / "beir"),
        "documents": lambda: write_documents(tmp_path / "texts"),
    }[kind]()
    code, out, err = dpr("init", corpus.name)
    assert (code, err) == (0, "")
    assert "all 30 rows read, all can be used" in out
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    assert ("gate" in recipe) == (kind == "beir")

    code, out, _ = dpr("check", "recipe.yaml")
    assert (code, [line.split()[:2] for line in out.splitlines()]) == (
        0,
        [["ok", topic] for topic in ("corpus", "encoder", "store", "room", "words", "questions")],
    )
    assert not Path("store").exists()  # nothing is left of the probe
    assert ("1 of 1 passage ids that answer them" in out) == (kind == "beir")
    code, out, _ = dpr("run", "recipe.yaml", "--local")
    assert code == 0
    assert out.startswith("published snapshot 1: 30 passages ")
    assert "snapshot 1 is live, of this encoder" in dpr("check", "recipe.yaml")[1]


def test_init_overwrites_nothing_and_says_what_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dpr: Dpr
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "c.jsonl", ("id", "text"))
    Path("recipe.yaml").write_text("mine")
    assert dpr("init", "c.jsonl") == (
        2,
        "",
        "error: recipe recipe.yaml is there already; name another file with --out, or remove it\n",
    )
    assert Path("recipe.yaml").read_text() == "mine"
    assert dpr("init", "nothing.jsonl", "--out", "other.yaml")[0] == CorpusError.exit_code
    write_json(tmp_path / "odd.jsonl", ("number", "words"))
    code, _, err = dpr("init", "odd.jsonl", "--out", "other.yaml")
    assert (code, err.count("\n")) == (CorpusError.exit_code, 1)
    assert "'number', 'words'" in err
    assert dpr("init", "c.jsonl", "--questions", "nothing", "--out", "other.yaml")[0] == 2
    assert not Path("other.yaml").exists()


def test_string_answers_are_told_from_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dpr: Dpr) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "c.jsonl", ("id", "text"))
    Path("q.jsonl").write_text('{"question": "w1?", "answers": ["w1"]}\n')
    assert dpr("init", "c.jsonl", "--questions", "q.jsonl")[0] == 0
    assert yaml.safe_load(Path("recipe.yaml").read_text())["gate"]["answers"] == "strings"
    Path("nq-dev.csv").write_text("w1?\t['w1', 'w2']\n")  # DPR's
    assert dpr("init", "c.jsonl", "--questions", "nq-dev.csv", "--out", "dpr.yaml")[0] == 0
    assert yaml.safe_load(Path("dpr.yaml").read_text())["gate"]["answers"] == "strings"


def test_check_says_all_that_is_wrong_and_ends_with_the_code_of_the_first(tmp_path: Path, dpr: Dpr) -> None:
    rows = ["{}"] * 3 + [json.dumps({"id": "a", "title": "", "text": "w1"})] * 7
    (tmp_path / "c.jsonl").write_text("\n".join(rows))
    (tmp_path / "q.jsonl").write_text('{"question": "w1?", "answers": ["gone"]}\n')
    (tmp_path / "store").write_text("no folder")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "store: store\ncorpus: {path: c.jsonl}\nencoder: {model: ./none}\n"
        "gate: {questions: q.jsonl}\nlimits: {max_quarantine_share: 0.2}\nlexical: {language: klingon}\n"
    )
    code, out, err = dpr("check", recipe, "--json")
    found = {row["topic"]: row for row in json.loads(out)}
    assert (code, err) == (CorpusError.exit_code, "")
    assert [topic for topic, row in found.items() if not row["ok"]] == [
        "corpus",
        "encoder",
        "store",
        "words",
        "questions",
    ]
    assert (
        "9 of 10 rows (90.0%) cannot be used, most of them for 'duplicate id' (6 rows, such as line 5 of "
        in (found["corpus"]["found"])
    )
    assert "none does not exist" in found["encoder"]["found"]
    assert "is a file" in found["store"]["found"]
    assert "'klingon', which has no stemmer and no stop words here; set " in found["words"]["found"]
    assert "0 of 1 passage ids" in found["questions"]["found"]


def test_check_loads_the_re_ranker(tmp_path: Path, encoder: Path, dpr: Dpr) -> None:
    (tmp_path / "c.jsonl").write_text('{"id": "a", "title": "", "text": "w1"}\n')
    make_cross_encoder(tmp_path / "cross")
    found = {}
    for model in ("./cross", encoder):
        recipe = tmp_path / "recipe.yaml"
        text = f"store: ./s\ncorpus: {{path: c.jsonl}}\nencoder: {{model: {encoder}, pooling: mean}}\n"
        recipe.write_text(f"{text}rerank: {{model: {model}}}\n")
        rows = json.loads(dpr("check", recipe, "--json")[1])
        found[model] = next((row["ok"], row["found"]) for row in rows if row["topic"] == "re-ranker")
    assert found["./cross"][0]
    assert found["./cross"][1].startswith(f"{tmp_path}/cross, scored a pair (0.")
    assert not found[encoder][0]
    assert "is a BertModel, which has no head that scores" in found[encoder][1]
