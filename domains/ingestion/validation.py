"""What makes a row of events good, written as SQL: staged text in, parsed values and a reason out.

A row is staged with the text of each column that the spec names. The view over it parses times, labels and context,
and gives each bad row one reason, the first that applies in the order of ``REASONS``.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from domains.ingestion.source_files import SourceFile, literal, quoted, rows_of
from domains.spec import DomainSpec

EARLIEST_US = 631_152_000_000_000
"""1990-01-01 UTC. Older times are a wrong unit or a default value, not behaviour."""
UNIT_US = {"s": 1e6, "ms": 1e3, "us": 1.0}

REASONS = {
    "bad_encoding": "holds bytes that are not UTF-8",
    "broken_quote": "has a quote that does not close or closes too early",
    "wrong_column_count": "has more or fewer cells than the header",
    "missing_user": "names no user",
    "missing_item": "names no item",
    "missing_time": "says no time",
    "bad_time": "has a time that cannot be read",
    "time_without_zone": "has a time without zone in a file whose other times have one",
    "absurd_time": "lies before 1990",
    "future_time": "lies in the future",
    "missing_label": "has no label",
    "bad_label": "has a label that is no number of the task (a click is 0 or 1)",
    "label_out_of_range": "has a label outside label_range",
    "unknown_item": "names an item that the items file lacks",
    "conflicting_label": "repeats an event with another label",
    "missing_id": "has no id",
    "duplicate_id": "repeats an id of the same file",
}
"""Every reason for which a row is quarantined, and what it says about the row."""

_ZONE = r":[0-9]{2}([.,][0-9]+)?\s*([Zz]|[+-][0-9]{2}(:?[0-9]{2})?|[A-Za-z]+(/[A-Za-z_]+)*)$"
_NOTHING = "('', 'null', 'none', 'nan', '<na>', '\\n')"
"""What programs write for a missing value, in lower case."""


@dataclass(frozen=True)
class EventColumns:
    """The columns that a spec names, in the order in which they are staged."""

    user: str
    item: str
    time: str | None
    label: str | None
    action: str | None
    context: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, spec: DomainSpec) -> EventColumns:
        named = spec.interactions
        return cls(named.user, named.item, named.time, named.label, named.action, tuple(named.context.items()))

    def staged(self) -> list[tuple[str, str | None, str]]:
        """(staged name, column of the file, role) of everything that is read from a row."""
        roles = [
            ("user_id", self.user, "user"),
            ("item_id", self.item, "item"),
            ("time_text", self.time, "time"),
            ("label_text", self.label, "label"),
            ("action", self.action, "action"),
        ]
        return roles + [(f"context_{i}", name, "context") for i, (name, _) in enumerate(self.context)]  # type: ignore[return-value]

    def check(self, source: SourceFile) -> None:
        """Refuse a file that lacks a named column, or whose column cannot be of its role.

        Raises:
            InvalidData: names the file and the column.
        """
        for _, column, role in self.staged():
            if column is not None:
                source.require(column, role)


def create_staging(con: duckdb.DuckDBPyConnection, columns: EventColumns) -> None:
    """An empty table ``staged`` for the rows of all files."""
    texts = ", ".join(f"{name} VARCHAR" for name, _, _ in columns.staged())
    con.execute(f"CREATE TABLE staged (file INTEGER, line BIGINT, lines INTEGER, fault VARCHAR, {texts})")
    con.execute("CREATE TABLE time_rules (file INTEGER, unit VARCHAR, zoned BOOLEAN)")


def text_of(source: SourceFile, column: str) -> str:
    """SQL for a column's trimmed text: a cell of a text record, or a Parquet column of any type."""
    position = source.columns.index(column)
    if source.kind == "text":
        return f"_cells[{position + 1}]"
    text, kind = quoted(column), source.types[position]
    if kind.startswith(("TIMESTAMP", "DATE")):
        return f"epoch_us({text}::TIMESTAMPTZ)::VARCHAR"
    if kind in ("DOUBLE", "FLOAT"):
        # A column of whole numbers with a gap comes from pandas as floats: id 12.0 is id 12.
        whole = f"{text} = trunc({text}) AND abs({text}) < 1e18"
        return f"CASE WHEN {whole} THEN {text}::BIGINT::VARCHAR ELSE {text}::VARCHAR END"
    if kind != "VARCHAR":
        return f"{text}::VARCHAR"
    return f"trim({text}, chr(32) || chr(9) || chr(10) || chr(13) || chr(160))"


def present(text: str) -> str:
    """SQL for the text, NULL where it spells a missing value."""
    return f"CASE WHEN strlen({text}) < 5 AND lower({text}) IN {_NOTHING} THEN NULL ELSE {text} END"


def stage_events(con: duckdb.DuckDBPyConnection, source: SourceFile, *, file: int, spec: DomainSpec) -> list[str]:
    """Add a file's rows to ``staged`` and settle how its times read. Returns warnings."""
    columns = EventColumns.of(spec)
    texts = ", ".join("NULL" if name is None else present(text_of(source, name)) for _, name, _ in columns.staged())
    with rows_of(con, source) as rows:
        con.execute(f"INSERT INTO staged SELECT {file}, _line, _lines, _fault, {texts} FROM {rows}")
    if columns.time is None:
        con.execute("INSERT INTO time_rules VALUES (?, 'none', false)", [file])
        return []
    typed = source.types[source.columns.index(columns.time)].startswith(("TIMESTAMP", "DATE"))
    return _settle_times(con, source, file=file, unit="us" if typed else spec.interactions.time_unit)


