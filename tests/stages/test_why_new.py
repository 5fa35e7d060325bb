"""Why passages were embedded or copied: against what was done to the corpus, and by `dpr why` of single passages."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpr.errors import RecipeError
from dpr.formats.changes import Reason
from dpr.operations.rollback import rollback
from dpr.operations.run_report import Found
from dpr.operations.why import why
from tests.collection import Collection, FirstNights
from tests.tiny import WORDS, make_static_encoder, random_texts, write_jsonl


def night(collection: Collection) -> Found:
    report = collection.night().report
    assert report
    return report.found


def reason_of(collection: Collection, passage_id: str) -> tuple[bool | None, Reason | None, int]:
    (row,) = why(collection.store, passage_id)
    return row.is_copied, row.reason, row.since


def test_each_passage_has_the_reason_of_what_was_done_to_it(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    assert reason_of(collection, "p000") == (False, Reason.NEW, 1)
    corpus = collection.corpus
    corpus |= {"p003": "w1 w2 w3", "new": "w4 w5", "copy": corpus["p004"], "p006": corpus["p007"]}
    del corpus["p005"]
    found = night(collection)
    assert found.why_embedded == {"new": 1, "edited": 1}
    assert found.why_copied == {"new": 1, "edited": 1}
    expected = {
        "p003": (False, Reason.EDITED, 2),
        "new": (False, Reason.NEW, 2),
        "copy": (True, Reason.NEW, 2),
        "p006": (True, Reason.EDITED, 2),
        "p000": (False, Reason.NEW, 1),
    }
    assert {passage_id: reason_of(collection, passage_id) for passage_id in expected} == expected
    (row,) = why(collection.store, "p003")
    assert row.describe().startswith(f"row {row.row} of segment {row.segment}, since snapshot 2 (20")
    assert row.describe().endswith(
        "embedded; edited: its title, text, windows or extra columns differ from those in the previous snapshot"
    )
    with pytest.raises(RecipeError, match=r"snapshot 2 of .* has no passage with the id 'p005'"):
        why(collection.store, "p005")
    assert [found.reason for found in why(collection.store, "p005", 1)] == [Reason.NEW]


@pytest.mark.slow
def test_many_changes_are_told_apart_in_several_slices(tmp_path: Path, static_encoder: Path) -> None:
    """Also a passage that moves from one file to another, and is edited on the way."""
    texts = random_texts(400)
    collection = Collection(tmp_path, static_encoder, texts, encoder={"pooling": None, "normalize": None})
    collection.change(corpus={"path": str(tmp_path / "parts"), "slice_bytes": 4_000})
    (tmp_path / "parts").mkdir()

    def write(texts: dict[str, str]) -> None:
        for part in range(4):
            collection.path = tmp_path / "parts" / f"{part}.jsonl"
            collection.change(corpus={"path": str(collection.path)})
            collection.corpus = dict(list(texts.items())[part * 100 : (part + 1) * 100 if part < 3 else None])
            collection.write_corpus()
        collection.change(corpus={"path": str(tmp_path / "parts")})

    write(texts)
    assert night(collection).why_embedded == {"new": 400}
    ids = list(texts)
    # the first is edited and comes last, in another file; so all after it move up, and only the last file keeps rows
    moved = {id_: texts[id_] for id_ in ids[1:]} | {ids[0]: "w1 w1 w1 w2"}
    moved |= {id_: f"{moved[id_]} w{n}" for n, id_ in enumerate(ids[150:170])} | {"extra": "w9 w9 w9"}
    write(moved)
    assert night(collection).why_embedded == {"new": 1, "edited": 21}


def test_a_passage_that_the_encoder_refused_is_tried_again(tmp_path: Path) -> None:
    """Whether its file has changed since or not."""
    encoder = make_static_encoder(tmp_path / "encoder")
    weights = load_file(encoder / "model.safetensors")
    weights["embedding.weight"][1 + WORDS.index("w199")] = torch.inf
    save_file(weights, encoder / "model.safetensors")
    collection = Collection(tmp_path, encoder, encoder={"pooling": None, "normalize": None})
    (tmp_path / "parts").mkdir()
    collection.change(corpus={"path": str(tmp_path / "parts")})
    good = [(f"p{number}", f"w{number}") for number in range(30)]
    first, second = (write_jsonl(tmp_path / "parts" / name, good[:1]) for name in ("first.jsonl", "second.jsonl"))
    write_jsonl(first, [*good, ("bad", "w199")])
    write_jsonl(second, [("other", "w100")])
    assert night(collection).quarantined == {"the encoder gave a vector that is not finite": 1}
    write_jsonl(second, [("other", "w101")])
    assert night(collection).why_embedded == {"edited": 1, "again": 1}
    write_jsonl(first, [*good, ("bad", "w199"), ("more", "w102")])
    assert night(collection).why_embedded == {"new": 1, "again": 1}


def test_another_encoder_is_a_reason_and_a_rollback_none(
    first_nights: FirstNights, tmp_path: Path, static_encoder: Path
) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    other = Collection(collection.folder, static_encoder, encoder={"pooling": None, "normalize": None})
    assert night(other).why_embedded == {"other encoder": 30}
    other.corpus["p001"] = "w8 w8"
    assert night(other).why_embedded == {"edited": 1}
    rollback(other.store, 2)
    other.corpus |= {"p002": "w7 w7", "newest": "w6"}
    found = night(other)
    assert found.why_embedded == {"edited": 1, "new": 1}
    assert found.restored == 1  # p001 as edited before the rollback


@pytest.mark.slow
def test_rows_of_compacted_segments_were_moved(tmp_path: Path) -> None:
    encoder = make_static_encoder(tmp_path / "encoder")
    collection = Collection(tmp_path, encoder, random_texts(40), encoder={"pooling": None, "normalize": None})
    collection.night()
    for number in range(15):
        del collection.corpus[f"p{number:03d}"]
    found = night(collection)
    assert (found.why_embedded, list(found.why_copied)) == ({}, ["moved"])
    assert reason_of(collection, "p019") == (True, Reason.MOVED, 2)


def test_a_reason_that_was_collected_is_not_invented(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    run = next(iter(collection.file("runs").iterdir()))
    for path in run.glob("changes*"):
        path.unlink()
    (row,) = why(collection.store, "p000")
    assert (row.is_copied, row.reason) == (None, None)
    assert row.describe().endswith(f"its run {run.name} was collected as garbage, so the reason is not known")
