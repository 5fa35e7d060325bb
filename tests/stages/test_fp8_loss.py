"""What passages in fp8 lose, against numpy on both sets of vectors, and what the gate refuses.

Shapes: Q questions, N passages, D dimensions, F figures.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dpr.encoder.compute import Compute
from dpr.encoder.encode import PassageEncoder
from dpr.encoder.question_encoder import QuestionEncoder
from dpr.encoder.spec import resolve
from dpr.errors import GateError
from dpr.evaluate.questions import Question, QuestionSet
from dpr.formats import layout
from dpr.formats.gate_report import Fp8Loss, Fp8Report
from dpr.formats.manifest import SnapshotBody
from dpr.formats.snapshots import numbers
from dpr.formats.stored_vectors import as_stored
from dpr.stages.fp8_loss import figures, loss_of
from dpr.stages.fp8_sample import Sample
from dpr.stages.gate import GateResult
from dpr.stages.gate_limits import check_gate
from tests.collection import Collection
from tests.formats.samples import snapshot_body
from tests.tiny import Quiet, make_encoder, random_texts

TEXTS = random_texts(160, seed=4)
QUESTIONS = [(" ".join(text.split()[:3]), [name]) for name, text in list(TEXTS.items())[:120]]
FP8 = {"precision": "fp8"}
Values = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose questions are near several passages, so that rounding changes some ranks."""
    return make_encoder(tmp_path_factory.mktemp("model"), dim=64, spread=0.1)


