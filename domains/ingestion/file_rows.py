"""Rows of a file: as SQL to read once, and as they were written, for those that are set aside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from domains.errors import InvalidData
from domains.ingestion.bounds import content_of
from domains.ingestion.source_files import ROW_NUMBER, SourceFile, engine_reason, parquet
from domains.ingestion.text_records import RECORDS, text_records

LONGEST_RAW = 10_000
"""Characters of a bad row that the quarantine keeps."""


@contextmanager
def rows_of(con: duckdb.DuckDBPyConnection, source: SourceFile) -> Iterator[str]:
    """SQL of a file's rows: ``_line``, ``_lines``, ``_fault``, and either ``_cells`` or the Parquet file's columns.

    It holds inside the block and can be read once there.

    Raises:
        InvalidData: the file turns out to be truncated or damaged while it is read.
    """
    damage: list[BaseException] = []
    try:
        if source.kind == "parquet":
            yield (
                f"(SELECT {ROW_NUMBER} + 1 AS _line, 1 AS _lines, NULL::VARCHAR AS _fault,"
                f" * EXCLUDE ({ROW_NUMBER}) FROM {parquet(source.path, numbered=True)})"
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
            raise _unreadable(source, fault) from fault
        raise


@contextmanager
def _reading(source: SourceFile) -> Iterator[None]:
    """Turn what the engine says while it reads a Parquet file into a refusal of the file."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error as fault:
        raise _unreadable(source, fault) from fault


def _unreadable(source: SourceFile, fault: duckdb.Error) -> InvalidData:
    return InvalidData(f"{source.name}: cannot be read: {engine_reason(source.path, fault)}", file=source.name)


def _noting(batches: Iterator[pa.RecordBatch], damage: list[BaseException]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except (InvalidData, OSError, KeyboardInterrupt) as fault:
        damage.append(fault)
        raise


def raw_rows(source: SourceFile, places: Iterable[tuple[int, int]]) -> Iterator[str]:
    """The text of records at ``places`` = (first line, lines), ascending; bytes that are no UTF-8 come escaped."""
    with content_of(source.path) as stream:
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
        f" AS rows JOIN ({places}) AS bad ON rows.{ROW_NUMBER} + 1 = bad.line ORDER BY _line"
    )
    with _reading(source):
        for batch in rows.to_arrow_reader(10_000):
            for row in batch.to_pylist():
                line, reason = row.pop("_line"), row.pop("_reason")
                row.pop(ROW_NUMBER)
                yield line, reason, json.dumps(row, default=str, ensure_ascii=False)[:LONGEST_RAW]
