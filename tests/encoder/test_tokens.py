"""Token batches against lists, and tokenising against transformers' own call."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from dpr.encoder import words
from dpr.encoder.fast_tokenizer import read_fast
from dpr.encoder.spec import resolve
from dpr.encoder.tokens import TEXTS_PER_CALL, TokenBatch, TowerTokenizer
from dpr.encoder.tower import TowerSpec
from dpr.errors import EncoderError
from dpr.formats.cut_texts import CutTexts
from dpr.recipe import EncoderConfig
from tests.encoder.byte_tokenizer import save_byte_model
from tests.encoder.models import TEXTS, TITLES, save_sentence_transformer
from tests.manifests import ROOT

ROWS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=9), max_size=12)


def batch(rows: list[list[int]]) -> TokenBatch:
    ids_T = np.array([number for row in rows for number in row], np.int32)
    return TokenBatch(ids_T, (ids_T % 2).astype(np.uint8), np.cumsum([0, *map(len, rows)], dtype=np.int64))


def rows_of(tokens: TokenBatch) -> list[list[int]]:
    assert tokens.ids_T.dtype == np.int32
    assert tokens.types_T.dtype == np.uint8
    assert tokens.offsets.dtype == np.int64
    assert np.array_equal(tokens.types_T, tokens.ids_T % 2)
    return [tokens.ids_T[a:b].tolist() for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]


@given(rows=ROWS, data=st.data())
def test_selecting_slicing_and_sending_are_those_of_a_list(rows: list[list[int]], data: st.DataObject) -> None:
    tokens = batch(rows)
    assert len(tokens) == len(rows)
    assert tokens.lengths().tolist() == [len(row) for row in rows]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20)) if rows else []
    assert rows_of(tokens.select(np.array(chosen, np.int64))) == [rows[row] for row in chosen]
    start, stop = data.draw(st.integers(-14, 14)), data.draw(st.integers(-14, 14))
    assert rows_of(tokens[start:stop]) == rows[start:stop]


@pytest.mark.parametrize("title_join", ["pair", "space"])
@pytest.mark.parametrize("prefix", ["", "the river: "])
@pytest.mark.parametrize("max_tokens", [4, 30, 300])
def test_tokens_are_those_of_transformers(shared_bert: Path, title_join: Any, prefix: str, max_tokens: int) -> None:
    config = EncoderConfig(
        model=str(shared_bert), pooling="cls", title_join=title_join, passage_prefix=prefix, max_tokens=max_tokens
    )
    theirs, limits = AutoTokenizer.from_pretrained(shared_bert), {"truncation": True, "max_length": max_tokens}
    if title_join == "pair":
        inputs: tuple[list[str], ...] = ([prefix + title for title in TITLES], TEXTS)
    else:
        inputs = ([prefix + (f"{a} {b}" if a else b) for a, b in zip(TITLES, TEXTS, strict=True)],)
    expected = theirs(*inputs, **limits)
    found = TowerTokenizer(resolve(config).passage).passages(TITLES, TEXTS)
    bounds = list(zip(found.offsets[:-1], found.offsets[1:], strict=True))
    assert [found.ids_T[a:b].tolist() for a, b in bounds] == expected["input_ids"]
    assert [found.types_T[a:b].tolist() for a, b in bounds] == expected["token_type_ids"]
    assert found.lengths().max() <= max_tokens
    whole = theirs(*inputs)["input_ids"]
    assert found.lost_N.tolist() == [len(a) - len(b) for a, b in zip(whole, expected["input_ids"], strict=True)]


ALONE = """
import json, sys
from dpr.encoder.spec import resolve
from dpr.encoder.tokens import TowerTokenizer
from dpr.recipe import EncoderConfig
tokenizer = TowerTokenizer(resolve(EncoderConfig(model=sys.argv[1], pooling="cls")).passage)
print(json.dumps([tokenizer.questions(sys.argv[2:]).ids_T.tolist(), "transformers" in sys.modules]))
"""


def alone(model: Path, folder: Path, *texts: str) -> subprocess.CompletedProcess[str]:
    """Tokenise texts in a process that has not imported transformers, in a working folder, with an empty cache."""
    command = [sys.executable, "-P", "-c", ALONE, str(model), *texts]
    environment = os.environ | {"DPR_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_process_without_transformers_stays_without_it(shared_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizers.py").write_text("raise SystemExit('a file of the user')")  # no module of that name
    ended = alone(shared_bert, tmp_path, "the long river")
    assert json.loads(ended.stdout) == [
        AutoTokenizer.from_pretrained(shared_bert)("the long river")["input_ids"],
        False,
    ]


@pytest.mark.parametrize("wrong", [{"truncation_side": "up"}, {"unk_token": 5}, {"added_tokens_decoder": "x"}])
def test_a_tokenizer_that_transformers_refuses_is_named_in_either_process(
    shared_bert: Path, tmp_path: Path, wrong: dict[str, object]
) -> None:
    broken = shutil.copytree(shared_bert, tmp_path / "broken")
    settings = broken / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | wrong))
    with pytest.raises(EncoderError) as here:
        TowerTokenizer(resolve(EncoderConfig(model=str(broken), pooling="cls")).passage)
    assert "cannot be loaded (" in str(here.value)
    assert alone(broken, tmp_path).stderr.splitlines()[-1] == f"dpr.errors.EncoderError: {here.value}"


def test_a_process_that_reads_a_tokenizer_and_dies_is_told(
    shared_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho a warning >&2\nkill -9 $$\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    monkeypatch.delitem(sys.modules, "transformers")
    with pytest.raises(EncoderError, match=r"model x cannot be loaded \(the process .* with -9: a warning\)"):
        read_fast(shared_bert, "x")


@pytest.mark.parametrize("title_join", ["pair", "space"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_lost_tokens_are_counted_where_the_library_cuts(tmp_path: Path, title_join: Any, side: Any) -> None:
    folder = save_byte_model(tmp_path, truncation_side=side)
    theirs = AutoTokenizer.from_pretrained(folder)
    config = EncoderConfig(model=str(folder), pooling="cls", title_join=title_join, max_tokens=20)
    tower = resolve(config).passage
    tokenizer = TowerTokenizer(tower)
    assert tokenizer._words is None
    found = tokenizer.passages(TITLES, TEXTS)
    joined = [f"{a} {b}" if a else b for a, b in zip(TITLES, TEXTS, strict=True)]
    whole = theirs(*((TITLES, TEXTS) if title_join == "pair" else (joined,)))["input_ids"]
    assert found.lost_N.tolist() == [max(0, len(row) - 20) for row in whole]
    assert found.cut() == CutTexts(
        texts=sum(len(row) > 20 for row in whole),
        lost_tokens=int(found.lost_N.sum()),
        tokens=sum(map(len, whole)),
    )


NASTY = (
    *("the", "river", "Ocean", " ", " ", " ", "\t", "\n", "\r\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2003", "\u200b"),
    *("\0", "\ufffd", "\u0301", "é", "e\u0301", "ﬁ", "Σ", "İ", "ß", "中", "国", "日本", "😀", "مرحبا", "\u037e", "—"),
    *(
        "[SEP]",
        "[CLS]",
        "[sep]",
        "[",
        "]",
        "[[MASK]]",
        "##a",
        "#",
        "-",
        "'",
        ".",
        ",",
        "!",
        "?",
        "a" * 101,
        "x" * 30,
        "7",
    ),
)


@pytest.fixture(scope="module")
def towers(shared_bert: Path) -> list[TowerSpec]:
    """Find towers of the same model with both ways to join titles and several token limits."""
    config = EncoderConfig(model=str(shared_bert), pooling="cls")
    changes = [{"title_join": join, "max_tokens": limit} for join in ("pair", "space") for limit in (5, 12, 300)]
    return [resolve(config.model_copy(update=change)).passage for change in changes]


@cache
def their_tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    # halves of surrogate pairs are not text: scans quarantine such rows, and the service refuses such questions
    texts=st.lists(
        st.lists(st.sampled_from(NASTY) | st.characters(codec="utf-8"), max_size=24).map("".join),
        min_size=2,
        max_size=9,
    )
)
def test_remembered_words_give_the_tokens_of_whole_texts(towers: list[TowerSpec], texts: list[str]) -> None:
    theirs, titles = their_tokenizer(towers[0].folder), texts[::-1]
    for tower in towers:
        tokenizer = TowerTokenizer(tower)
        assert tokenizer._words is not None
        joined = [f"{a} {b}" if a else b for a, b in zip(titles, texts, strict=True)]
        inputs = (titles, texts) if tower.title_join == "pair" else (joined,)
        expected = theirs(*inputs, truncation=True, max_length=tower.max_tokens)
        found = tokenizer.passages(titles, texts)
        assert [found[row : row + 1].ids_T.tolist() for row in range(len(texts))] == expected["input_ids"]
        assert found.types_T.tolist() == [kind for row in expected["token_type_ids"] for kind in row]


def test_memory_of_words_is_bounded(mean_tower: TowerSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MAX_CHARACTERS", 200)
    tokenizer = TowerTokenizer(mean_tower)
    texts = [f"the river{number} ocean{number // 3}" for number in range(90)]
    alone = [tokenizer.questions([text]).ids_T.tolist() for text in texts]
    together = tokenizer.questions(texts)
    assert [together[row : row + 1].ids_T.tolist() for row in range(len(texts))] == alone


def test_a_tokenizer_file_that_cuts_and_pads_makes_no_difference(bert: Path) -> None:
    spec = resolve(EncoderConfig(model=str(bert), pooling="cls"))
    before = TowerTokenizer(spec.passage).questions(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.backend_tokenizer.enable_truncation(9)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    tokenizer.backend_tokenizer.save(str(bert / "tokenizer.json"))
    after = TowerTokenizer(spec.passage).questions(TEXTS)
    assert np.array_equal(after.ids_T, before.ids_T)
    assert before.lengths().max() == 300


@pytest.mark.parametrize("threads", [1, 3])
def test_many_texts_stay_in_order_and_no_texts_give_no_tokens(mean_tower: TowerSpec, threads: int) -> None:
    tokenizer = TowerTokenizer(mean_tower, threads)
    texts = [f"the {number}" for number in range(4 * TEXTS_PER_CALL + 5)]
    many = tokenizer.questions(texts)
    assert len(many) == len(texts)
    for row in (0, TEXTS_PER_CALL - 1, TEXTS_PER_CALL, len(texts) - 1):
        assert np.array_equal(many[row : row + 1].ids_T, tokenizer.questions([texts[row]]).ids_T)
    assert len(tokenizer.questions([])) == 0
    assert tokenizer.questions([]).ids_T.dtype == np.int32


def test_there_must_be_as_many_titles_as_texts(mean_tower: TowerSpec) -> None:
    with pytest.raises(ValueError, match="shorter"):
        TowerTokenizer(mean_tower).passages(["a", "b"], ["a"])


def test_texts_are_lowercased_if_the_folder_states_it(tmp_path: Path) -> None:
    folder = save_sentence_transformer(tmp_path, do_lower_case=True)
    tower = resolve(EncoderConfig(model=str(folder))).question
    cased = AutoTokenizer.from_pretrained(folder, do_lower_case=False)
    cased.save_pretrained(folder)
    found, plain = TowerTokenizer(tower).questions(["THE RIVER"]), TowerTokenizer(tower).questions(["the river"])
    assert cased("THE RIVER")["input_ids"] != plain.ids_T.tolist()
    assert np.array_equal(found.ids_T, plain.ids_T)


@pytest.mark.slow
def test_a_process_that_tokenised_may_fork_without_a_warning(shared_bert: Path) -> None:
    script = (
        "import os, sys\n"
        "from dpr.encoder.spec import resolve\n"
        "from dpr.encoder.tokens import TowerTokenizer\n"
        "from dpr.recipe import EncoderConfig\n"
        "tower = resolve(EncoderConfig(model=sys.argv[1], pooling='cls')).question\n"
        "tokenizer = TowerTokenizer(tower)\n"
        "tokenizer.questions(['the river'] * 2000)\n"
        "if os.fork() == 0:\n"
        "    os._exit(len(tokenizer.questions(['the river'] * 7)))\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(shared_bert)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert "fork" not in done.stderr
