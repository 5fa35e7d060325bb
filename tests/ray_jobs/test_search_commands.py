"""`dpr search` as a user types it: with `--rerank`, against sentence-transformers, and with `--filter`."""

import json
from pathlib import Path

import pytest
from sentence_transformers import CrossEncoder

from tests.collection import Collection, FirstNights
from tests.ray_jobs.conftest import Dpr
from tests.ray_jobs.serve_api import PASSAGES, extra_of, make_collection
from tests.tiny import make_cross_encoder, random_texts

pytestmark = pytest.mark.without_ray


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("cross") / "model")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights) -> Collection:
    return first_nights.copy(tmp_path_factory.mktemp("searched"), random_texts(30))


def test_search_orders_the_best_hits_again(collection: Collection, model: Path, dpr: Dpr) -> None:
    plain = json.loads(dpr("search", collection.store.url, "w1 w2", "-k", 9, "--json")[1])["hits"]
    command = ("search", collection.store.url, "w1 w2", "-k", 4, "--rerank", model, "--rerank-top", 9)
    code, out, _ = dpr(*command, "--json")
    document = json.loads(out)
    ranked = CrossEncoder(str(model), device="cpu").rank("w1 w2", [hit["text"] for hit in plain])
    assert code == 0
    assert (document["rerank"]["model"], document["rerank"]["top"]) == (str(model), 9)
    assert [hit["id"] for hit in document["hits"]] == [plain[int(each["corpus_id"])]["id"] for each in ranked[:4]]
    for hit, each in zip(document["hits"], ranked, strict=False):
        before = plain[int(each["corpus_id"])]
        assert hit["score"] == pytest.approx(each["score"], abs=1e-4)
        assert hit["before"] == {"rank": before["rank"], "score": pytest.approx(before["score"], abs=1e-4)}
    code, out, _ = dpr(*command)
    assert code == 0
    assert f"before {document['hits'][0]['before']['score']:.3f} (rank {document['hits'][0]['before']['rank']})" in out


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("-k", 51), 2, "51 hits are requested, but only the best 50 are re-ranked; request at most 50"),
        (("--rerank-label", 1), 4, "has 1 label; set it to 0 at most"),
    ],
)
def test_what_cannot_be_re_ranked_is_one_sentence(
    collection: Collection, model: Path, dpr: Dpr, arguments: tuple[object, ...], code: int, sentence: str
) -> None:
    ended, out, err = dpr("search", collection.store.url, "w1", "--rerank", model, *arguments)
    assert (ended, out, err.count("\n")) == (code, "", 1)
    assert sentence in err


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # Ray Serve's own
def test_a_recipe_without_a_re_ranker_is_one_sentence(collection: Collection, dpr: Dpr) -> None:
    code, out, err = dpr("serve", collection.store.url, "--recipe", collection.write_recipe())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has no section rerank" in err


def test_a_re_ranker_of_another_kind_is_one_sentence(collection: Collection, encoder: Path, dpr: Dpr) -> None:
    code, out, err = dpr("search", collection.store.url, "w1", "--rerank", encoder)
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert f"model {encoder} is a BertModel, which has no head that scores" in err


@pytest.mark.parametrize("question", ["", " \t\n"])
def test_an_empty_question_is_one_sentence(collection: Collection, dpr: Dpr, question: str) -> None:
    code, out, err = dpr("search", collection.store.url, question)
    assert (code, out) == (2, "")
    assert err == "error: the question is empty; ask one with words\n"


def test_search_ranks_only_what_a_filter_leaves(tmp_path: Path, encoder: Path, dpr: Dpr) -> None:
    store = make_collection(tmp_path, encoder).store
    code, out, _ = dpr(
        "search", store.url, "w1 w2", "-k", 50, "--filter", '{"lang": "de", "year": {"lt": 1990}}', "--json"
    )
    found = [hit["extra"] for hit in json.loads(out)["hits"]]
    expected = [extra_of(number) for number in range(PASSAGES)]
    expected = [extra for extra in expected if extra["lang"] == "de" and extra["year"] < 1990]
    assert (code, len(found)) == (0, len(expected))
    assert all(extra in expected for extra in found)
    for wrong, sentence in (
        ("{", "is not JSON"),
        ('{"lnag": 1}', "its extra columns are lang (string), year (integer)"),
    ):
        code, out, err = dpr("search", store.url, "w1", "--filter", wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert sentence in err
