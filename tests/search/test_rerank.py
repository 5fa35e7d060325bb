"""Re-ranking in every mode, against sentence-transformers' own ranking of the same hits."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder

from dpr.encoder.cross_encoder import CrossEncoder as OwnCrossEncoder
from dpr.encoder.cross_encoder_spec import resolve_cross_encoder
from dpr.errors import RecipeError
from dpr.formats.lexical_entry import SearchMode
from dpr.recipe_service import RerankConfig
from dpr.search.hits import Hit, Side
from dpr.search.rerank import Reranker
from dpr.search.retrieve import Retriever
from tests.collection import FirstNights
from tests.tiny import make_cross_encoder, random_texts

QUESTIONS = ["w1 w2 w3", "w7 w8", "w150 w20"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("cross") / "model")


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_the_best_of_any_mode_are_ordered_as_sentence_transformers_does(
    first_nights: FirstNights, tmp_path: Path, model: Path, mode: SearchMode
) -> None:
    collection = first_nights.copy(tmp_path / "collection", random_texts(90, max_words=40))
    reranker = Reranker.open(RerankConfig(model=str(model), top=12))
    with Retriever.open(collection.store) as retriever:
        found = retriever.search(QUESTIONS, 30, mode=mode).hits
    theirs = CrossEncoder(str(model), device="cpu")
    for question, before, after in zip(QUESTIONS, found, reranker.rerank(QUESTIONS, found, 5), strict=True):
        read = before[:12]
        ranked = theirs.rank(question, [hit.text for hit in read])
        scores = [float(each["score"]) for each in ranked]
        assert min(-np.diff(scores)) > 1e-6  # else rounding might order them
        assert [hit.id for hit in after] == [read[int(each["corpus_id"])].id for each in ranked[:5]]
        assert [hit.score for hit in after] == pytest.approx(scores[:5], abs=1e-4)
        assert [hit.rank for hit in after] == list(range(1, 1 + len(after)))
        known = {hit.id: hit for hit in read}
        for hit in after:
            own = known[hit.id]
            assert hit.before == Side(own.rank, own.score)
            assert (hit.text, hit.dense, hit.bm25) == (own.text, own.dense, own.bm25)
        assert [hit.id for hit in after] != [hit.id for hit in read[:5]]


def hit(rank: int, title: str, text: str) -> Hit:
    return Hit(rank, 1.0 / rank, f"p{rank}", title, text)


def test_it_reads_title_and_text(model: Path) -> None:
    hits = [hit(1, "w5 w6", "w1"), hit(2, "", "w1"), hit(3, "w9", "w2 w3")]
    (found,) = Reranker.open(RerankConfig(model=str(model))).rerank(["w4"], [hits], 3)
    scores = CrossEncoder(str(model), device="cpu").predict([("w4", "w5 w6 w1"), ("w4", "w1"), ("w4", "w9 w2 w3")])
    assert {each.id: each.score for each in found} == pytest.approx(
        dict(zip(("p1", "p2", "p3"), map(float, scores), strict=True)), abs=1e-4
    )


def test_equal_scores_keep_the_order(tmp_path: Path) -> None:
    folder = make_cross_encoder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] *= 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    hits = [hit(rank, "", f"w{rank} w{2 * rank}") for rank in range(1, 31)]
    reranker = Reranker.open(RerankConfig(model=str(folder)))
    (found,) = reranker.rerank(["w4"], [hits], 30)
    assert len({each.score for each in found}) == 1
    assert [each.id for each in found] == [each.id for each in hits]


def test_questions_without_hits_have_none(model: Path) -> None:
    reranker = Reranker.open(RerankConfig(model=str(model)))
    found = reranker.rerank(["w1", "w2", "w3"], [[], [hit(1, "", "w2")], []], 3)
    assert [[each.id for each in hits] for hits in found] == [[], ["p1"], []]
    assert reranker.rerank(["w1"], [[]], 3) == [[]]


def test_no_more_hits_than_are_read_can_be_asked_for(model: Path) -> None:
    reranker = Reranker(OwnCrossEncoder(resolve_cross_encoder(RerankConfig(model=str(model)))), 7)
    with pytest.raises(RecipeError, match=r"^8 hits are requested, but only the best 7 .*; request at most 7"):
        reranker.rerank(["w1"], [[hit(1, "", "w2")]], 8)