def _settle_times(con: duckdb.DuckDBPyConnection, source: SourceFile, *, file: int, unit: str) -> list[str]:
    """Decide how the times of a file read, from all of its rows: the unit, and whether a zone is required.

    With unit ``auto`` the majority decides between ISO text and numbers, and the size of the middle number between
    seconds, milliseconds and microseconds. A time without zone is UTC, except in a file where most times name one:
    there it is ambiguous.
    """
    numbers, middle, zoned, texts = con.execute(
        "SELECT count(number), quantile_disc(abs(number), 0.5), count(*) FILTER (WHERE number IS NULL AND "
        f"regexp_matches(time_text, {literal(_ZONE)})), count(*) - count(number) FROM (SELECT time_text,"
        " TRY_CAST(time_text AS DOUBLE) AS number FROM staged"
        " WHERE file = ? AND fault IS NULL AND time_text IS NOT NULL)",
        [file],
    ).fetchall()[0]
    if unit == "auto":
        unit = "iso" if texts >= numbers else "s" if middle < 1e11 else "ms" if middle < 1e14 else "us"
    con.execute("INSERT INTO time_rules VALUES (?, ?, ?)", [file, unit, 2 * zoned > texts])
    if unit != "iso" or zoned in (0, texts):
        return []
    treatment = "are quarantined" if 2 * zoned > texts else "are read as UTC"
    return [f"{source.path.name}: {zoned:,} times name a zone and {texts - zoned:,} do not; those {treatment}"]


def create_checked(con: duckdb.DuckDBPyConnection, spec: DomainSpec, *, now_us: int, known_items: bool) -> None:
    """A view ``checked`` over ``staged``: ids, ``time_us``, ``label``, ``action``, context, and ``reason`` of bad rows.

    ``known_items`` says that a table ``known_items (id)`` holds every legal item.
    """
    low, high = spec.interactions.label_range
    timeless_us = 0 if spec.role == "source" else 1
    number = "TRY_CAST(time_text AS DOUBLE)"
    time_us = (
        "CASE unit "
        + " ".join(
            f"WHEN '{unit}' THEN TRY_CAST(round({number} * {factor}) AS BIGINT)" for unit, factor in UNIT_US.items()
        )
        + " WHEN 'iso' THEN epoch_us(TRY_CAST(replace(time_text, ',', '.') AS TIMESTAMPTZ)) END"
    )
    label = (
        "CASE lower(label_text) WHEN 'true' THEN 1 WHEN 'false' THEN 0 ELSE TRY_CAST(label_text AS DOUBLE) END"
        if spec.interactions.label
        else "1.0"
    )
    clicks = spec.task == "ctr" and spec.interactions.positive_above is None
    context = "".join(
        f", TRY_CAST(context_{i} AS DOUBLE) AS context_{i}" if kind == "number" else f", context_{i}"
        for i, kind in enumerate(spec.interactions.context.values())
    )
    rules = ["WHEN fault IS NOT NULL THEN fault", "WHEN user_id IS NULL THEN 'missing_user'"]
    rules += ["WHEN item_id IS NULL THEN 'missing_item'"]
    if spec.interactions.time:
        rules += [
            "WHEN time_text IS NULL THEN 'missing_time'",
            "WHEN time_us IS NULL OR NOT isfinite(time_us::DOUBLE) THEN 'bad_time'",
            f"WHEN unit = 'iso' AND zoned AND NOT regexp_matches(time_text, {literal(_ZONE)}) THEN 'time_without_zone'",
            f"WHEN time_us < {EARLIEST_US} THEN 'absurd_time'",
            f"WHEN time_us > {now_us} THEN 'future_time'",
        ]
    if spec.interactions.label:
        rules += [
            "WHEN label_text IS NULL THEN 'missing_label'",
            "WHEN label IS NULL OR NOT isfinite(label) THEN 'bad_label'",
            f"WHEN label < {low} OR label > {high} THEN 'label_out_of_range'",
        ]
        if clicks:
            rules += ["WHEN label NOT IN (0, 1) THEN 'bad_label'"]
    if known_items:
        rules += ["WHEN known_items.id IS NULL THEN 'unknown_item'"]
    con.execute(
        f"CREATE VIEW checked AS SELECT parsed.*, CASE {' '.join(rules)} END AS reason FROM (SELECT staged.file, line,"
        f" lines, fault, user_id, item_id, time_text, label_text, unit, zoned,"
        f" {time_us if spec.interactions.time else timeless_us}::BIGINT AS time_us, {label} AS label,"
        f" coalesce(action, '') AS action{context} FROM staged JOIN time_rules USING (file)) AS parsed"
        + (" LEFT JOIN known_items ON known_items.id = parsed.item_id" if known_items else "")
    )
