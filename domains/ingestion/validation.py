"""What makes a row of events good, written as SQL: staged text in, parsed values and a reason out.

A row is staged with the text of each column that the spec names. The view over it parses times, labels and context,
and gives each bad row one reason, the first that applies in the order of ``REASONS``.
"""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from domains.errors import InvalidData
from domains.ingestion.file_rows import rows_of
from domains.ingestion.ids import settle_ids
from domains.ingestion.source_files import SourceFile, literal, quoted
from domains.limits import LONGEST_ACTION, LONGEST_ID, LONGEST_TEXT, SPACES
from domains.spec import DomainSpec

EARLIEST_US = 631_152_000_000_000
"""1990-01-01 UTC. Older times are a wrong unit or a default value, not behaviour."""
UNIT_US = {"s": 1e6, "ms": 1e3, "us": 1.0}
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
NANOSECONDS_FROM = 1e17
"""As a number of microseconds this lies after the year 5100: such times are nanoseconds."""

WRITTEN_DATES = ((19_900_101, 21_001_231), (19_900_101_000_000, 21_001_231_235_959))
"""Dates, and dates with a time, read as numbers; none is a time since 1970 that would be taken, in any unit."""

BOUNDED = (("user_id", "user", LONGEST_ID), ("item_id", "item", LONGEST_ID), ("action", "action", LONGEST_ACTION))
"""Staged columns whose texts have a longest length: the column, its role, characters."""

REASONS = {
    "bad_encoding": "holds bytes that are not UTF-8",
    "broken_quote": "has a quote that does not close, closes too early or encloses over 131,072 characters in lines",
    "wrong_column_count": "has more or fewer cells than the header",
    "missing_user": "names no user",
    "missing_item": "names no item",
    "unusable_user": f"has a user id of over {LONGEST_ID} characters, or with a NUL",
    "unusable_item": f"has an item id of over {LONGEST_ID} characters, or with a NUL",
    "unusable_action": f"has an action of over {LONGEST_ACTION} characters, or with a NUL",
    "missing_time": "says no time",
    "bad_time": "has a time that cannot be read",
    "time_without_zone": "has a time without zone in a file whose other times have one",
    "time_in_nanoseconds": "has a time in nanoseconds; seconds, milliseconds and microseconds are read",
    "absurd_time": "lies before 1990",
    "future_time": "lies in the future",
    "missing_label": "has no label",
    "bad_label": "has a label that is no number of the task (a click is 0 or 1)",
    "label_out_of_range": "has a label outside label_range",
    "unknown_item": "names an item that the items file lacks",
    "conflicting_label": "repeats an event with another label",
    "missing_id": "has no id",
    "unusable_id": f"has an id of over {LONGEST_ID} characters, or with a NUL",
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


def text_of(source: SourceFile, column: str, *, identifies: bool = False) -> str:
    """SQL for a column's trimmed text: a cell of a text record, or a Parquet column of any plain type.

    NaN is a missing value. Where the column ``identifies`` a user or an item, an infinite number is one too.
    """
    position = source.columns.index(column)
    if source.kind == "text":
        return f"_cells[{position + 1}]"
    text, kind = quoted(column), source.types[position]
    if kind.startswith(("TIMESTAMP", "DATE")):
        return f"CASE WHEN isfinite({text}::TIMESTAMPTZ) THEN epoch_us({text}::TIMESTAMPTZ)::VARCHAR END"
    if kind in ("DOUBLE", "FLOAT"):
        # A column of whole numbers with a gap comes from pandas as floats: id 12.0 is id 12. TRY_CAST, for DuckDB drops
        # a condition that the statistics of a row group make superfluous, and those leave NaN out.
        whole = f"CASE WHEN {text} = trunc({text}) AND abs({text}) < 1e18 THEN TRY_CAST({text} AS BIGINT) END"
        known = f"isfinite({text})" if identifies else f"NOT isnan({text})"
        return f"CASE WHEN {known} THEN coalesce(({whole})::VARCHAR, {text}::VARCHAR) END"
    if kind.startswith("DECIMAL"):
        return f"regexp_replace({text}::VARCHAR, '[.]0+$', '')"
    if kind != "VARCHAR":
        return f"{text}::VARCHAR"
    # Plain text, of a byte a character, is trimmed four times as fast.
    plain = literal("".join(space for space in SPACES if space.isascii()))
    trimmed = f"THEN trim({text}, {plain}) ELSE trim({text}, {literal(SPACES)})"
    return f"CASE WHEN strlen({text}) = length({text}) {trimmed} END"


def unusable(text: str, longest: int) -> str:
    """SQL that says whether a text is too long, in characters, or holds a NUL, which PostgreSQL cannot keep."""
    return f"(length({text}) > {longest} OR contains({text}, chr(0)))"


def present(text: str) -> str:
    """SQL for the text, NULL where it spells a missing value."""
    return f"CASE WHEN strlen({text}) < 5 AND lower({text}) IN {_NOTHING} THEN NULL ELSE {text} END"


def feature(text: str, kind: str) -> str:
    """SQL for the value of a feature of a kind (``number``, ``category``) out of its text; NULL where it is unfit."""
    text = present(text)
    if kind == "category":
        return f"CASE WHEN NOT {unusable(text, LONGEST_TEXT)} THEN {text} END"
    number = f"TRY_CAST({text} AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def unread_values(
    con: duckdb.DuckDBPyConnection, source: SourceFile, column: str, *, text: str, kind: str, rows: str
) -> list[str]:
    """A warning where values of a feature are read as missing. ``text`` holds it in ``rows``, a FROM with a WHERE.

    Raises:
        InvalidData: it is declared a number, and no value of it is one.
    """
    filled, read = con.execute(f"SELECT count({present(text)}), count({feature(text, kind)}) {rows}").fetchall()[0]
    if read == filled:
        return []
    unread = f"{present(text)} IS NOT NULL AND {feature(text, kind)} IS NULL"
    lines = con.execute(f"SELECT line, left({text}, 80) {rows} AND {unread} ORDER BY line LIMIT 5").fetchall()
    if kind == "number" and not read:
        raise InvalidData(
            f"{source.name}: column {column!r} is declared a number and holds none; first: "
            + ", ".join(f"line {line}: {value!r}" for line, value in lines),
            file=source.name,
            column=column,
            first_bad=[{"line": line, "reason": "bad_number", "row": value} for line, value in lines],
        )
    line, value = lines[0]
    problem = f"is no number in {filled - read:,} rows, first on line {line}: {value!r}"
    if kind == "category":
        problem = f"holds over {LONGEST_TEXT:,} characters, or a NUL, in {filled - read:,} rows, first on line {line}"
    return [f"{source.name}: {column!r} {problem}; read there as missing"]


