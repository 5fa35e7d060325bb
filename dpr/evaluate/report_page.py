"""One HTML page of facts, pictures and the numbers behind them; it needs nothing beside itself and no script."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from dpr.errors import StoreError

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #d5d9de; }
@media (prefers-color-scheme: dark) { :root { --paper: #161b22; --ink: #e6edf3; --faint: #363d47; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 0.9rem; margin: 0.8rem 0; }
td, th { border-bottom: 1px solid var(--faint); padding: 0.25rem 0.9rem 0.25rem 0; text-align: left;
  vertical-align: top; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
tr.chosen { font-weight: 600; }
img { height: auto; max-width: 100%; }
summary { cursor: pointer; }
"""


@dataclass(frozen=True)
class Section:
    """A picture, what it says, and its numbers; or a table without a picture."""

    name: str
    """Of the picture's files."""
    title: str
    description: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    """PNG by theme: `light` and `dark`; or none."""
    chosen: int | None = None
    """The row that is marked."""


def render(title: str, facts: Mapping[str, object], sections: Sequence[Section]) -> str:
    """Return the page as HTML."""
    listed = "".join(f"<tr><th>{escape(name)}</th>{_cell(value)}</tr>" for name, value in facts.items())
    body = "".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n'
        f'<body><h1>{escape(title)}</h1>\n<table id="facts">{listed}</table>\n{body}</body></html>\n'
    )


def write_page(folder: Path, name: str, title: str, facts: Mapping[str, object], sections: Sequence[Section]) -> Path:
    """Write the page and its pictures as PNG files into a folder, and return the page's path.

    Raises StoreError if that fails.
    """
    page = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for theme, png in section.pictures.items():
                (folder / f"{section.name}{'' if theme == 'light' else '-dark'}.png").write_bytes(png)
        page.write_text(render(title, facts, sections), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"report {folder} cannot be written: {error.strerror}; name another folder") from error
    return page


def _section(section: Section) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in section.columns)
    marked = ' class="chosen"'
    rows = "".join(
        f"<tr{marked if number == section.chosen else ''}>{''.join(map(_cell, row))}</tr>"
        for number, row in enumerate(section.rows)
    )
    start = f'<section id="{escape(section.name)}"><h2>{escape(section.title)}</h2><p>{escape(section.description)}</p>'
    table = f"<table><tr>{head}</tr>{rows}</table>" if section.columns else ""
    if not section.pictures:
        return f"{start}{table}</section>\n"
    return (
        f'{start}<picture><source media="(prefers-color-scheme: dark)" srcset="{_data(section.pictures["dark"])}">'
        f'<img src="{_data(section.pictures["light"])}" alt="{escape(section.title)}"></picture>'
        f"<details><summary>numbers</summary>{table}</details></section>\n"
    )


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"<td>{escape(str(value))}</td>"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
    return f'<td class="number">{text}</td>'


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
