"""Items and users files: one row an id, typed features beside it; a later file's row replaces an earlier one's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from domains.errors import InvalidData
from domains.ingestion.file_rows import rows_of
from domains.ingestion.ids import settle_ids
from domains.ingestion.source_files import SourceFile, literal, parquet, quoted
from domains.ingestion.validation import feature, present, text_of, unread_values, unusable
from domains.limits import LONGEST_ID


@dataclass(frozen=True)
class Catalogue:
    """An items or users file while it is read: its number among the files, its table, its id column, its features."""

    source: SourceFile
    file: int
    table: str
    key: str
    features: Mapping[str, str]

    def stage(self, con: duckdb.DuckDBPyConnection) -> list[str]:
        """Read the file into ``<table>_new`` (``_id``, features); bad rows go to ``bad``. Returns warnings.

        A number that cannot be read is a missing feature, not a bad row: losing the item would lose its events.

        Raises:
            InvalidData: a column is missing, no row is usable, or no value of a number column is a number.
        """
        table = self.table
        self.source.require(self.key, f"{table} id")
        for name in self.features:
            self.source.require(name, f"{table} feature")
        warnings = self._check_rows(con)
        con.execute(
            f"INSERT INTO bad SELECT {self.file}, line, lines, reason FROM {table}_checked"
            " WHERE reason IS NOT NULL AND reason <> 'repeated'"
        )
        values = "".join(
            f", {feature(f'feature_{i}', kind)} AS {quoted(name)}"
            for i, (name, kind) in enumerate(self.features.items())
        )
        con.execute(f"CREATE TABLE {table}_new AS SELECT _id{values} FROM {table}_checked WHERE reason IS NULL")
        self._refuse_if_empty(con)
        refused = _count(con, f"SELECT count(*) FROM bad WHERE file = {self.file}")
        if refused:
            warnings.append(f"{self.source.name}: {refused:,} of its rows are quarantined")
        read = f"FROM {table}_checked WHERE reason IS NULL"
        for position, (name, kind) in enumerate(self.features.items()):
            warnings += unread_values(con, self.source, name, text=f"feature_{position}", kind=kind, rows=read)
        con.execute(f"DROP TABLE {table}_checked")
        return warnings

    def _check_rows(self, con: duckdb.DuckDBPyConnection) -> list[str]:
        """Make ``<table>_checked``: the text of each row, and ``reason`` where it is not taken. Returns warnings."""
        texts = "".join(f", {text_of(self.source, name)} AS feature_{i}" for i, name in enumerate(self.features))
        with rows_of(con, self.source) as rows:
            con.execute(
                f"CREATE TEMP TABLE {self.table}_rows AS SELECT _line AS line, _lines AS lines, _fault AS fault,"
                f" {present(text_of(self.source, self.key, identifies=True))} AS _id{texts} FROM {rows}"
            )
        read = f"{self.table}_rows"
        warnings = settle_ids(con, self.source, self.key, table=read, into="_id", where="fault IS NULL")
        features = [f"feature_{i}" for i in range(len(self.features))]
        same = "".join(f" AND {name} IS NOT DISTINCT FROM first({name}) OVER same" for name in features)
        con.execute(
            f"CREATE TEMP TABLE {self.table}_checked AS SELECT *, CASE WHEN fault IS NOT NULL THEN fault"
            f" WHEN _id IS NULL THEN 'missing_id' WHEN {unusable('_id', LONGEST_ID)} THEN 'unusable_id'"
            " WHEN row_number() OVER same = 1 THEN NULL"
            f" WHEN true{same} THEN 'repeated' ELSE 'duplicate_id' END AS reason FROM {self.table}_rows"
            " WINDOW same AS (PARTITION BY _id, fault IS NULL ORDER BY line)"
        )
        con.execute(f"DROP TABLE {self.table}_rows")
        return warnings

    def _refuse_if_empty(self, con: duckdb.DuckDBPyConnection) -> None:
        if _count(con, f"SELECT count(*) FROM {self.table}_new"):
            return
        rows = con.execute(f"SELECT line, reason FROM {self.table}_checked ORDER BY line LIMIT 5").fetchall()
        shown = ", ".join(f"line {line}: {reason}" for line, reason in rows)
        raise InvalidData(
            f"{self.source.name}: holds no usable row" + (f" ({shown})" if shown else " after its header"),
            file=self.source.name,
            column=self.key,
            first_bad=[{"line": line, "reason": reason} for line, reason in rows],
        )


def merge_catalogue(con: duckdb.DuckDBPyConnection, table: str, stored: Path | None, id_name: str) -> bool:
    """Make ``<table>_all`` (``_id``, features) of new and stored rows; True if it differs from what is stored."""
    if stored is None:
        con.execute(f"CREATE VIEW {table}_all AS SELECT * FROM {table}_new")
        return True
    index = id_name.removesuffix("_id")
    old = f"(SELECT {id_name} AS _id, * EXCLUDE ({id_name}, {index}) FROM {parquet(stored)})"
    con.execute(
        f"CREATE TABLE {table}_all AS SELECT * FROM {table}_new UNION ALL BY NAME"
        f" SELECT old.* FROM {old} AS old ANTI JOIN {table}_new USING (_id)"
    )
    columns = [row[0] for row in con.execute(f"DESCRIBE {table}_new").fetchall()]
    old_columns = [row[0] for row in con.execute(f"DESCRIBE SELECT * FROM {old}").fetchall()]
    if set(columns) != set(old_columns):
        return True
    names = ", ".join(quoted(name) for name in columns)
    return _count(con, f"SELECT count(*) FROM (SELECT {names} FROM {table}_all EXCEPT SELECT {names} FROM {old})") > 0


def write_catalogue(con: duckdb.DuckDBPyConnection, table: str, id_name: str, vocabulary: str, path: Path) -> None:
    """Write ``<table>_all`` as Parquet: ``item_id`` or ``user_id``, its index, the features, by index."""
    index = id_name.removesuffix("_id")
    con.execute(
        f"COPY (SELECT _id AS {id_name}, ids.index AS {index}, rows.* EXCLUDE (_id) FROM {table}_all AS rows"
        f" JOIN {vocabulary} AS ids ON ids.name = rows._id ORDER BY ids.index) TO {literal(str(path))}"
        " (FORMAT parquet, COMPRESSION zstd)"
    )


def _count(con: duckdb.DuckDBPyConnection, query: str) -> int:
    return con.execute(query).fetchall()[0][0]