def stage_events(con: duckdb.DuckDBPyConnection, source: SourceFile, *, file: int, spec: DomainSpec) -> list[str]:
    """Add a file's rows to ``staged`` and settle how its times read. Returns warnings."""
    columns = EventColumns.of(spec)
    texts = ", ".join(
        "NULL" if name is None else present(text_of(source, name, identifies=role in ("user", "item")))
        for _, name, role in columns.staged()
    )
    with rows_of(con, source) as rows:
        con.execute(f"INSERT INTO staged SELECT {file}, _line, _lines, _fault, {texts} FROM {rows}")
    of_file = f"file = {file} AND fault IS NULL"
    warnings = settle_ids(con, source, columns.user, table="staged", into="user_id", where=of_file)
    warnings += settle_ids(con, source, columns.item, table="staged", into="item_id", where=of_file)
    for position, (name, kind) in enumerate(columns.context):
        text = f"context_{position}"
        warnings += unread_values(con, source, name, text=text, kind=kind, rows=f"FROM staged WHERE {of_file}")
    if columns.time is None:
        con.execute("INSERT INTO time_rules VALUES (?, 'none', false)", [file])
        return warnings
    typed = source.types[source.columns.index(columns.time)].startswith(("TIMESTAMP", "DATE"))
    unit = "us" if typed else spec.interactions.time_unit
    return warnings + _settle_times(con, source, file=file, unit=unit)


def _settle_times(con: duckdb.DuckDBPyConnection, source: SourceFile, *, file: int, unit: str) -> list[str]:
    """Decide how the times of a file read, from all of its rows: the unit, and whether a zone is required.

    With unit ``auto`` the majority decides between ISO text and numbers (words are neither), and the size of the middle
    number between seconds, milliseconds and microseconds. A time without zone is UTC, except in a file where most
    times name one: there it is ambiguous.
    """
    numbers, middle, zoned, texts = con.execute(
        "SELECT count(number), quantile_disc(abs(number), 0.5), count(*) FILTER (WHERE number IS NULL AND "
        f"regexp_matches(time_text, {literal(_ZONE)})),"
        " count(*) FILTER (WHERE number IS NULL AND time_text[1] BETWEEN '0' AND '9') FROM (SELECT time_text,"
        " TRY_CAST(time_text AS DOUBLE) AS number FROM staged"
        " WHERE file = ? AND fault IS NULL AND time_text IS NOT NULL)",
        [file],
    ).fetchall()[0]
    warnings = []
    looks = "iso" if texts >= numbers else "s" if middle < 1e11 else "ms" if middle < 1e14 else "us"
    if looks == "us" and middle >= NANOSECONDS_FROM:
        looks = "ns"
    if unit != "iso" and looks != "iso" and any(low <= middle <= high for low, high in WRITTEN_DATES):
        warnings.append(f"{source.name}: its times look like dates such as 20251124; write them as 2025-11-24")
    elif "iso" not in (unit, looks) and looks != (unit if unit != "auto" else "us" if looks == "ns" else looks):
        read_as = UNIT_NAMES["us" if unit == "auto" else unit]
        warnings.append(f"{source.name}: its times look like {UNIT_NAMES[looks]} and are read as {read_as}")
    if unit == "auto":
        unit = "us" if looks == "ns" else looks
    con.execute("INSERT INTO time_rules VALUES (?, ?, ?)", [file, unit, 2 * zoned > texts])
    if unit != "iso" or zoned in (0, texts):
        return warnings
    treatment = "are quarantined" if 2 * zoned > texts else "are read as UTC"
    return [f"{source.name}: {zoned:,} times name a zone and {texts - zoned:,} do not; those {treatment}"]


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
        f", {feature(f'context_{i}', kind)} AS context_{i}" for i, kind in enumerate(spec.interactions.context.values())
    )
    rules = ["WHEN fault IS NOT NULL THEN fault", "WHEN user_id IS NULL THEN 'missing_user'"]
    rules += ["WHEN item_id IS NULL THEN 'missing_item'"]
    rules += [f"WHEN {unusable(name, longest)} THEN 'unusable_{role}'" for name, role, longest in BOUNDED]
    if spec.interactions.time:
        rules += [
            "WHEN time_text IS NULL THEN 'missing_time'",
            f"WHEN unit <> 'iso' AND abs({number}) BETWEEN {NANOSECONDS_FROM} AND 1e19 THEN 'time_in_nanoseconds'",
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
