"""Records of text files, each with its true line.

DuckDB's own CSV reader loses count of lines after blank lines and quoted line breaks, and says only "line" for a row
that it refused itself. So text is cut into records here: files without quotes by the newline, at memory speed; from
the first quote on by the csv module, which counts. What a record means is left to SQL (``validation.py``).
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from domains.ingestion.bounds import DAMAGED, LONGEST_LINE, check_line, content_of, damaged, line_of
from domains.ingestion.source_files import SourceFile
from domains.limits import SPACES

BLOCK_BYTES = 1 << 23
LONGEST_FIELD = 1 << 17
"""Characters of a cell that goes over several lines; one of a single line may be as long as a line."""
RECORDS = pa.schema(
    [("_line", pa.int64()), ("_lines", pa.int32()), ("_cells", pa.list_(pa.string())), ("_fault", pa.string())]
)
"""A record of a text file: first line (1-based), lines it spans, its cells, and what is wrong with its form."""


def text_records(source: SourceFile) -> Iterator[pa.RecordBatch]:
    """Every record of a text file after its header, blank lines left out, as batches of ``RECORDS``.

    Raises:
        InvalidData: the compressed file ends early or is damaged.
    """
    try:
        with content_of(source.path) as stream:
            for _ in range(source.header_line):
                stream.readline()
            line, rest = source.header_line + 1, b""
            while block := stream.read(BLOCK_BYTES):
                data = rest + block
                if b'"' in data:
                    yield from _quoted_records(io.BufferedReader(_Chained(data, stream), BLOCK_BYTES), line, source)
                    return
                cut = data.rfind(b"\n") + 1
                if cut:
                    yield _plain_records(data[:cut], line, source)
                    line += data.count(b"\n", 0, cut)
                rest = data[cut:]
                check_line(source.path, len(rest))
            if rest:
                yield _plain_records(rest + b"\n", line, source)
    except DAMAGED as fault:
        raise damaged(source.path, fault) from None


class _Chained(io.RawIOBase):
    """Bytes already read, then the stream they came from."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head, self._stream = memoryview(head), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer)  # type: ignore[arg-type]
        data = self._head[: len(target)] if self._head else self._stream.read(len(target))
        self._head = self._head[len(data) :] if self._head else self._head
        target[: len(data)] = data
        return len(data)


def _plain_records(data: bytes, first_line: int, source: SourceFile) -> pa.RecordBatch:
    """Cut a block of whole lines without quotes; no byte is copied before the cells are split."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
    offsets = np.zeros(len(ends) + 1, np.int32)
    offsets[1:] = ends + 1
    line = np.arange(first_line, first_line + len(ends))
    text = pa.Array.from_buffers(pa.string(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    fault: pa.Array = pa.nulls(len(ends), pa.string())
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        parts = data.split(b"\n")[:-1]
        text = pa.array([part.decode("utf-8", "replace") for part in parts])
        fault = pa.array([None if _is_utf8(part) else "bad_encoding" for part in parts], pa.string())
    text = pc.utf8_rtrim(text, "\r\n")
    filled = pc.not_equal(pc.utf8_trim_whitespace(text), "")
    # A file of one column has no other way to say "missing" than a blank line.
    if not pc.all(filled).as_py() and len(source.columns) > 1:
        text, fault, line = text.filter(filled), fault.filter(filled), line[np.asarray(filled)]
    cells = pc.split_pattern(text, source.delimiter)
    return _records(line, np.ones(len(line), np.int32), cells, fault, len(source.columns))


def _quoted_records(stream: io.BufferedReader, first_line: int, source: SourceFile) -> Iterator[pa.RecordBatch]:
    """Cut records by the csv module. One that breaks the quoting rules ends at its first line, so that a stray quote
    costs one row and not the rest of the file."""
    limit = csv.field_size_limit(LONGEST_FIELD)
    pending: deque[str] = deque()
    taken: list[str] = []

    def lines() -> Iterator[str]:
        while True:
            text = pending.popleft() if pending else line_of(stream, source.path).decode("utf-8", "surrogateescape")
            if not text:
                return
            taken.append(text)
            yield text

    try:
        at, done = first_line, False
        reader = csv.reader(lines(), delimiter=source.delimiter, strict=True)
        while not done:
            line: list[int] = []
            spans: list[int] = []
            cells: list[list[str]] = []
            fault: list[str | None] = []
            while len(line) < 50_000:
                try:
                    record, broken = next(reader), None
                except StopIteration:
                    done = True
                    break
                except csv.Error:
                    pending.extendleft(reversed(taken[1:]))
                    del taken[1:]
                    record, broken = _long_record(taken[0], source.delimiter)
                    reader = csv.reader(lines(), delimiter=source.delimiter, strict=True)
                if any(not text.isascii() and not _is_clean(text) for text in taken):
                    record, broken = [], broken or "bad_encoding"
                if record or broken:
                    line.append(at)
                    spans.append(len(taken))
                    cells.append(record)
                    fault.append(broken)
                at += len(taken)
                taken.clear()
            yield _records(
                np.asarray(line, np.int64),
                np.asarray(spans, np.int32),
                pa.array(cells, pa.list_(pa.string())),
                pa.array(fault, pa.string()),
                len(source.columns),
            )
    finally:
        csv.field_size_limit(limit)


def _long_record(text: str, delimiter: str) -> tuple[list[str], str | None]:
    """The cells of a line that was given up, and what is wrong with it: nothing where it only holds a long cell."""
    if len(text) > LONGEST_FIELD:
        limit = csv.field_size_limit(LONGEST_LINE)
        try:
            return next(csv.reader([text], delimiter=delimiter, strict=True)), None
        except csv.Error:
            pass
        finally:
            csv.field_size_limit(limit)
    return [], "broken_quote"


def _records(line: np.ndarray, lines: np.ndarray, cells: pa.Array, fault: pa.Array, columns: int) -> pa.RecordBatch:
    # Spaces around a cell are trimmed here, where it costs a tenth of what it costs in SQL.
    cells = pa.ListArray.from_arrays(cells.offsets, pc.utf8_trim(cells.values, SPACES))
    uneven = pc.not_equal(pc.list_value_length(cells), columns)
    fault = pc.coalesce(fault, pc.if_else(uneven, "wrong_column_count", pa.scalar(None, pa.string())))
    return pa.record_batch([pa.array(line), pa.array(lines), cells, fault], schema=RECORDS)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_clean(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)
