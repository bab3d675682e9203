"""How much a file may hold: what comes out of a compressed one is bounded, whatever went in."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from domains.errors import InvalidData

LARGEST_BYTES = 64 << 30
"""Bytes that one file may hold, decompressed."""
LARGEST_RATIO = 100
"""How often larger than the file its content may be. Tables of events shrink to a tenth or so; only a file that was
made to fill a disk or a memory says the same thing over and over."""
UNQUESTIONED_BYTES = 16 << 20
"""Content up to here is read whatever its ratio."""
LONGEST_LINE = 16 << 20
"""Bytes of one line of text; what is longer is no table."""
ROWS_PER_BYTE = 64
"""Rows that one byte of a Parquet file may stand for, after ``UNQUESTIONED_ROWS``."""
UNQUESTIONED_ROWS = 1_000_000


GZIP = b"\x1f\x8b"
"""How a gzip file begins, whatever it is called."""
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
"""What reading a damaged gzip file raises."""


def name_of(path: Path) -> str:
    """A file's name for messages: control characters and bytes that are no UTF-8 come escaped."""
    text = os.fsencode(path.name).decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def content_of(path: Path) -> BinaryIO:
    """The content of a file as a stream, decompressed where it is gzip.

    Raises:
        InvalidData: while reading a gzip file; its content is larger than ``LARGEST_BYTES`` or ``LARGEST_RATIO`` allow.
        EOFError, zlib.error, gzip.BadGzipFile: while reading one (``DAMAGED``); it is.
    """
    with open(path, "rb") as stream:
        compressed = stream.read(len(GZIP)) == GZIP
    return io.BufferedReader(_Counted(path), 1 << 20) if compressed else open(path, "rb")


def damaged(path: Path, fault: BaseException) -> InvalidData:
    """The refusal of a gzip file that raised one of ``DAMAGED``."""
    return InvalidData(f"{name_of(path)}: the compressed file is truncated or damaged: {fault}", file=name_of(path))


def refuse_swollen(path: Path) -> list[str]:
    """The names of a Parquet file's columns; refuses one that declares more content than its size can stand for.

    Raises:
        InvalidData: it does, in bytes or in rows.
    """
    try:
        described = pq.read_metadata(path)
    except (pa.ArrowException, OSError):  # what reads its rows says what is wrong with it
        return []
    size = os.path.getsize(path)
    groups = (described.row_group(number) for number in range(described.num_row_groups))
    _check(path, sum(group.total_byte_size for group in groups), size)
    if described.num_rows > UNQUESTIONED_ROWS + ROWS_PER_BYTE * size:
        raise InvalidData(
            f"{name_of(path)}: {described.num_rows:,} rows in {size:,} bytes; refused", file=name_of(path)
        )
    return described.schema.to_arrow_schema().names


def line_of(stream: BinaryIO, path: Path) -> bytes:
    """The next line of a file's text; empty at its end.

    Raises:
        InvalidData: it is longer than ``LONGEST_LINE``.
    """
    line = stream.readline(LONGEST_LINE)
    check_line(path, len(line))
    return line


def check_line(path: Path, length: int) -> None:
    """Refuse a text file with a line of this many bytes if it is too long.

    Raises:
        InvalidData: it is longer than ``LONGEST_LINE``.
    """
    if length >= LONGEST_LINE:
        raise InvalidData(
            f"{name_of(path)}: a line is longer than {LONGEST_LINE:,} bytes; no table is", file=name_of(path)
        )


def _check(path: Path, content: int, size: int) -> None:
    most = min(LARGEST_BYTES, max(UNQUESTIONED_BYTES, LARGEST_RATIO * size))
    if content > most:
        raise InvalidData(
            f"{name_of(path)}: holds more than {most:,} bytes once decompressed, {LARGEST_RATIO} times its size or the "
            "most that one file may hold; refused",
            file=name_of(path),
        )


class _Counted(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._path, self._size, self._content = path, os.path.getsize(path), 0
        self._gzip = gzip.GzipFile(path, "rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        read = self._gzip.readinto(buffer)  # type: ignore[arg-type]
        self._content += read
        _check(self._path, self._content, self._size)
        return read

    def close(self) -> None:
        self._gzip.close()
        super().close()
