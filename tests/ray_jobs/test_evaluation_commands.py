"""`dpr eval` and `dpr compare`, as a user types them: against brute force, and against the library on what they write.

Shapes: Q questions, N passages, D dimensions.
"""

import json
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from sentence_transformers import CrossEncoder

from dpr.search.retrieve import Retriever
from tests.collection import Collection, FirstNights
from tests.evaluate.html_page import HtmlPage
from tests.ray_jobs.conftest import Dpr
from tests.tiny import WORDS, make_cross_encoder

pytestmark = [pytest.mark.without_ray, pytest.mark.slow]
PASSAGES, ASKED = 80, 40


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights) -> Collection:
    """A collection of two nights, beside questions and qrels; the second night lacks ten passages that answer."""
    rng = np.random.default_rng(4)
    texts = {f"p{n:03d}": " ".join([*rng.choice(WORDS, 12), f"rare{n:03d}"]) for n in range(PASSAGES)}
    made = first_nights.copy(tmp_path_factory.mktemp("evaluated"), texts)
    with (made.folder / "queries.jsonl").open("w") as file:
        for n in range(ASKED):
            # even ones repeat words of their passage, odd ones the word that only their passage has
            text = " ".join(texts[f"p{n:03d}"].split()[:4]) if n % 2 == 0 else f"w{n} rare{n:03d}"
            line = {"_id": f"q{n}", "text": text, "metadata": {"answers": [f"rare{n:03d}"]}}
            file.write(json.dumps(line) + "\n")
    judged = [f"q{n}\tp{n:03d}\t{1 + n % 3}\nq{n}\tp{n + 1:03d}\t1\n" for n in range(ASKED)]
    (made.folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    for n in range(10):
        del made.corpus[f"p{n:03d}"]
    made.night()
    return made


def files(nights: Collection) -> tuple[str, ...]:
    return "--questions", str(nights.folder / "queries.jsonl"), "--qrels", str(nights.folder / "qrels.tsv")


def qrels(nights: Collection) -> dict[str, dict[str, int]]:
    lines = [line.split("\t") for line in (nights.folder / "qrels.tsv").read_text().splitlines()[1:]]
    found: dict[str, dict[str, int]] = {}
    for query, passage, score in lines:
        found.setdefault(query, {})[passage] = int(score)
    return found


def test_exact_dense_figures_are_those_of_brute_force(nights: Collection, dpr: Dpr) -> None:
    code, out, _ = dpr(
        "eval", nights.store.url, *files(nights), "--exact", "--mode", "dense", "-k", 1, "-k", 20, "--json"
    )
    assert code == 0
    rows = nights.live_rows(nights.body(2))
    texts = [json.loads(line)["text"] for line in (nights.folder / "queries.jsonl").read_text().splitlines()]
    with Retriever.open(nights.store) as retriever:
        questions_QD = retriever.encode(texts)
    ids, vectors_ND = list(rows), np.stack([vector for _, vector in rows.values()])
    order_QN = np.argsort(-(questions_QD @ vectors_ND.T), axis=1, kind="stable")
    run = {
        f"q{n}": {ids[place]: -float(rank) for rank, place in enumerate(order_N[:20])}
        for n, order_N in enumerate(order_QN)
    }
    measures = [ir_measures.parse_measure(name) for name in ("Success@1", "Success@20", "nDCG@10", "R@20", "AP@20")]
    expected = ir_measures.calc_aggregate(measures, qrels(nights), run)
    found = json.loads(out)["modes"]["dense"]
    for measure in measures:
        name = str(measure).replace("Success", "accuracy")
        assert found[name]["mean"] == pytest.approx(expected[measure], abs=1e-6)
        assert found[name]["low"] <= found[name]["mean"] <= found[name]["high"]


def test_runs_are_what_the_figures_were_calculated_from(nights: Collection, dpr: Dpr, tmp_path: Path) -> None:
    code, out, _ = dpr("eval", nights.store.url, *files(nights), "--run-out", tmp_path / "dev.trec", "--json")
    assert code == 0
    document = json.loads(out)
    assert list(document["modes"]) == ["dense", "bm25", "hybrid"]
    for mode, found in document["modes"].items():
        run = ir_measures.read_trec_run(str(tmp_path / f"dev-{mode}.trec"))
        measure = ir_measures.nDCG @ 10
        expected = ir_measures.calc_aggregate([measure], qrels(nights), run)[measure]
        assert found["nDCG@10"]["mean"] == pytest.approx(expected, abs=1e-6)
    assert document["differences"]["bm25 - dense"]["nDCG@10"]["won"] > 0


def test_re_ranked_figures_are_those_of_sentence_transformers(nights: Collection, dpr: Dpr, tmp_path: Path) -> None:
    model = make_cross_encoder(tmp_path / "cross")
    command = ("eval", nights.store.url, *files(nights), "--mode", "bm25", "-k", 10, "--rerank", model)
    code, out, _ = dpr(*command, "--rerank-top", 12, "--json")
    assert code == 0
    document = json.loads(out)
    assert list(document["modes"]) == ["bm25", "bm25-reranked"]
    assert (document["rerank"]["model"], document["rerank"]["top"]) == (str(model), 12)
    texts = [json.loads(line)["text"] for line in (nights.folder / "queries.jsonl").read_text().splitlines()]
    with Retriever.open(nights.store) as retriever:
        found = retriever.search(texts, 12, mode="bm25").hits
    theirs, run = CrossEncoder(str(model), device="cpu"), {}
    for n, hits in enumerate(found):
        ranked = theirs.rank(texts[n], [hit.text for hit in hits])[:10] if hits else []
        run[f"q{n}"] = {hits[int(each["corpus_id"])].id: -float(rank) for rank, each in enumerate(ranked)}
    for name in ("nDCG@10", "R@10"):
        measure = ir_measures.parse_measure(name)
        expected = ir_measures.calc_aggregate([measure], qrels(nights), run)[measure]
        assert document["modes"]["bm25-reranked"][name]["mean"] == pytest.approx(expected, abs=1e-6)
    assert document["differences"]["bm25-reranked - bm25"]["nDCG@10"]["lost"] > 0
    code, out, err = dpr(*command, "--rerank-top", 9)
    assert (code, out) == (2, "")
    assert "10 hits are requested, but only the best 9 are re-ranked" in err


def test_what_was_left_out_is_counted_and_listed(nights: Collection, dpr: Dpr) -> None:
    qrels_path = nights.folder / "more.tsv"
    qrels_path.write_text((nights.folder / "qrels.tsv").read_text() + "q99\tp050\t1\n")
    arguments = ("--questions", nights.folder / "queries.jsonl", "--qrels", qrels_path, "-k", 1)
    code, out, _ = dpr("eval", nights.store.url, *arguments, "--json")
    document = json.loads(out)
    assert (code, document["questions"], document["snapshot"]) == (0, ASKED, 2)
    assert document["absent_passages"] == [f"p{n:03d}" for n in range(10)]
    assert set(document["unanswered"]) >= {f"q{n}" for n in range(9)}
    assert document["notes"] == [
        "1 judged query id of qrels not among the questions, such as 'q99'",
        "10 of 41 passage ids that answer questions are not in the corpus, such as 'p000'; questions that have no "
        "other answer count as not answered",
    ]
    code, out, _ = dpr("eval", nights.store.url, *arguments)
    assert code == 0
    assert all(note in out for note in document["notes"])
    assert f"such as {document['unanswered'][0]}, '" in out
    assert dpr("eval", nights.store.url, *arguments, "--snapshot", 1, "--json")[1].count('"p000"') == 0


def test_strings_have_accuracy_and_the_rank_alone(nights: Collection, dpr: Dpr) -> None:
    arguments = (*files(nights), "--answers", "strings", "--mode", "bm25", "-k", 1, "--snapshot", 1, "--json")
    document = json.loads(dpr("eval", nights.store.url, *arguments)[1])
    assert list(document["modes"]["bm25"]) == ["accuracy@1", "RR@10"]
    # every odd question holds a word that only the right passage has
    assert document["modes"]["bm25"]["accuracy@1"]["mean"] >= 0.5
    drawn = json.loads(dpr("eval", nights.store.url, *arguments, "--max-questions", 7)[1])
    assert drawn["questions"] == 7


def test_a_comparison_finds_what_a_night_lost(nights: Collection, dpr: Dpr) -> None:
    url = nights.store.url
    arguments = (f"{url}@1:bm25", f"{url}@2:bm25", *files(nights), "--json")
    code, out, _ = dpr("compare", *arguments)
    document = json.loads(out)
    assert code == 0
    assert (document["a"], document["b"]) == (f"{url}@1:bm25", f"{url}@2:bm25")
    lost = document["differences"]["nDCG@10"]
    assert lost["mean"] == pytest.approx(
        document["means"][document["b"]]["nDCG@10"]["mean"] - document["means"][document["a"]]["nDCG@10"]["mean"]
    )
    assert lost["lost"] >= 9 > lost["won"]
    assert lost["high"] < 0
    assert lost["p_value"] < 0.01
    assert {row["id"] for row in document["lost"]} <= {f"q{n}" for n in range(10)}
    assert all(row["a"]["rank"] is not None for row in document["lost"])
    _, out, _ = dpr("compare", *arguments[:-1])
    assert f"{url}@2:bm25 is worse than {url}@1:bm25: nDCG@10 -" in out


def test_a_store_equals_the_run_that_it_wrote(nights: Collection, dpr: Dpr, tmp_path: Path) -> None:
    url, run = nights.store.url, tmp_path / "run@3:x.trec"
    dpr("eval", url, *files(nights), "--mode", "dense", "--run-out", run)
    code, out, _ = dpr("compare", run, f"{url}:dense", *files(nights), "--json")
    document = json.loads(out)
    assert (code, document["a"]) == (0, str(run))
    assert {name: (d["mean"], d["p_value"], d["tied"]) for name, d in document["differences"].items()} == dict.fromkeys(
        document["differences"], (0.0, 1.0, ASKED)
    )
    assert (document["lost"], document["won"]) == ([], [])
    code, out, _ = dpr("compare", run, f"{url}:dense", *files(nights))
    assert "is neither clearly better nor worse than" in out


def test_the_page_shows_figures_and_examples(nights: Collection, dpr: Dpr, tmp_path: Path) -> None:
    url, folder = nights.store.url, tmp_path / "report"
    document = json.loads(dpr("eval", url, *files(nights), "--report", folder, "--json")[1])
    assert document["page"] == str(folder / "evaluation.html")
    html = (folder / "evaluation.html").read_text()
    page = HtmlPage(html)
    assert page.open == []
    assert "://" not in html.replace(url, "")  # it sends no request
    metrics = next(table for table in page.tables if table[0][0] == "metric")
    assert metrics[0][1:] == ["dense", "bm25", "hybrid"]
    cell = document["modes"]["hybrid"]["nDCG@10"]
    shown = {row[0]: row[3] for row in metrics[1:]}
    assert shown["nDCG@10"] == f"{cell['mean']:.4f} ({cell['low']:.4f} to {cell['high']:.4f})"
    assert "Questions that bm25 has won against dense" in page.text
    assert len(page.sources) == 2
    assert {path.name for path in folder.iterdir()} == {"evaluation.html", "accuracy.png", "accuracy-dark.png"}
    (tmp_path / "taken").write_text("")
    code, _, err = dpr("eval", url, *files(nights), "--mode", "bm25", "--report", tmp_path / "taken")
    assert (code, err.count("\n"), "name another folder" in err) == (14, 1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("eval", "{}", "--questions", "nowhere.jsonl"), 2, "file nowhere.jsonl is not there; check its name"),
        (("compare", "{}:nonsense", "{}"), 2, "is not STORE, STORE@SNAPSHOT, STORE:MODE"),
        (("compare", "{}", "nowhere.run"), 2, "nowhere.run does not exist; name a store or a TREC run file"),
        (
            ("compare", "{}/../qrels.tsv", "{}/../qrels.tsv", "--exact"),
            2,
            "since run files are not searched; leave it out",
        ),
        (("compare", "{}@9", "{}"), 5, "has no snapshot 9; it has 1 to 2"),
        (("compare", "{}/../qrels.tsv", "{}"), 2, "qrels.tsv, line 1 is not one of a TREC run, which has 6 columns"),
        (("eval", "{}", "--answers", "nothing"), 2, "'nothing'"),
        (("eval", "{}", "-k", "0"), 2, "-k is '0'; it takes a number from 1 to 1000"),
    ],
)
def test_bad_commands_are_one_sentence(
    nights: Collection, dpr: Dpr, arguments: tuple[str, ...], code: int, message: str
) -> None:
    given = [argument.replace("{}", nights.store.url) for argument in arguments]
    if "--questions" not in given:
        given += files(nights)
    found, _, err = dpr(*given)
    assert found == code
    assert message in err


def test_qrels_of_another_corpus_are_refused(nights: Collection, dpr: Dpr, tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("q1 0 other 1\n")
    arguments = ("--questions", nights.folder / "queries.jsonl", "--qrels", tmp_path / "qrels.txt")
    code, _, err = dpr("eval", nights.store.url, *arguments)
    assert code == 2
    assert "none of the 1 passage ids that answer questions is in the corpus, such as 'other'" in err
    assert err.count("\n") == 1
