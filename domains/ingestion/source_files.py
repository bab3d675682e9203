"""Reading what teams hand in: CSV, TSV (plain or gzip) and Parquet, each row with its true line.

DuckDB's own CSV reader loses count of lines after blank lines and quoted line breaks, and says only "line" for a row
that it refused itself. So text is cut into records here: files without quotes by the newline, at memory speed; from
the first quote on by the csv module, which counts. What a record means is left to SQL (``validation.py``).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import BinaryIO, Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from domains.errors import InvalidData
from domains.ingestion.bounds import check_line, decompressed, line_of, refuse_swollen

BLOCK_BYTES = 1 << 23
LONGEST_FIELD = 1 << 17
LONGEST_RAW = 10_000
"""Characters of a bad row that the quarantine keeps."""
RECORDS = pa.schema(
    [("_line", pa.int64()), ("_lines", pa.int32()), ("_cells", pa.list_(pa.string())), ("_fault", pa.string())]
)
"""A record of a text file: first line (1-based), lines it spans, its cells, and what is wrong with its form."""
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True)
class SourceFile:
    """A readable file: where it is, how it is written, and its columns in order.

    ``types`` holds DuckDB type names for Parquet and VARCHAR for text.
    """

    path: Path
    kind: Literal["text", "parquet"]
    columns: tuple[str, ...]
    types: tuple[str, ...]
    delimiter: str = ","
    header_line: int = 1

    def require(self, column: str, role: str) -> None:
        """Refuse the file unless it has ``column``.

        Raises:
            InvalidData: names the file, the column, its role and the nearest column there is, or the column's type
                where it is no plain value.
        """
        if column in self.columns:
            kind = self.types[self.columns.index(column)]
            if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION", "BLOB", "BIT", "VARIANT", "GEOMETRY")):
                what = "bytes" if kind == "BLOB" else f"of type {kind[:60]}"
                raise InvalidData(
                    f"{self.path.name}: column {column!r} ({role}) is {what}; it must hold one plain value a row",
                    file=self.path.name,
                    column=column,
                    role=role,
                )
            return
        close = get_close_matches(column, self.columns, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise InvalidData(
            f"{self.path.name}: has no column {column!r} ({role}); its columns are {', '.join(self.columns)}{hint}",
            file=self.path.name,
            column=column,
            role=role,
            columns=list(self.columns),
        )


def open_source(path: Path) -> SourceFile:
    """Look at a file's first bytes and columns; reads no rows.

    Raises:
        InvalidData: missing, empty, truncated, damaged, in another encoding than UTF-8, or with a broken header.
    """
    try:
        with open(path, "rb") as stream:
            magic = stream.read(4)
    except OSError as fault:
        raise InvalidData(f"{path.name}: cannot be read: {fault.strerror}", file=path.name) from None
    if not magic:
        raise InvalidData(f"{path.name}: is empty", file=path.name)
    if magic == b"PAR1" or path.suffix.lower() in (".parquet", ".pq"):
        return _open_parquet(path)
    return _open_text(path)


def _open_parquet(path: Path) -> SourceFile:
    try:
        described = duckdb.connect().execute(f"DESCRIBE SELECT * FROM {parquet(path)}").fetchall()
    except duckdb.Error as fault:
        reason = str(fault).replace(str(path), path.name).split("\n")[0]
        raise InvalidData(f"{path.name}: is truncated or no Parquet file: {reason}", file=path.name) from None
    refuse_swollen(path)
    return SourceFile(path, "parquet", tuple(row[0] for row in described), tuple(row[1] for row in described))


def _open_text(path: Path) -> SourceFile:
    try:
        with _stream(path) as stream:
            # A header is short; a megabyte without a line break is something else.
            line, header = 0, b""
            while not header.strip():
                header, line = stream.readline(1 << 20), line + 1
                if not header:
                    raise InvalidData(f"{path.name}: holds no header and no rows", file=path.name)
    except _DAMAGED as fault:
        raise _damaged(path, fault) from None
    if header.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in header:
        raise InvalidData(f"{path.name}: is UTF-16 or no text; save it as UTF-8", file=path.name)
    try:
        text = header.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as fault:
        raise InvalidData(
            f"{path.name}: its header is not UTF-8 (byte {fault.start})", file=path.name, line=line
        ) from None
    if "\r" in text:
        raise InvalidData(f"{path.name}: lines end in a lone carriage return; save with line feeds", file=path.name)
    preferred = "\t" if ".tsv" in path.name.lower() else ","
    delimiter = max((preferred, ",", "\t", ";", "|"), key=text.count)
    try:
        columns = tuple(name.strip() for name in next(csv.reader([text], delimiter=delimiter, strict=True)))
    except csv.Error:
        raise InvalidData(f"{path.name}: a quote in its header is not closed", file=path.name, line=line) from None
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise InvalidData(
            f"{path.name}: column {twice[0]!r} comes twice in the header", file=path.name, column=twice[0]
        )
    return SourceFile(path, "text", columns, ("VARCHAR",) * len(columns), delimiter, line)


def text_records(source: SourceFile) -> Iterator[pa.RecordBatch]:
    """Every record of a text file after its header, blank lines left out, as batches of ``RECORDS``.

    Raises:
        InvalidData: the compressed file ends early or is damaged.
    """
    try:
        with _stream(source.path) as stream:
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
    except _DAMAGED as fault:
        raise _damaged(source.path, fault) from None


def raw_rows(source: SourceFile, places: Iterable[tuple[int, int]]) -> Iterator[str]:
    """The text of records at ``places`` = (first line, lines), ascending; bytes that are no UTF-8 come escaped."""
    with _stream(source.path) as stream:
        at = 0
        for line, lines in places:
            while at < line - 1:
                stream.readline()
                at += 1
            content = b"".join(stream.readline() for _ in range(lines))
            at += lines
            yield content.rstrip(b"\r\n").decode("utf-8", "backslashreplace")[:LONGEST_RAW]


def raw_parquet_rows(con: duckdb.DuckDBPyConnection, source: SourceFile, places: str) -> Iterator[tuple[int, str, str]]:
    """(row, reason, the row as JSON) of a Parquet file's rows that the query ``places`` (line, reason) names."""
    # row: file_row_number counts from 0, people from 1.
    rows = con.sql(
        f"SELECT bad.line AS _line, bad.reason AS _reason, rows.* FROM {parquet(source.path, numbered=True)}"
        f" AS rows JOIN ({places}) AS bad ON rows.file_row_number + 1 = bad.line ORDER BY _line"
    )
    for batch in rows.to_arrow_reader(10_000):
        for row in batch.to_pylist():
            line, reason = row.pop("_line"), row.pop("_reason")
            row.pop("file_row_number")
            yield line, reason, json.dumps(row, default=str, ensure_ascii=False)[:LONGEST_RAW]


