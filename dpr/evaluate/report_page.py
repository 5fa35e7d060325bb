"""One self-contained HTML page of facts, pictures and the numbers behind them, without scripts."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from dpr.errors import StoreError
from dpr.evaluate import bars
from dpr.store.reasons import reason_of

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --faint: #d5d9de; }
@media (prefers-color-scheme: dark) { :root { --paper: #161b22; --ink: #e6edf3; --faint: #363d47; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 0.9rem; margin: 0.8rem 0; }
td, th { border-bottom: 1px solid var(--faint); padding: 0.25rem 0.9rem 0.25rem 0; text-align: left;
  vertical-align: top; }
.number { font-variant-numeric: tabular-nums; text-align: right; }
td.number { white-space: nowrap; }
tr.chosen { font-weight: 600; }
img { height: auto; max-width: 100%; }
summary { cursor: pointer; }
section > table, #facts { display: block; overflow-x: auto; }
div.drawing { overflow-x: auto; }
p.good, p.bad { border-left: 4px solid var(--third); padding: 0.2rem 0 0.2rem 0.8rem; overflow-wrap: anywhere; }
p.bad { border-color: var(--second); }
dl { display: grid; gap: 0.6rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); margin: 1rem 0; }
dl div { border: 1px solid var(--faint); border-radius: 6px; padding: 0.5rem 0.8rem; }
dt { font-size: 0.8rem; opacity: 0.75; } dd { font-size: 1.2rem; font-variant-numeric: tabular-nums; margin: 0; }
"""
_NUMBER = re.compile(r"-?[\d,]+(\.\d+)?( [a-z%]+)?|not known|no price")


@dataclass(frozen=True)
class Section:
    """A picture, its description, and its numbers; or a table without a picture."""

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
    drawing: str = ""
    """SVG that stands above the table."""


@dataclass(frozen=True)
class Lead:
    """The head of a page: a sentence, and figures."""

    sentence: str
    is_good: bool
    figures: Mapping[str, str]
    """Name → value."""


def render(title: str, facts: Mapping[str, object], sections: Sequence[Section], lead: Lead | None = None) -> str:
    """Return the page as HTML."""
    listed = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>" for name, value in facts.items()
    )
    body = "".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}{bars.STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{_lead(lead) if lead else ''}"
        f'<table id="facts">{listed}</table>\n{body}</body></html>\n'
    )


def _lead(lead: Lead) -> str:
    figures = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in lead.figures.items()
    )
    return f'<p class="{"good" if lead.is_good else "bad"}">{escape(lead.sentence)}</p><dl>{figures}</dl>\n'


def write_page(folder: Path, name: str, title: str, facts: Mapping[str, object], sections: Sequence[Section]) -> Path:
    """Write the page and its pictures as PNG files into a folder, and return the page's path.

    Raises StoreError if that fails.
    """
    files = {name: render(title, facts, sections).encode()}
    for section in sections:
        for theme, png in section.pictures.items():
            files[f"{section.name}{'' if theme == 'light' else '-dark'}.png"] = png
    write_files(folder, files)
    return folder / name


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files by name into a folder, which is made if it is not there. Raises StoreError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise StoreError(f"report {folder} cannot be written: {reason_of(error)}; name another folder") from error


def _section(section: Section) -> str:
    start = f'<section id="{escape(section.name)}"><h2>{escape(section.title)}</h2><p>{escape(section.description)}</p>'
    table = _table(section) if section.columns else ""
    if not section.pictures:
        drawing = f'<div class="drawing">{section.drawing}</div>' if section.drawing else ""
        return f"{start}{drawing}{table}</section>\n"
    return (
        f'{start}<picture><source media="(prefers-color-scheme: dark)" srcset="{_data(section.pictures["dark"])}">'
        f'<img src="{_data(section.pictures["light"])}" alt="{escape(section.title)}"></picture>'
        f"<details><summary>numbers</summary>{table}</details></section>\n"
    )


def _table(section: Section) -> str:
    texts = [[_text(value) for value in row] for row in section.rows]
    kinds = [" class=number" * _are_numbers(column) for column in zip(*texts, strict=True)] or [""] * len(
        section.columns
    )
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, section.columns, strict=True))
    marked = ' class="chosen"'
    rows = "".join(
        f"<tr{marked if number == section.chosen else ''}>"
        + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True))
        + "</tr>"
        for number, row in enumerate(texts)
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _are_numbers(column: Sequence[str]) -> bool:
    """Return whether all non-empty rows of a column hold numbers, or words in their place."""
    there = [text for text in column if text]
    return bool(there) and all(_NUMBER.fullmatch(text) for text in there)


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
