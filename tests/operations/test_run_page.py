"""The page of a run's report: its figures read by a parser, its looks in a real Chromium."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpr.evaluate.bars import WIDTH
from dpr.operations.run_page import render_run
from tests.evaluate.html_page import HtmlPage
from tests.operations.sample_report import failed_report, published_report
from tests.ray_jobs.browsing import PHONE, chromium


def table_with(page: HtmlPage, *head: str) -> list[list[str]]:
    (found,) = (table for table in page.tables if table and table[0][: len(head)] == list(head))
    return found[1:]


def test_all_that_a_run_took_is_on_its_page() -> None:
    html = render_run(published_report())
    page = HtmlPage(html)
    assert page.open == []
    assert "://" not in html
    assert page.sources == []  # nothing is loaded, not even from the page itself
    stages = {row[0]: row[1:] for row in table_with(page, "stage", "units")}
    assert stages["embed"] == ["40", "3", "0", "1,900,000", "260.0", "7,308", "1,000.0", "100.0", "2", "1"]
    assert table_with(page, "reason", "embedded")[:2] == [
        ["new", "1,990,000", "50", "the previous snapshot had no passage with its id"],
        [
            "edited",
            "10,000",
            "0",
            "its title, text, windows or extra columns differ from those in the previous snapshot",
        ],
    ]
    assert table_with(page, "reason", "rows") == [["duplicate id", "250"], ["no text", "150"]]
    costs = {row[0]: row[1:] for row in table_with(page, "", "estimate", "outcome")}
    assert costs["all"] == ["400.0 s", "340.0 s"]
    assert costs["train, build, merge, gate"] == ["not known", "50.0 s"]
    # both attempts: 0.6 GPU-hours at 3 dollars; 3 * (1,000 reads at 0.0004 and 122 writes at 0.005 a thousand)
    assert costs["dollars"] == ["", "1.8030"]
    assert costs["dollars for a million embedded passages"] == ["", "0.90"]
    assert table_with(page, "stage", "GET")[-1] == ["all", "3,000", "360", "6", "0", "1,500.0", "300.0"]
    assert table_with(page, "attempt", "ended")[0][:4] == ["a", "died", "9.0 s", "scan"]
    assert "Published snapshot 7" in page.text


def test_bars_are_as_long_as_what_they_show() -> None:
    html = render_run(published_report())
    drawing = html[html.index('aria-label="seconds of each stage"') :]
    drawing = drawing[: drawing.index("</svg>")]
    widths = [float(piece.partition('"')[0]) for piece in drawing.split(' width="')[1:]]
    assert widths == pytest.approx([widths[1] * seconds / 260 for seconds in (30, 260, 50, 11)], abs=0.1)


def test_a_failed_attempt_says_how_far_it_came() -> None:
    page = HtmlPage(render_run(failed_report()))
    assert page.open == []
    assert "died <again> (it got to the stage embed, with 23 of 40 units done)" in page.text
    assert "dpr plan was not run on this machine" in page.text
    assert {table[0][0] for table in page.tables} == {"run", "stage", ""}  # facts that are not known are left out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1100, "height": 800}, PHONE], ids=["desk", "phone"])
def test_it_can_be_read_on_any_screen(browser: Any, tmp_path: Path, scheme: str, size: dict[str, int]) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_run(published_report()))
    page = browser.new_page(color_scheme=scheme, viewport=size)
    loaded: list[str] = []
    page.on("request", lambda request: loaded.append(request.url))
    page.goto(path.as_uri())
    assert loaded == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    style = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]"
    ink, paper, words, bar = (
        _brightness(page.evaluate(style, pair))
        for pair in (
            ["body", "color"],
            ["body", "backgroundColor"],
            ["svg text", "fill"],
            ["svg .first", "fill"],
        )
    )
    assert (ink < paper) == (scheme == "light")
    assert words == ink
    assert abs(bar - paper) > 100
    boxes = page.evaluate(
        "[...document.querySelectorAll('svg text')].map(text => [text.getBBox().x, text.getBBox().width])"
    )
    assert [box for box in boxes if box[0] < 0 or sum(box) > WIDTH] == []  # no words are cut
    page.close()


def _brightness(colour: str) -> float:
    """Return the mean of red, green and blue of what a browser calls a colour."""
    parts = colour.removeprefix("rgb(").removesuffix(")").split(", ")
    return sum(map(int, parts)) / 3
