"""Formats that are no table of text and no Parquet, told by their first bytes, so that a refusal can name them."""

from __future__ import annotations

import re

_BEGINNINGS = (
    (b"PK\x03\x04", "a zip archive or a spreadsheet"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ", "compressed with xz"),
    (b"\x04\x22\x4d\x18", "compressed with lz4"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet"),
    (b"ORC", "an ORC file"),
    (b"Obj\x01", "an Avro file"),
    (b"ARROW1", "an Arrow file"),
    (b"FEA1", "a Feather file"),
    (b"SQLite f", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "compressed with gzip once more"),
    (b"PAR1", "Parquet inside gzip"),
    (b"%PDF", "a PDF"),
    (b"{\\rtf", "a text document"),
)
_JSON = re.compile(rb"\{\s*[\"}]|\{\s*$|\[\s*[\[{\"\]]|\[\s*$")
_MARKUP = (b"<html", b"<!doct", b"<?xml", b"<table")


def foreign_format(head: bytes) -> str | None:
    """What a file is that begins with these eight bytes; None for what may be a table.

    A gzip file is a table of text until its content says otherwise: ask about that with its own first bytes.
    """
    for beginning, name in _BEGINNINGS:
        if head.startswith(beginning):
            return name
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _JSON.match(text):
        return "JSON"
    return "a page of HTML or XML" if text.lower().startswith(_MARKUP) else None
