"""What teams hand in: CSV, TSV (plain or gzip) and Parquet. Looks at a file and its columns, and reads no rows."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import duckdb

from domains.errors import InvalidData
from domains.ingestion.bounds import DAMAGED, GZIP, content_of, damaged, name_of, refuse_swollen
from domains.ingestion.formats import foreign_format

SHOWN_COLUMNS = 20
"""Columns of a file that an error lists."""
ROW_NUMBER = "file_row_number"
"""DuckDB's name for the number of a Parquet file's row."""


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
    ambiguous: frozenset[str] = frozenset()
    """Names in lower case that several columns of a Parquet file share; the engine would read the first of them."""

    @property
    def name(self) -> str:
        """The file's name for messages."""
        return name_of(self.path)

    def require(self, column: str, role: str) -> None:
        """Refuse the file unless it has ``column``.

        Raises:
            InvalidData: names the file, the column, its role and the nearest column there is, or the column's type
                where it is no plain value.
        """
        if column.lower() in self.ambiguous:
            raise InvalidData(
                f"{self.name}: column {column!r} ({role}) comes twice, or differs from another only in case",
                file=self.name,
                column=column,
                role=role,
            )
        if column in self.columns:
            kind = self.types[self.columns.index(column)]
            if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION", "BLOB", "BIT", "VARIANT", "GEOMETRY")):
                what = "bytes" if kind == "BLOB" else f"of type {kind[:60]}"
                raise InvalidData(
                    f"{self.name}: column {column!r} ({role}) is {what}; it must hold one plain value a row",
                    file=self.name,
                    column=column,
                    role=role,
                )
            return
        raise InvalidData(
            f"{self.name}: has no column {column!r} ({role}); {self._columns_in_words(column)}",
            file=self.name,
            column=column,
            role=role,
            columns=list(self.columns[:SHOWN_COLUMNS]),
        )

    def _columns_in_words(self, wanted: str) -> str:
        """The columns there are, and the one that was probably meant."""
        shown = ", ".join(name[:80] for name in self.columns[:SHOWN_COLUMNS])
        more = f" and {len(self.columns) - SHOWN_COLUMNS:,} more" if len(self.columns) > SHOWN_COLUMNS else ""
        folded = {name.casefold(): name for name in self.columns[:1000]}
        close = get_close_matches(wanted.casefold(), folded, n=1, cutoff=0.5)
        hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
        if len(self.columns) == 1 and self.kind == "text":
            hint = "; cells are divided by a comma, a semicolon, a tab or |"
        return f"its columns are {shown}{more}{hint}"


def open_source(path: Path) -> SourceFile:
    """Look at a file's first bytes and columns; reads no rows.

    Raises:
        InvalidData: missing, empty, truncated, damaged, in another encoding than UTF-8, or with a broken header.
    """
    try:
        # Looked at first: to open a pipe waits for its writer, and it can be read only once.
        if not stat.S_ISREG(os.stat(path).st_mode):
            what = "is a folder" if path.is_dir() else "is a pipe or a device"
            raise InvalidData(f"{name_of(path)}: {what}; a file is read", file=name_of(path))
        with open(path, "rb") as stream:
            magic = stream.read(8)
    except OSError as fault:
        raise InvalidData(f"{name_of(path)}: cannot be read: {fault.strerror}", file=name_of(path)) from None
    if not magic:
        raise InvalidData(f"{name_of(path)}: is empty", file=name_of(path))
    if magic.startswith((b"PAR1", b"PARE")):
        return _open_parquet(path)
    if not magic.startswith(GZIP):
        _refuse_foreign(path, magic)
    if path.suffix.lower() in (".parquet", ".pq"):
        return _open_parquet(path)
    return _open_text(path)


