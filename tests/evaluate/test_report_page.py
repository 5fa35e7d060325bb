"""The page of a report: what is put in is read again by a parser, and nothing of it becomes markup."""

import base64

import pytest

from dpr.evaluate.pictures import labels_apart
from dpr.evaluate.report_page import Section, render
from tests.evaluate.html_page import HtmlPage

HOSTILE = "<script>alert(\"1\")</script> & 'more'"


def section(**fields: object) -> Section:
    values: dict[str, object] = {
        "name": "recall",
        "title": "Recall",
        "description": "What it shows.",
        "pictures": {"light": b"light", "dark": b"dark"},
        "columns": ("a", "b"),
        "rows": [(1, "x"), (2, "y")],
    }
    return Section(**(values | fields))  # type: ignore[arg-type]


def test_facts_pictures_and_numbers_are_on_the_page() -> None:
    page = HtmlPage(render("Index", {"passages": 1234567, "recall": 0.98765, "kept": True}, [section(chosen=1)]))
    assert page.open == []
    assert page.tables == [
        [["passages", "1,234,567"], ["recall", "0.9877"], ["kept", "True"]],
        [["a", "b"], ["1", "x"], ["2", "y"]],
    ]
    assert page.chosen == [["2", "y"]]
    pictures = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in page.sources]
    assert sorted(pictures) == [b"dark", b"light"]


def test_nothing_that_is_shown_becomes_markup() -> None:
    hostile = section(name=HOSTILE, title=HOSTILE, description=HOSTILE, columns=(HOSTILE,), rows=[(HOSTILE,)])
    html = render(HOSTILE, {HOSTILE: HOSTILE}, [hostile])
    page = HtmlPage(html)
    assert page.open == []
    assert "<script" not in html
    assert page.text.count(HOSTILE) == 8  # title and heading, fact and value, heading and description, two cells
    assert page.tables == [[[HOSTILE, HOSTILE]], [[HOSTILE], [HOSTILE]]]


def test_a_section_may_be_a_table_alone_or_a_sentence_alone() -> None:
    html = render("Index", {}, [section(pictures={}), section(pictures={}, columns=(), rows=())])
    page = HtmlPage(html)
    assert page.open == []
    assert page.tables == [[], [["a", "b"], ["1", "x"], ["2", "y"]]]
    assert page.sources == []
    assert page.text.count("What it shows.") == 2
    assert "<details>" not in html  # nothing is hidden where there is no picture


def test_labels_of_lines_that_end_together_do_not_cover_each_other() -> None:
    assert labels_apart([1.0, 0.99, 0.5], 0.1) == pytest.approx([1.0, 0.9, 0.5])
    assert labels_apart([0.7, 0.7, 0.65], 0.1) == pytest.approx([0.7, 0.6, 0.5])
