"""Writing what an ingest found: events as Parquet partitioned by date, bad rows with file, line, reason and content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise, tee
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from domains.events.domain_data import QUARANTINE
from domains.ingestion.file_rows import raw_parquet_rows, raw_rows
from domains.ingestion.source_files import SourceFile, quoted
from domains.spec import DomainSpec

ROWS_AT_ONCE = 1 << 17
MOST_PARTITIONS = 366
"""A year of days; longer spans are cut by month, and spans over thirty years by year."""
FEWEST_ROWS = 5_000
"""Rows that a file should hold on average: a file costs as much to open as thousands of rows to read."""


def write_events(con: duckdb.DuckDBPyConnection, spec: DomainSpec, output: Path) -> int:
    """Write table ``fresh`` under ``output/events``, sorted by time, user, item and action; returns how many rows.

    The order depends on the events alone, not on threads or files, so the same data gives the same bytes.
    """
    cut = spec.interactions.positive_above
    label = "label" if cut is None else f"CASE WHEN label > {cut} THEN 1 ELSE 0 END"
    context = "".join(f", context_{i} AS {quoted(name)}" for i, name in enumerate(spec.interactions.context))
    count, first, last = con.execute("SELECT count(*), min(time_us), max(time_us) FROM fresh").fetchall()[0]
    if count == 0:
        return 0
    unit = _partition_unit(count, first, last) if spec.interactions.time else None
    sorted_events = con.sql(
        "SELECT users_ids.name AS user_id, items_ids.name AS item_id, user, item, time_us, "
        f"({label})::FLOAT AS label, label::FLOAT AS raw_label, action{context} FROM fresh"
        " JOIN users_ids ON users_ids.index = user JOIN items_ids ON items_ids.index = item"
        " ORDER BY time_us, user, item, action"
    )
    rows, open_period, writer = 0, None, None
    try:
        for batch in sorted_events.to_arrow_reader(ROWS_AT_ONCE):
            for period, part in _by_period(batch, unit):
                if writer is None or period != open_period:
                    if writer is not None:
                        writer.close()
                    place = output / "events" / (f"date={period}" if period else "") / "events.parquet"
                    place.parent.mkdir(parents=True)
                    writer, open_period = pq.ParquetWriter(place, batch.schema, compression="zstd"), period
                writer.write_batch(part)
            rows += batch.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows


def write_quarantine(con: duckdb.DuckDBPyConnection, sources: Sequence[SourceFile], path: Path) -> int:
    """Write table ``bad`` with the content of each row, by file and line; returns how many rows."""
    rows = 0
    with pq.ParquetWriter(path, QUARANTINE, compression="zstd") as writer:
        for file, source in enumerate(sources):
            found = _bad_rows(con, file, source)
            while chunk := list(islice(found, 20_000)):
                line, reason, row = zip(*chunk, strict=True)
                names = [source.name] * len(chunk)
                writer.write_batch(pa.record_batch([names, list(line), list(reason), list(row)], schema=QUARANTINE))
                rows += len(chunk)
    return rows


def _bad_rows(con: duckdb.DuckDBPyConnection, file: int, source: SourceFile) -> Iterator[tuple[int, str, str]]:
    """(line, reason, content) of a file's bad rows in the order of lines."""
    places = f"SELECT line, lines, reason FROM bad WHERE file = {file} ORDER BY line"
    if con.execute(f"SELECT count(*) FROM ({places})").fetchall()[0][0] == 0:
        return
    if source.kind == "parquet":
        yield from raw_parquet_rows(con, source, f"SELECT line, reason FROM bad WHERE file = {file}")
        return
    # A second cursor: the content of one chunk of rows is read while the query of the next is open.
    reader = con.cursor().sql(places).to_arrow_reader(ROWS_AT_ONCE)
    named = ((row["line"], row["lines"], row["reason"]) for batch in reader for row in batch.to_pylist())
    mine, theirs = tee(named)
    texts = raw_rows(source, ((line, lines) for line, lines, _ in theirs))
    for (line, _, reason), text in zip(mine, texts, strict=True):
        yield line, reason, text


def _partition_unit(rows: int, first_us: int, last_us: int) -> str:
    """The finest of day, month and year that makes neither too many files nor tiny ones."""
    edges = np.array([first_us, last_us], "datetime64[us]")
    for unit in ("D", "M"):
        periods = 1 + int(np.diff(edges.astype(f"datetime64[{unit}]").astype(np.int64))[0])
        if periods == 1 or (periods <= MOST_PARTITIONS and rows / periods >= FEWEST_ROWS):
            return unit
    return "Y"


def _by_period(batch: pa.RecordBatch, unit: str | None) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Cut a batch sorted by time where the day, month or year changes; a period is named by its first day."""
    if unit is None:
        yield "", batch
        return
    times = batch.column("time_us").to_numpy().astype("datetime64[us]")
    periods = times.astype(f"datetime64[{unit}]")
    cuts = [0, *(np.flatnonzero(periods[1:] != periods[:-1]) + 1), len(periods)]
    for start, stop in pairwise(cuts):
        yield str(periods[start].astype("datetime64[D]")), batch.slice(start, stop - start)