def parquet(*paths: Path | str, numbered: bool = False) -> str:
    """SQL that reads Parquet files as they are: no ``*`` or ``[1]`` of a path is a pattern, no ``a=b`` a column.

    ``numbered`` adds the column ``file_row_number``, from 0.
    """
    plain = (re.sub(r"[*?\[]", r"[\g<0>]", str(path)) for path in paths)
    options = ", hive_partitioning = false" + (", file_row_number = true" if numbered else "")
    return f"read_parquet([{', '.join(map(literal, plain))}]{options})"


def literal(text: str) -> str:
    """Text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _stream(path: Path) -> BinaryIO:
    with open(path, "rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    return decompressed(path) if compressed else open(path, "rb")


def _damaged(path: Path, fault: BaseException) -> InvalidData:
    return InvalidData(f"{path.name}: the compressed file is truncated or damaged: {fault}", file=path.name)


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
                    record, broken = [], "broken_quote"
                    pending.extendleft(reversed(taken[1:]))
                    del taken[1:]
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


def _records(line: np.ndarray, lines: np.ndarray, cells: pa.Array, fault: pa.Array, columns: int) -> pa.RecordBatch:
    # Spaces around a cell are trimmed here, where it costs a tenth of what it costs in SQL.
    cells = pa.ListArray.from_arrays(cells.offsets, pc.utf8_trim_whitespace(cells.values))
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


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, in order; their names do not count."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            digest.update(os.path.getsize(path).to_bytes(8, "little"))
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def rows_of(con: duckdb.DuckDBPyConnection, source: SourceFile) -> Iterator[str]:
    """SQL of a file's rows: ``_line``, ``_lines``, ``_fault``, and either ``_cells`` or the Parquet file's columns.

    It holds inside the block and can be read once there.

    Raises:
        InvalidData: the file turns out to be truncated or damaged while it is read.
    """
    damage: list[InvalidData] = []
    try:
        if source.kind == "parquet":
            yield (
                "(SELECT file_row_number + 1 AS _line, 1 AS _lines, NULL::VARCHAR AS _fault,"
                f" * EXCLUDE (file_row_number) FROM {parquet(source.path, numbered=True)})"
            )
        else:
            batches = pa.RecordBatchReader.from_batches(RECORDS, _noting(text_records(source), damage))
            con.register("text_records", batches)
            yield "text_records"
            con.unregister("text_records")
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error as fault:
        # DuckDB wraps what a stream raises in an error of its own.
        if damage:
            raise damage[0] from None
        if source.kind == "parquet":
            raise InvalidData(
                f"{source.path.name}: cannot be read: a part of the file is damaged", file=source.path.name
            ) from fault
        raise


def _noting(batches: Iterator[pa.RecordBatch], damage: list[InvalidData]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except InvalidData as fault:
        damage.append(fault)
        raise