@pytest.fixture(scope="module")
def coarse_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that fp8 ruins: huge weights, which are multiplied by zero, decide the scale of the others."""
    import torch
    from transformers import BertModel

    folder = make_encoder(tmp_path_factory.mktemp("coarse"), dim=64, spread=0.2)
    body = BertModel.from_pretrained(folder, add_pooling_layer=False)
    with torch.no_grad():
        for layer in body.encoder.layer:
            layer.intermediate.dense.weight[0] = 0.0
            layer.intermediate.dense.bias[0] = -1000.0  # GELU makes 0 of it
            layer.output.dense.weight[:, 0] = 1e7
    body.save_pretrained(folder)
    return folder


def collection_of(folder: Path, model: Path, **gate: object) -> Collection:
    """Return a collection in fp8 with 120 questions, each of the first words of a passage."""
    write_questions(folder, QUESTIONS)
    fields = {"questions": str(folder / "questions.jsonl"), "min_recall": 0, "max_drop": None, **gate}
    return Collection(folder / "store", model, TEXTS, encoder=FP8, gate=fields, resources={"segment_rows": 100})


def write_questions(folder: Path, questions: Sequence[tuple[str, list[str]]]) -> None:
    rows = ({"question": text, "answers": answers} for text, answers in questions)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def fp8_of(body: SnapshotBody) -> Fp8Report:
    assert body.gate.fp8 is not None
    return body.gate.fp8


def values(questions_QD: Values, passages_ND: Values, right_QN: Values) -> Values:
    """Return (Q, 2) whether the first 20 passages hold a right one, and the nDCG@10 of the first right one."""
    order_QN = np.argsort(-(questions_QD.astype(np.float64) @ passages_ND.astype(np.float64).T), axis=1, kind="stable")
    found_QN = np.take_along_axis(right_QN, order_QN, axis=1)
    ranks_Q = np.where(found_QN.any(axis=1), found_QN.argmax(axis=1) + 1, 10**6)
    return np.stack([ranks_Q <= 20, np.where(ranks_Q <= 10, 1 / np.log2(1 + ranks_Q), 0.0)], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(("answers", "store_as"), [("ids", "float16"), ("strings", "int8")])
def test_the_loss_is_that_of_brute_force(tmp_path: Path, model: Path, answers: str, store_as: str) -> None:
    collection = collection_of(tmp_path, model, answers=answers, max_fp8_loss=0.9)
    collection.change(encoder={"store_as": store_as})
    if answers == "strings":
        words = [" ".join(TEXTS[names[0]].split()[-2:]) for _, names in QUESTIONS]
        write_questions(tmp_path, [(text, [word]) for (text, _), word in zip(QUESTIONS, words, strict=True)])
    collection.night()
    report, rows = fp8_of(collection.body(1)), collection.live_rows(collection.body(1))
    fp8_ND, texts = np.stack([vector_D for _, vector_D in rows.values()]), [text for text, _ in rows.values()]
    spec = resolve(collection.recipe.encoder.model_copy(update={"precision": "auto"}))
    encoded_ND = PassageEncoder(spec.passage, Compute(threads=1)).encode([""] * len(texts), texts)
    exact_ND = as_stored(encoded_ND, collection.recipe.encoder.store_as)
    questions = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    questions_QD = QuestionEncoder(spec.question).encode([question["question"] for question in questions])
    right_QN = np.array(
        [
            [question["answers"][0] == id_ if answers == "ids" else f" {question['answers'][0]} " in f" {text} "
             for id_, text in zip(rows, texts, strict=True)]
            for question in questions
        ]
    )  # fmt: skip
    found = {loss.kind: loss for loss in report.losses}
    exact_QF, fp8_QF = (values(questions_QD, vectors_ND, right_QN) for vectors_ND in (exact_ND, fp8_ND))
    assert found["questions"].questions == 120
    for column, figure in enumerate((found["questions"].accuracy, found["questions"].ndcg)):
        changed_Q = fp8_QF[:, column] - exact_QF[:, column]
        assert (figure.exact, figure.fp8) == pytest.approx((exact_QF[:, column].mean(), fp8_QF[:, column].mean()))
        assert (figure.won, figure.lost) == ((changed_Q > 0).sum(), (changed_Q < 0).sum())
        assert figure.low <= changed_Q.mean() <= figure.high
    assert (exact_QF != fp8_QF).any()
    assert (found["sentences"].questions, report.passages, report.of_rows) == (160, 160, 160)
    assert found["sentences"].ndcg.exact == pytest.approx(1.0, abs=0.05)  # a text finds itself


@pytest.mark.slow
def test_a_model_that_loses_too_much_is_refused_with_the_figures(tmp_path: Path, coarse_model: Path) -> None:
    collection = collection_of(tmp_path, coarse_model)
    with pytest.raises(GateError) as refused:
        collection.night()
    said = str(refused.value)
    assert said.startswith(("compared with bf16, fp8 loses ", "compared with fp32, fp8 loses "))
    assert "points of top-20 accuracy (95% interval " in said
    assert "on 120 questions; the recipe allows 0.2 (gate.max_fp8_loss 0.002); nothing was published: set" in said
    assert "\n" not in said
    assert numbers(collection.store) == []
    collection.change(gate={"max_fp8_loss": 0.99})
    progress = Quiet()
    collection.night(progress=progress)
    assert progress.rows["fp8"] == 0  # the record of the refused run was used
    (loss, _) = fp8_of(collection.body(1)).losses
    assert loss.accuracy.exact - loss.accuracy.fp8 > 0.1
    assert f"{100 * (loss.accuracy.exact - loss.accuracy.fp8):.2f} points of top-20" in said


@pytest.mark.slow
def test_it_is_measured_once_for_an_encoder(tmp_path: Path, model: Path) -> None:
    collection = collection_of(tmp_path, model)
    collection.night()
    first = fp8_of(collection.body(1))

    def measures() -> bool:
        progress = Quiet()
        collection.night(progress=progress)
        return "fp8" in progress.rows

    collection.corpus["more"] = "w1 w2 w3"
    assert not measures()
    assert fp8_of(collection.body(2)) == first
    write_questions(tmp_path, QUESTIONS[1:])
    assert measures()
    assert fp8_of(collection.body(3)).losses[0].questions == 119
    collection.corpus.update(random_texts(160, "q", seed=8))  # 321 rows, and the last sample was of 161
    assert not measures()
    collection.corpus["more still"] = "w1 w2 w4"
    assert measures()
    assert fp8_of(collection.body(5)).of_rows == 322
    collection.change(encoder={"precision": "auto"})
    assert not measures()
    assert collection.body(6).gate.fp8 is None


@pytest.mark.slow
def test_without_questions_sentences_are_asked(tmp_path: Path, model: Path) -> None:
    collection = collection_of(tmp_path, model)
    collection.change(gate={"questions": None})
    progress = Quiet()
    snapshot = collection.night(progress=progress).snapshot
    (loss,) = fp8_of(snapshot.body).losses
    assert (loss.kind, loss.questions) == ("sentences", 160)
    assert any(line.startswith("fp8: compared with ") and "on 160 sentences" in line for line in progress.messages)
    assert fp8_of(snapshot.body).summary in collection.file(layout.run_page(snapshot.run_id)).read_text()


def measured(asked: int, lost: int, won: int) -> Fp8Loss:
    """Return the loss where some questions are answered by one kind of vectors alone, and all others by both."""
    exact_QF, fp8_QF = np.ones((asked, 2)), np.ones((asked, 2))
    fp8_QF[:lost] = 0.0
    exact_QF[lost : lost + won] = 0.0
    return loss_of("questions", fp8_QF, exact_QF, seed=7)


@pytest.mark.parametrize(
    ("asked", "lost", "won", "is_refused"),
    [
        (4000, 20, 4, True),
        (4000, 16, 10, False),  # below the bound
        (4000, 30, 20, False),  # above the bound, and chance explains it
        (1000, 4, 0, False),
        (1000, 10, 0, True),
        (1000, 0, 30, False),
        (19, 19, 0, False),
        (20, 20, 0, True),
    ],
)
def test_a_loss_is_refused_that_chance_does_not_explain(
    tmp_path: Path, asked: int, lost: int, won: int, *, is_refused: bool
) -> None:
    losses = [measured(asked, lost, won)]
    fp8 = Fp8Report(passages=9, of_rows=9, exact="bf16", questions_id="a", losses=losses, summary="")
    report = snapshot_body().gate.model_copy(update={"fp8": fp8})
    result = GateResult(rows=1, report=report, nprobe=1, margin=None, rescore=0, deeper=None, recall_target=1, curve=[])
    recipe = Collection(tmp_path, tmp_path).recipe
    if is_refused:
        with pytest.raises(GateError, match=rf"{lost:,} lost, {won:,} won, p 0\.0\d+\).*the recipe allows 0\.2 "):
            check_gate(recipe, result)
    else:
        check_gate(recipe, result)


def test_only_the_best_window_of_a_passage_counts() -> None:
    sample = Sample(["a", "a", "b", "c"], [""] * 4, [""] * 4, np.zeros((4, 2), np.float16))
    questions = QuestionSet((Question("?", ("c",)), Question("?", ("d",))), "ids")
    rows_QK = np.array([[0, 1, 2, 3], [3, 2, 1, -1]])
    np.testing.assert_allclose(figures(questions, sample, rows_QK), [[1.0, 0.5], [0.0, 0.0]])
