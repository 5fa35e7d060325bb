"""Training data: every layout gives the same examples, and what cannot be used is counted with its reason."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.encoder.spec import EncoderSpec, resolve
from dpr.encoder.tokens import TowerTokenizer
from dpr.errors import CorpusError, RecipeError
from dpr.formats.quarantine import QuarantinedRow
from dpr.recipe import EncoderConfig
from dpr.train.example_files import read_examples
from dpr.train.examples import TrainingExample, TrainingPassage
from dpr.train.train_recipe import TrainingData
from dpr.train.training_set import TrainingSet, collect

DPR: dict[str, Any] = {
    "question": "w1 w2",
    "answers": ["w3"],
    "positive_ctxs": [{"title": "w4", "text": "w3 w5", "passage_id": 7, "score": 1000}],
    "negative_ctxs": [{"title": "", "text": "w9"}],
    "hard_negative_ctxs": [{"title": "w6", "text": "w7", "passage_id": "8"}],
}
PLAIN = {"query": "w1 w2", "pos": ["w3 w5"], "neg": ["w7", "w8"]}


def read(path: Path | str, **fields: Any) -> list[TrainingExample | QuarantinedRow]:
    return list(read_examples(TrainingData(path=str(path), **fields)))


def write(path: Path, *documents: object) -> Path:
    path.write_text("\n".join(map(json.dumps, documents)))
    return path


@pytest.mark.parametrize("indent", [None, 2])
def test_dpr_files_are_read_whether_printed_over_one_line_or_many(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "train.json.gz"
    path.write_bytes(gzip.compress(json.dumps([DPR, DPR | {"hard_negative_ctxs": []}], indent=indent).encode()))
    with_hard, without = read(path)
    assert with_hard == TrainingExample(
        "w1 w2", (TrainingPassage("w3 w5", "w4", "7"),), (TrainingPassage("w7", "w6", "8"),), ("w3",)
    )
    assert isinstance(without, TrainingExample)
    assert without.negatives == (TrainingPassage("w9"),)  # as DPR does: other negatives where there are no hard ones


@pytest.mark.parametrize(
    "document",
    [
        PLAIN,
        {"anchor": "w1 w2", "positive": "w3 w5", "negative_1": "w7", "negative_2": "w8"},
        {"question": "w1 w2", "positive": ["w3 w5"], "negatives": ["w7", "w8"]},
        {
            "query_id": "1",
            "query": "w1 w2",
            "positive_passages": [{"docid": "1", "title": "", "text": "w3 w5"}],
            "negative_passages": [{"docid": "2", "text": "w7"}, {"docid": "3", "text": "w8"}],
        },
    ],
)
def test_layouts_of_the_field_give_the_same_example(tmp_path: Path, document: dict[str, Any]) -> None:
    pq.write_table(pa.Table.from_pylist([document, document]), tmp_path / "rows.parquet")
    found = [*read(write(tmp_path / "rows.jsonl", document)), *read(tmp_path / "rows.parquet")]
    assert len(found) == 3
    for example in found:
        assert isinstance(example, TrainingExample)
        assert example.question == "w1 w2"
        assert [each.text for each in example.positives] == ["w3 w5"]
        assert [each.text for each in example.negatives] == ["w7", "w8"]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (PLAIN | {"neg": ["w3 w5"]}, "a passage is both positive and negative"),
        (PLAIN | {"neg": [" w1  w2"]}, "the question is its own negative"),
        (PLAIN | {"pos": ["", " "]}, "no positive passage has a text"),
        (PLAIN | {"pos": []}, "no positive passage"),
        (PLAIN | {"query": " "}, "no question"),
        (PLAIN | {"pos": [7]}, "a passage is an integer, not a string or an object"),
        (PLAIN | {"pos": [None]}, "a passage is null, not a string or an object"),
        (DPR | {"answers": ["\ud83d"]}, "half of a surrogate pair"),
        (DPR | {"positive_ctxs": [{"title": "\ud83d", "text": "w3"}]}, "half of a surrogate pair"),
        (DPR | {"hard_negative_ctxs": [{"title": "", "text": "\ud83d"}]}, "half of a surrogate pair"),
        (DPR | {"positive_ctxs": [{"text": 7}]}, "the text or the title of a passage is not a string"),
        ([1], "a list instead of a JSON object"),
        (None, "null instead of a JSON object"),
    ],
)
def test_an_unusable_row_has_a_reason_and_its_bytes(tmp_path: Path, document: object, reason: str) -> None:
    good, bad, _ = read(write(tmp_path / "rows.jsonl", PLAIN, document, PLAIN))
    assert isinstance(good, TrainingExample)
    assert isinstance(bad, QuarantinedRow)
    assert (bad.reason, json.loads(bad.raw)) == (reason, document)


CUT_OFF = ['{"question": "w1", "positive_ctxs": [}', '{"question": "w1, "pos": []}', '{"query": "w1']
BROKEN_LINES = [(line, before) for line in CUT_OFF for before in (0, 1, 3)] + [(mark, 3) for mark in '["}']


@pytest.mark.parametrize(("broken", "before"), BROKEN_LINES)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_broken_line_takes_no_other_line_with_it(tmp_path: Path, broken: str, ending: str, before: int) -> None:
    good = [json.dumps(DPR | {"question": f"w{number} w1"}) for number in range(8)]
    lines = [*good[:before], broken, *good[before:]]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + ending.join(lines).encode())
    found = read(path)
    assert [each.question for each in found if isinstance(each, TrainingExample)] == [f"w{n} w1" for n in range(8)]
    (bad,) = (each for each in found if isinstance(each, QuarantinedRow))
    assert (bad.reason, bad.raw.decode().strip().removeprefix("\ufeff")) == ("broken JSON", broken)


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_that_was_cut_off_is_refused(tmp_path: Path, indent: int | None) -> None:
    text = json.dumps([DPR, DPR, DPR], indent=indent)
    path = tmp_path / "train.json"
    path.write_text(text[: text.rindex("w6")])
    with pytest.raises(RecipeError, match=r"train.json end within .* begins at byte [\d,]+, b'{.*cut off"):
        read(path)
    path.write_text(text.replace("w3 w5", 'w3" w5', 1))  # one quotation mark too many: where the text ends is unclear
    with pytest.raises(RecipeError, match="a bracket or a quotation mark is missing there"):
        read(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_objects_one_after_another_are_read_however_they_are_printed(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "train.json"
    path.write_text("\n".join(json.dumps(DPR | {"question": f"w{n}"}, indent=indent) for n in range(3)))
    assert [each.question for each in read(path) if isinstance(each, TrainingExample)] == ["w0", "w1", "w2"]


def test_a_beir_folder_joins_queries_and_passages_by_its_qrels(tmp_path: Path) -> None:
    write(tmp_path / "queries.jsonl", *({"_id": f"q{n}", "text": f"w{n}"} for n in range(4)))
    write(tmp_path / "corpus.jsonl", *({"_id": f"p{n}", "title": "w9", "text": f"w{n}"} for n in range(3)))
    lines = ["query-id\tcorpus-id\tscore", "q0\tp0\t1", "q0\tp1\t2", "q1\tp2\t0", "q2\tp2\t1", "q3\tp9\t1", "q8\tp0\t1"]
    (tmp_path / "qrels.train.tsv").write_text("\n".join(lines))
    (tmp_path / "qrels.dev.tsv").write_text("\n".join(["q1 0 p1 1"]))
    first, irrelevant, second, *bad = read(tmp_path)
    assert isinstance(first, TrainingExample)
    assert isinstance(irrelevant, QuarantinedRow)
    assert irrelevant.reason == "no passage is judged relevant (score above 0)"
    assert isinstance(second, TrainingExample)
    assert (first.question, [each.id for each in first.positives]) == ("w0", ["p0", "p1"])
    assert (second.question, second.positives) == ("w2", (TrainingPassage("w2", "w9", "p2"),))
    reasons = [each.reason for each in bad if isinstance(each, QuarantinedRow)]
    assert reasons == ["none of its judged passages is in the corpus", "no query of this id is in the file"]
    (dev,) = read(tmp_path, qrels=str(tmp_path / "qrels.dev.tsv"))
    assert isinstance(dev, TrainingExample)
    assert dev.question == "w1"


@pytest.fixture(scope="module")
def spec(encoder: Path) -> EncoderSpec:
    return resolve(EncoderConfig(model=str(encoder), pooling="mean", title_join="pair"))


def collected(path: Path, spec: EncoderSpec, *documents: object) -> TrainingSet:
    return collect(read(write(path / "rows.jsonl", *documents)), spec, path / "bad.parquet")


def test_questions_and_passages_are_there_once_with_all_that_belongs_to_them(tmp_path: Path, spec: EncoderSpec) -> None:
    other = {"query": "w1 w2", "pos": [{"title": "w9", "text": "w7"}, "w8"], "neg": []}
    found = collected(tmp_path, spec, PLAIN, other, {"query": "w4", "pos": ["w7"], "neg": ["w3 w5"]})
    assert found.questions == ("w1 w2", "w4")
    texts = {row: name for name, row in {"w3 w5": 0, "w7": 1, "w8": 2, "w9|w7": 3}.items()}
    of = [[[texts[row] for row in each.of(q).tolist()] for each in (found.positives, found.negatives)] for q in (0, 1)]
    # "w8" was a negative of the first example, and the second says that it answers the same question
    assert of == [[["w3 w5", "w9|w7", "w8"], ["w7"]], [["w7"], ["w3 w5"]]]
    assert len(found.counts.notes) == 1
    passages = TowerTokenizer(spec.passage).passages(["", "", "", "w9"], ["w3 w5", "w7", "w8", "w7"])
    assert found.passage_tokens.ids_T.tolist() == passages.ids_T.tolist()
    assert found.passage_tokens.types_T.tolist() == passages.types_T.tolist()
    assert (
        found.question_tokens.ids_T.tolist() == TowerTokenizer(spec.question).questions(found.questions).ids_T.tolist()
    )


def test_unusable_rows_are_counted_and_kept(tmp_path: Path, spec: EncoderSpec) -> None:
    found = collected(tmp_path, spec, PLAIN, PLAIN | {"pos": []}, PLAIN | {"pos": []}, PLAIN | {"query": ""})
    assert found.counts.quarantined == {"no positive passage": 2, "no question": 1}
    rows = pq.read_table(tmp_path / "bad.parquet").to_pylist()
    assert [row["reason"] for row in rows] == ["no positive passage", "no positive passage", "no question"]
    assert "3 unusable rows: 2 for 'no positive passage', 1 for 'no question'" in found.describe()


def test_the_digest_changes_with_what_belongs_together(tmp_path: Path, spec: EncoderSpec) -> None:
    sets = [collected(tmp_path, spec, PLAIN | {"neg": [text]}).digest for text in ("w7", "w8", "w7")]
    assert sets[0] == sets[2] != sets[1]


def test_data_without_any_example_are_refused_with_the_reason(tmp_path: Path, spec: EncoderSpec) -> None:
    sentence = "training data hold no usable example (2 rows: 2 for 'no question'); docs/formats.md says what is read"
    with pytest.raises(RecipeError, match=f"^{re.escape(sentence)}$"):
        collected(tmp_path, spec, {"query": ""}, {"pos": ["w1"]})


def test_files_that_are_missing_are_not_called_a_corpus(tmp_path: Path) -> None:
    for name, reason in (
        ("gone.json", "not there"),
        ("*.json", "a glob that matches no file"),
        ("", "an empty folder"),
    ):
        path = str(tmp_path / name)
        with pytest.raises(CorpusError) as refused:
            read(path)
        assert str(refused.value).startswith(
            f"training data {path} is {reason}; give a file, a folder, a glob or a URL"
        )


def test_judged_passages_that_the_corpus_lacks_are_counted(tmp_path: Path, spec: EncoderSpec) -> None:
    write(tmp_path / "queries.jsonl", {"_id": "q0", "text": "w0"})
    write(tmp_path / "corpus.jsonl", {"_id": "p0", "title": "w9", "text": "w0"})
    (tmp_path / "qrels.train.tsv").write_text("q0 0 p0 1\nq0 0 p8 1\nq0 0 p9 2\n")
    found = collect(read(tmp_path), spec, tmp_path / "bad.parquet")
    assert found.counts.notes == ("judged passages left out because the corpus lacks them: 2",)


@pytest.mark.parametrize("name", ["qrels", "corpus"])
def test_what_only_a_beir_folder_has_is_refused_for_files(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "train.jsonl", PLAIN)
    with pytest.raises(RecipeError) as caught:
        read(path, **{name: "elsewhere"})
    assert str(caught.value) == (
        f"{name} elsewhere has no effect, since {path} is no BEIR folder, which has queries.jsonl; leave {name} out, "
        "or name such a folder"
    )
