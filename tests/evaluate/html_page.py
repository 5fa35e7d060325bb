"""Reading a page as a browser would, and pictures as a viewer would."""

import struct
import zlib
from html.parser import HTMLParser


class HtmlPage(HTMLParser):
    """Tables as lists of rows, the pictures, and tags that were never closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.sources: list[str] = []
        self.chosen: list[list[str]] = []
        """Rows that are marked."""
        self.open: list[str] = []
        self.text = ""
        self._is_marked = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
            self._is_marked = dict(attrs).get("class") == "chosen"
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        self.sources += [value for name, value in attrs if name in ("src", "srcset") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "tr" and self._is_marked:
            self.chosen.append(self.tables[-1][-1])

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def png_pixels(png: bytes) -> int:
    """Return width times height of a PNG, after checking the checksum of every chunk and the number of its rows."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, data, width, height = 8, b"", 0, 0
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + content) == struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", content[:8])
        data += content if kind == b"IDAT" else b""
        at += 12 + length
    assert len(zlib.decompress(data)) == height * (4 * width + 1)
    return width * height
