"""Title and text of HTML and PDF documents, by libraries that come with the extra `documents`."""

import io
import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import PurePosixPath
from typing import Final

from dpr.corpus.rows import UnusableRecordError

_LIBRARIES: Final = {".html": "bs4", ".htm": "bs4", ".pdf": "pypdf"}
RICH_SUFFIXES: Final = tuple(_LIBRARIES)
_NOT_SHOWN: Final = ("script", "style", "noscript", "template")


def missing_library(path: str) -> str:
    """Return how to install the library that a document needs; empty if it is installed."""
    library = _LIBRARIES.get(PurePosixPath(path).suffix.lower())
    return "pip install 'dpr[documents]'" if library and find_spec(library) is None else ""


def rich_text(name: str, data: bytes) -> tuple[str, str]:
    """Return the title that a document gives itself, empty if it has none, and its text.

    Raises UnusableRecordError if it cannot be read. Neither library documents which errors it raises for damage,
    passwords, fonts, and bugs of its own.
    """
    is_pdf = name.lower().endswith(".pdf")
    try:
        title, text = _pdf(data) if is_pdf else _html(data)
    except Exception as error:
        raise UnusableRecordError(
            f"{'PDF' if is_pdf else 'HTML'} that cannot be read: {type(error).__name__}"
        ) from error
    return " ".join(title.split()), text


def _html(data: bytes) -> tuple[str, str]:
    page = import_module("bs4").BeautifulSoup(data, "html.parser")
    for element in page(_NOT_SHOWN):
        element.decompose()
    heading = page.title or page.h1
    title = heading.get_text(" ") if heading else ""
    if page.title:
        page.title.extract()
    return title, page.get_text(" ")


def _pdf(data: bytes) -> tuple[str, str]:
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it prints warnings about a file, besides raising errors
    document = import_module("pypdf").PdfReader(io.BytesIO(data))
    title = document.metadata.title if document.metadata else None
    return str(title or ""), "\n".join(page.extract_text() for page in document.pages)
