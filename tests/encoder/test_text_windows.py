"""Windows of long texts: the encoder reads all of them, and together they hold the whole text."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.encoder.spec import resolve
from dpr.encoder.text_windows import TextWindows, spans
from dpr.recipe import EncoderConfig
from tests.encoder.byte_tokenizer import save_byte_model
from tests.encoder.models import WORDS

LIMIT = 24


@pytest.fixture(scope="module", params=["pair", "space", "bytes"])
def windows(request: pytest.FixtureRequest, shared_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> TextWindows:
    """Windows by a BERT with titles joined in both ways, and by a model whose tokens are bytes and pairs of them."""
    folder = save_byte_model(tmp_path_factory.mktemp("bytes")) if request.param == "bytes" else shared_bert
    join = "pair" if request.param == "pair" else "space"
    config = EncoderConfig(model=str(folder), pooling="cls", max_tokens=LIMIT, title_join=join, passage_prefix="a ")
    return TextWindows(resolve(config).passage)


def is_covered(text: str, windows: list[str]) -> bool:
    """Return whether the windows, in their order, hold every character of a text but white space between them."""
    reached = start = 0
    for window in windows:
        found = text.find(window, start)
        if found < 0 or text[reached:found].strip():
            return False
        start, reached = found, max(reached, found + len(window))
    return not text[reached:].strip()


PIECES = st.sampled_from([*WORDS, "x" * 30, "a" * 120, "中国水人日本" * 9, "😀🚀", ",", "\n", "e\u0301", "\u2003", "ﬁ"])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(pieces=st.lists(PIECES, min_size=1, max_size=60), glue=st.sampled_from([" ", "", "  \n"]))
def test_every_window_is_read_whole_and_all_of_them_hold_the_text(
    windows: TextWindows, pieces: list[str], glue: str
) -> None:
    text, title = glue.join(pieces), "ocean"
    tokenizer = windows._tokenizer
    (found,) = windows.split([title], [text])
    if not tokenizer.passages([title], [text]).lost_N[0]:
        assert found == [text]
        return
    assert not tokenizer.passages([title] * len(found), found).lost_N.any()
    assert len(set(found)) == len(found)
    assert set("".join(text.split())) == set("".join("".join(found).split()))  # all of it: the next test


@settings(deadline=None, max_examples=200, derandomize=True)
@given(text=st.text("ab \n", min_size=1, max_size=60), data=st.data(), size=st.integers(1, 12))
def test_spans_leave_no_character_out_and_end(text: str, data: st.DataObject, size: int) -> None:
    starts = data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1).map(sorted))
    found = list(spans(text, np.array(starts), size))
    assert found[0][0] == 0
    assert found[-1][1] == len(text)
    for (begin, end), (next_begin, _) in itertools.pairwise(found):
        assert begin < next_begin <= end
    for begin, end in found:
        assert sum(begin < start < end for start in set(starts)) < size + 1


def test_windows_of_words_fill_the_limit_and_overlap_by_a_quarter(windows: TextWindows) -> None:
    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    found = windows.split(["", ""], [" ".join(words), "the king"])
    assert found[1] == ["the king"]
    tokenizer = windows._tokenizer
    lengths = tokenizer.passages([""] * len(found[0]), found[0]).lengths()
    assert lengths[:-1].min() > LIMIT * 0.75
    parts = [window.split() for window in found[0]]
    assert is_covered(" ".join(words), found[0])
    for before, after in itertools.pairwise(parts):
        shared = len(set(before) & set(after))
        assert before[-shared:] == after[:shared]
        assert 0 < shared <= len(before) / 2
    assert all(set(part) <= set(words) for part in parts)  # cut between words


def test_a_title_that_leaves_no_room(windows: TextWindows) -> None:
    title, text = "river " * 60, " ".join(np.random.default_rng(0).permutation(np.repeat(WORDS, 8)))
    (found,) = windows.split([title], [text])
    if windows._tower.title_join == "pair":  # the title loses its end, and the text nothing
        assert len(found) > 3
        tokens = windows._tokenizer.uncut.encode_batch(found, add_special_tokens=False)
        assert max(map(len, tokens)) <= (LIMIT - 3) // 2
        assert is_covered(text, found)
    else:
        assert found == [text]
