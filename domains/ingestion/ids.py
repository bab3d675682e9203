"""Ids as files hold them: one thing under one text, and a warning where one thing may stand under two."""

from __future__ import annotations

import duckdb

from domains.ingestion.source_files import SourceFile

EXACT_UP_TO = {"DOUBLE": 2**53, "FLOAT": 2**24}
"""Up to here a floating-point number of this type tells whole numbers apart."""


def settle_ids(
    con: duckdb.DuckDBPyConnection, source: SourceFile, column: str, *, table: str, into: str, where: str
) -> list[str]:
    """Settle the ids of a file's ``column``, which were read ``into`` a column of ``table``. Returns warnings.

    ``where`` chooses the rows of the file. Id 12.0 becomes id 12 where every id of the file is a whole number.
    """
    name, rows = f"{source.name}: {column!r}", f"FROM {table} WHERE {where}"
    warnings = _unify_whole_ids(con, table, into, where, name=name)
    exact = EXACT_UP_TO.get(source.types[source.columns.index(column)])
    if exact and (rounded := _count(con, f"count(*) {rows} AND abs(TRY_CAST({into} AS DOUBLE)) > {exact}")):
        warnings.append(
            f"{name} holds {rounded:,} ids above {exact:,} as floating-point numbers, which no longer tell neighbours"
            " apart; write them as whole numbers or text"
        )
    same_looks = f"count(DISTINCT {into}) - count(DISTINCT nfc_normalize({into}))"
    if alike := _count(con, f"{same_looks} {rows} AND strlen({into}) <> length({into})"):
        warnings.append(f"{name} holds {alike:,} ids that differ only in their Unicode form; they are kept apart")
    bare = f"SELECT DISTINCT ltrim({into}, '0') AS bare {rows} AND regexp_full_match({into}, '0+[1-9][0-9]*')"
    if padded := _count(con, f"count(*) FROM ({bare}) WHERE bare IN (SELECT {into} {rows})"):
        warnings.append(f"{name} holds {padded:,} ids both with zeros before them and without; they are kept apart")
    return warnings


def _unify_whole_ids(con: duckdb.DuckDBPyConnection, table: str, column: str, where: str, *, name: str) -> list[str]:
    # A program that met a gap in a column of whole numbers writes all of them as floats.
    floats = _count(con, f"count(*) FROM {table} WHERE {where} AND suffix({column}, '.0')")
    if not floats:
        return []
    others = f"NOT regexp_full_match({column}, '-?[0-9]+([.]0)?')"
    if _count(con, f"count(*) FROM {table} WHERE {where} AND {others}"):
        return [f"{name} holds {floats:,} ids such as 12.0 beside ids that are no numbers; 12.0 and 12 differ there"]
    con.execute(f"UPDATE {table} SET {column} = left({column}, -2) WHERE {where} AND suffix({column}, '.0')")
    con.execute(f"UPDATE {table} SET {column} = '0' WHERE {where} AND {column} = '-0'")
    return [f"{name} holds whole numbers written as floats in {floats:,} rows; 12.0 is read as 12"]


def _count(con: duckdb.DuckDBPyConnection, query: str) -> int:
    return con.execute(f"SELECT {query}").fetchall()[0][0]
