"""Bars as inline SVG, in the colours of the page around it, light or dark.

Importing matplotlib takes a second, too long for a page that every run makes, so these are drawn without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
:root { --first: #3b6fb6; --second: #c2410c; --third: #5b8c5a; --grid: #e4e7eb; }
@media (prefers-color-scheme: dark) {
  :root { --first: #79a8e8; --second: #f59e5b; --third: #8fc98d; --grid: #2b323c; } }
svg.bars { display: block; height: auto; margin: 0.8rem 0; max-width: 46rem; min-width: 34rem; width: 100%; }
svg.bars text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg.bars .first { fill: var(--first); }
svg.bars .second { fill: var(--second); }
svg.bars .third { fill: var(--third); }
svg.bars line { stroke: var(--grid); }
"""
SERIES = ("first", "second", "third")
WIDTH, NAME_WIDTH, VALUE_WIDTH = 736, 150, 130
ROW_HEIGHT, BAR_HEIGHT, LEGEND_HEIGHT = 24, 14, 24
LETTER_WIDTH = 7
"""Approximate width of a character."""


@dataclass(frozen=True)
class Bar:
    """One row: its name, the lengths of its pieces, and the label at its end."""

    name: str
    pieces: Sequence[float]
    label: str


def draw_bars(title: str, bars: Sequence[Bar], series: Sequence[str] = ()) -> str:
    """Draw horizontal bars from zero, the longest over the whole width; `series` names their pieces in a legend."""
    longest = max((sum(bar.pieces) for bar in bars), default=0.0) or 1.0
    scale = (WIDTH - NAME_WIDTH - VALUE_WIDTH) / longest
    top = LEGEND_HEIGHT if series else 0
    height = top + ROW_HEIGHT * len(bars)
    rows = "".join(_row(bar, top + ROW_HEIGHT * number, scale) for number, bar in enumerate(bars))
    axis = f'<line x1="{NAME_WIDTH}" y1="{top}" x2="{NAME_WIDTH}" y2="{height}"/>'
    return (
        f'<svg class="bars" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{_legend(series)}{axis}{rows}</svg>"
    )


def _row(bar: Bar, top: float, scale: float) -> str:
    middle = top + ROW_HEIGHT / 2
    drawn = f'<text x="{NAME_WIDTH - 8}" y="{middle + 4:g}" text-anchor="end">{escape(bar.name)}</text>'
    left = float(NAME_WIDTH)
    for series, piece in zip(SERIES, bar.pieces, strict=False):
        width = piece * scale
        drawn += (
            f'<rect class="{series}" x="{left:.1f}" y="{middle - BAR_HEIGHT / 2:g}" width="{width:.1f}" '
            f'height="{BAR_HEIGHT}" rx="1"/>'
        )
        left += width
    return f'{drawn}<text x="{left + 6:.1f}" y="{middle + 4:g}">{escape(bar.label)}</text>'


def _legend(series: Sequence[str]) -> str:
    drawn, left = "", NAME_WIDTH
    for colour, name in zip(SERIES, series, strict=False):
        drawn += f'<rect class="{colour}" x="{left}" y="4" width="10" height="10" rx="1"/>'
        drawn += f'<text x="{left + 15}" y="13">{escape(name)}</text>'
        left += 40 + LETTER_WIDTH * len(name)
    return drawn