def _open_parquet(path: Path) -> SourceFile:
    try:
        described = duckdb.connect().execute(f"DESCRIBE SELECT * FROM {parquet(path)}").fetchall()
    except duckdb.Error as fault:
        raise InvalidData(
            f"{name_of(path)}: is truncated or no Parquet file: {engine_reason(path, fault)}", file=name_of(path)
        ) from None
    names = [name.lower() for name in refuse_swollen(path)]
    if ROW_NUMBER in names:
        raise InvalidData(
            f"{name_of(path)}: has a column {ROW_NUMBER!r}, a name that is taken; leave it out or rename it",
            file=name_of(path),
            column=ROW_NUMBER,
        )
    ambiguous = frozenset(name for name, times in Counter(names).items() if times > 1)
    columns, types = (tuple(row[part] for row in described) for part in (0, 1))
    return SourceFile(path, "parquet", columns, types, ambiguous=ambiguous)


def engine_reason(path: Path, fault: duckdb.Error) -> str:
    """What the engine says is wrong with a file, in one line and without the folder's name."""
    said = str(fault).replace(str(path), name_of(path)).split("\n")[0]
    return re.sub(r"^[A-Z][A-Za-z ]* Error: ", "", said)


def _refuse_foreign(path: Path, head: bytes) -> None:
    found = foreign_format(head)
    if found:
        raise InvalidData(
            f"{name_of(path)}: is {found}; CSV, TSV (plain or gzip) and Parquet are read", file=name_of(path)
        )


def _open_text(path: Path) -> SourceFile:
    try:
        with content_of(path) as stream:
            # A header is short; a megabyte without a line break is something else.
            line, header = 0, b""
            while not header.strip():
                header, line = stream.readline(1 << 20), line + 1
                if not header:
                    raise InvalidData(f"{name_of(path)}: holds no header and no rows", file=name_of(path))
    except DAMAGED as fault:
        raise damaged(path, fault) from None
    _refuse_foreign(path, header[:8])
    if header.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in header:
        raise InvalidData(f"{name_of(path)}: is UTF-16 or no text; save it as UTF-8", file=name_of(path))
    try:
        text = header.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as fault:
        raise InvalidData(
            f"{name_of(path)}: its header is not UTF-8 (byte {fault.start})", file=name_of(path), line=line
        ) from None
    if "\r" in text:
        raise InvalidData(
            f"{name_of(path)}: lines end in a lone carriage return; save with line feeds", file=name_of(path)
        )
    preferred = "\t" if ".tsv" in path.name.lower() else ","
    delimiter = max((preferred, ",", "\t", ";", "|"), key=re.sub(r'"[^"]*"', "", text).count)
    try:
        columns = tuple(name.strip() for name in next(csv.reader([text], delimiter=delimiter, strict=True)))
    except csv.Error:
        raise InvalidData(
            f"{name_of(path)}: a quote in its header is not closed", file=name_of(path), line=line
        ) from None
    # Columns without a name are nobody's: a spreadsheet adds them, and no spec can mean one.
    twice = sorted(name for name, times in Counter(columns).items() if times > 1 and name)
    if twice:
        raise InvalidData(
            f"{name_of(path)}: column {twice[0]!r} comes twice in the header", file=name_of(path), column=twice[0]
        )
    return SourceFile(path, "text", columns, ("VARCHAR",) * len(columns), delimiter, line)


def parquet(*paths: Path | str, numbered: bool = False) -> str:
    """SQL that reads Parquet files as they are: no ``*`` or ``[1]`` of a path is a pattern, no ``a=b`` a column.

    ``numbered`` adds the column ``file_row_number``, from 0.
    """
    plain = (re.sub(r"[*?\[]", r"[\g<0>]", str(path)) for path in paths)
    options = ", hive_partitioning = false" + (f", {ROW_NUMBER} = true" if numbered else "")
    return f"read_parquet([{', '.join(map(literal, plain))}]{options})"


def literal(text: str) -> str:
    """Text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A column name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def content_hash(paths: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, in order; their names do not count."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            digest.update(os.path.getsize(path).to_bytes(8, "little"))
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
