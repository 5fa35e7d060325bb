"""Recognise a file by its first bytes: how to unpack it, and how to describe it in an error message."""

from typing import Final, Literal

Compression = Literal["gzip", "bz2", "xz", "zstd", "lz4"]

COMPRESSIONS: Final[dict[bytes, Compression]] = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x5d\0\0": "xz",  # its older form, .lzma
}
COMPRESSED_SUFFIXES: Final[dict[str, Compression]] = {
    ".gz": "gzip",
    ".bz2": "bz2",
    ".xz": "xz",
    ".zst": "zstd",
    ".lz4": "lz4",
    ".lzma": "xz",
}
PARQUET_MAGIC: Final = b"PAR1"
ARROW_MAGIC: Final = b"ARROW1"
ARROW_STREAM_MAGIC: Final = b"\xff\xff\xff\xff"
UTF8_BOM: Final = b"\xef\xbb\xbf"

_ARCHIVES: Final[dict[bytes, str]] = {
    b"PK\x03\x04": "a zip archive (or an Office document)",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
}
_OTHERS: Final[dict[bytes, str]] = {
    PARQUET_MAGIC: "Parquet",
    ARROW_MAGIC: "an Arrow file",
    ARROW_STREAM_MAGIC: "an Arrow stream",
    b"FEA1": "Feather of the first version, which Arrow no longer writes",
    b"\x1f\x9d": "compressed by compress (.Z)",
    b"\xff\x06\0\0sNaPpY": "compressed by Snappy",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"%PDF": "PDF",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"\x7fELF": "a program",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"version https://git-lfs": "a Git LFS pointer (fetch the file itself: git lfs pull)",
}
_TAR: Final = "a tar archive"
_TAR_AT: Final = 257
_SKIPPABLE: Final = b"\x2a\x4d\x18"
"""What follows the first byte (0x50 to 0x5f) of a frame of zstd or lz4 that holds no data; pzstd begins with one."""
_SHOWN_CHARS: Final = 40


def compression_of(head: bytes) -> Compression | None:
    """Return the compression of a file that begins with `head`; None if it is not compressed, or in an unknown form."""
    while head[1:4] == _SKIPPABLE and head[0] >> 4 == 5:
        head = head[8 + int.from_bytes(head[4:8], "little") :]
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)


def archive_of(head: bytes) -> str:
    """Return the kind of archive that begins with `head`; "" if none does."""
    if head[_TAR_AT:].startswith(b"ustar"):
        return _TAR
    return next((what for magic, what in _ARCHIVES.items() if head.startswith(magic)), "")


def looks_like(head: bytes) -> str:
    """Describe in a few words a file that begins with `head`."""
    if compressed := compression_of(head):
        return f"compressed by {compressed}"
    if archive := archive_of(head):
        return archive
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            return what
    start = head.removeprefix(UTF8_BOM)[: 4 * _SHOWN_CHARS].lstrip()
    if start[:1] == b"<":
        return "HTML or XML"
    text = start.decode("utf-8", "replace")
    if "\0" in text or text.count("�") > len(text) // 8:
        return "binary data of no kind that is known here"
    return f"text that begins with {' '.join(text.split())[:_SHOWN_CHARS]!r}" if text else "empty"
