"""Raw files in, validated events out: each row is added once, found to be a duplicate, or quarantined with its reason.

    files -> staged text -> checked rows -> indices -> duplicates out -> sorted Parquet -> published

All heavy steps run in DuckDB under a memory limit and spill to disk. Everything is written into a new generation
folder; the domain's ``current.json`` is replaced last. A process killed at any moment leaves the old state readable,
and the same ingest run again finishes the work.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from domains.errors import InvalidData
from domains.events.domain_data import DomainFolder, IngestReport
from domains.events.publishing import flush_folder, flush_tree, only_writer, point_at
from domains.events.vocabulary import Vocabulary
from domains.ingestion.bounds import name_of
from domains.ingestion.catalogue import Catalogue, merge_catalogue, write_catalogue
from domains.ingestion.engine import engine_faults, interruptible
from domains.ingestion.events_writer import write_events, write_quarantine
from domains.ingestion.file_rows import raw_parquet_rows, raw_rows
from domains.ingestion.source_files import SourceFile, content_hash, literal, open_source, parquet
from domains.ingestion.validation import REASONS, EventColumns, create_checked, create_staging, stage_events
from domains.spec import DomainSpec

SHOWN_BAD_LINES = 5
SHOWN_CHARACTERS = 200
"""Lines, and characters of each, that the refusal of a file shows."""


def ingest(
    spec: DomainSpec,
    *,
    number: int,
    interactions: list[Path],
    items: Path | None = None,
    users: Path | None = None,
    data_dir: Path,
    now_us: int | None = None,
    memory_limit: str = "2GB",
    threads: int | None = None,
    on_progress: Callable[[float, str], None] | None = None,
) -> IngestReport:
    """Validate files of a domain and add what is new to its events. Safe to repeat, and safe to kill.

    An event is the same as another when user, item, time and action are; the first one read is kept. One that differs
    in its label is quarantined. Times later than ``now_us`` (default: the clock) lie in the future. Where an items file
    is given, or was before, an event of an item that it lacks is quarantined. Ingests of one domain wait for each
    other. ``on_progress`` is called with the share of the work that is done and a name for what comes next.

    Raises:
        InvalidData: a file is unreadable, lacks a column, or has no usable row; nothing is added. ``details`` holds
            ``file``, ``column``, ``reasons`` and ``first_bad`` (line, reason, row) where they are known.
        OSError: the disk is full or the folder cannot be written; nothing is added.
    """
    if not interactions:
        raise InvalidData(f"{spec.name}: no interactions file was given", domain=spec.name)
    for declared, path, what in ((spec.items, items, "items"), (spec.users, users, "users")):
        if path is not None and declared is None:
            raise InvalidData(
                f"{spec.name}: got a file of {what}, and the spec declares none", file=name_of(Path(path))
            )
    columns = EventColumns.of(spec)
    events = [open_source(Path(path)) for path in interactions]
    for source in events:
        columns.check(source)
    sides = {table: open_source(Path(path)) for table, path in (("items", items), ("users", users)) if path is not None}
    folder = DomainFolder(Path(data_dir), spec.name)
    progress = on_progress or _silently
    progress(0.0, "waiting for other ingests of this domain")
    with only_writer(folder.root), _scratch(folder, memory_limit, threads) as (con, scratch):
        work = _Ingest(con, scratch, folder, spec=spec, number=number, events=events, sides=sides)
        return work.run(now_us or time.time_ns() // 1000, progress)


def _silently(_share: float, _step: str) -> None:
    """Progress that nobody asked for."""


@contextmanager
def _scratch(
    folder: DomainFolder, memory_limit: str, threads: int | None
) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """A DuckDB file in a fresh scratch folder, gone afterwards; what a killed ingest left behind is cleared first."""
    published = {generation["folder"] for generation in folder.state()["generations"]}
    folder.generations.mkdir(parents=True, exist_ok=True)
    for generation in folder.generations.iterdir():
        if generation.name not in published:
            shutil.rmtree(generation)
    scratch = folder.root / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        with engine_faults(folder.root), duckdb.connect(str(scratch / "work.duckdb")) as con, interruptible(con):
            con.execute(f"SET memory_limit = {literal(memory_limit)}")
            con.execute(f"SET temp_directory = {literal(str(scratch / 'spill'))}")
            con.execute("SET preserve_insertion_order = false")
            con.execute("SET enable_progress_bar = false")
            con.execute("SET TimeZone = 'UTC'")
            if threads:
                con.execute(f"SET threads = {threads}")
            yield con, scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Ingest:
    """One ingest, under the domain's lock and with a scratch database of its own."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        scratch: Path,
        folder: DomainFolder,
        *,
        spec: DomainSpec,
        number: int,
        events: list[SourceFile],
        sides: dict[str, SourceFile],
    ) -> None:
        self.con, self.scratch, self.folder, self.spec, self.number = con, scratch, folder, spec, number
        self.events, self.sides = events, sides
        self.state = folder.state()
        self.warnings: list[str] = []
        self.changed_sides: list[str] = []
        if self.state.get("number", number) != number:
            raise ValueError(f"{spec.name} has the number {self.state['number']}, not {number}")

    def run(self, now_us: int, progress: Callable[[float, str], None]) -> IngestReport:
        con, spec = self.con, self.spec
        progress(0.02, "reading items and users")
        con.execute("CREATE TABLE bad (file INTEGER, line BIGINT, lines INTEGER, reason VARCHAR)")
        self._read_sides()
        create_staging(con, EventColumns.of(spec))
        for file, source in enumerate(self.events):
            progress(0.05 + 0.30 * file / len(self.events), f"reading {source.name}")
            self.warnings += stage_events(con, source, file=file, spec=spec)
        progress(0.35, "checking rows")
        create_checked(con, spec, now_us=now_us, known_items=self._know_items())
        con.execute("INSERT INTO bad SELECT file, line, lines, reason FROM checked WHERE reason IS NOT NULL")
        rows_read = self._count("SELECT count(*) FROM staged")
        self._refuse_files_that_are_all_wrong()
        self._warn_of_missing_items()
        progress(0.45, "giving ids their indices")
        self._index_ids()
        progress(0.60, "looking for duplicates")
        duplicates = self._drop_duplicates()
        progress(0.75, "writing events")
        return self._publish(rows_read, duplicates, progress)

    def _read_sides(self) -> None:
        for position, (table, source) in enumerate(self.sides.items(), start=len(self.events)):
            declared: Any = self.spec.items if table == "items" else self.spec.users
            self.warnings += Catalogue(source, position, table, declared.id, declared.features).stage(self.con)
            stored = self.folder.generations / self.state[table] if self.state[table] else None
            if merge_catalogue(self.con, table, stored, f"{table.removesuffix('s')}_id"):
                self.changed_sides.append(table)

    def _know_items(self) -> bool:
        """Make ``known_items (id)``, the only items that events may name; False where no items file was ever given."""
        if "items" in self.sides:
            self.con.execute("CREATE VIEW known_items AS SELECT _id AS id FROM items_all")
        elif self.spec.items is not None and self.state["items"]:
            stored = parquet(self.folder.generations / self.state["items"])
            self.con.execute(f"CREATE VIEW known_items AS SELECT item_id AS id FROM {stored}")
        else:
            return False
        return True

    def _refuse_files_that_are_all_wrong(self) -> None:
        for file, source in enumerate(self.events):
            rows = self._count(f"SELECT count(*) FROM staged WHERE file = {file}")
            if rows == 0:
                raise InvalidData(f"{source.name}: has a header and no rows", file=source.name)
            if self._count(f"SELECT count(*) FROM bad WHERE file = {file}") < rows:
                continue
            counted = self.con.execute(
                f"SELECT reason, count(*) FROM bad WHERE file = {file} GROUP BY ALL ORDER BY 2 DESC, 1"
            ).fetchall()
            first = self._first_bad(file, source)
            main = counted[0][0]
            column = self._column_of(main)
            reasons = "; ".join(
                f"{count:,} {'row' if count == 1 else 'rows'}: {REASONS[reason]}" for reason, count in counted
            )
            raise InvalidData(
                f"{source.name}: none of its {rows:,} rows can be used, so nothing was added"
                + (f" (column {column!r})" if column else "")
                + f". {reasons}"
                + "".join(f"; {line}" for line in self.warnings if line.startswith(f"{source.name}: its times"))
                + ". First: "
                + "; ".join(f"line {bad['line']}: {' '.join(bad['row'][:SHOWN_CHARACTERS].split())}" for bad in first),
                file=source.name,
                column=column,
                reasons=dict(counted),
                first_bad=first,
            )

    def _first_bad(self, file: int, source: SourceFile) -> list[dict[str, Any]]:
        query = f"SELECT line, lines, reason FROM bad WHERE file = {file} ORDER BY line LIMIT {SHOWN_BAD_LINES}"
        rows = self.con.execute(query).fetchall()
        if source.kind == "text":
            texts = list(raw_rows(source, [(line, lines) for line, lines, _ in rows]))
        else:
            texts = [text for _, _, text in raw_parquet_rows(self.con, source, f"SELECT line, reason FROM ({query})")]
        return [{"line": row[0], "reason": row[2], "row": text} for row, text in zip(rows, texts, strict=True)]

    def _column_of(self, reason: str) -> str | None:
        for role in ("user", "item", "time", "label"):
            if role in reason.split("_"):
                return getattr(self.spec.interactions, role)
        return None

    def _warn_of_missing_items(self) -> None:
        missing, named = self.con.execute(
            "SELECT count(DISTINCT item_id) FILTER (WHERE reason = 'unknown_item'), count(DISTINCT item_id)"
            " FROM checked WHERE item_id IS NOT NULL"
        ).fetchall()[0]
        if missing:
            share = f"{missing:,} of the {named:,} items that events name ({missing / named:.0%})"
            self.warnings.append(f"the items file lacks {share}; their events are quarantined")

    def _index_ids(self) -> None:
        """Append new ids to the vocabularies, an items or users file's before the events', each in sorted order."""
        for table, path, column in (
            ("items", self.folder.item_vocabulary, "item_id"),
            ("users", self.folder.user_vocabulary, "user_id"),
        ):
            queries = [f"SELECT DISTINCT {column} AS id FROM checked WHERE reason IS NULL"]
            if table in self.sides:
                queries.insert(0, f"SELECT _id AS id FROM {table}_new")
            for query in queries:
                with Vocabulary.writing(path) as vocabulary:
                    self._view_vocabulary(table, vocabulary)
                    new = f"SELECT seen.id FROM ({query}) AS seen ANTI JOIN {table}_ids AS ids ON ids.name = seen.id"
                    vocabulary.append_new(self.con.sql(f"{new} ORDER BY 1").to_arrow_table().column(0))
            self._view_vocabulary(table, vocabulary)
        context = "".join(f", context_{i}" for i in range(len(self.spec.interactions.context)))
        self.con.execute(
            "CREATE TABLE indexed AS SELECT file, line, lines, users_ids.index AS user, items_ids.index AS item,"
            f" time_us, label, action{context} FROM checked JOIN users_ids ON users_ids.name = user_id"
            " JOIN items_ids ON items_ids.name = item_id WHERE reason IS NULL"
        )
        self.con.execute("DROP VIEW checked")
        self.con.execute("DROP TABLE staged")

    def _view_vocabulary(self, table: str, vocabulary: Vocabulary) -> None:
        segments = vocabulary.segments()
        rows = parquet(*segments) if segments else "(SELECT 0::BIGINT AS index, '' AS name WHERE false)"
        self.con.execute(f"CREATE OR REPLACE VIEW {table}_ids AS SELECT index, name FROM {rows}")

    def _drop_duplicates(self) -> int:
        """Keep in ``fresh`` what is new; returns how many rows only repeat an event, here or among those stored."""
        con = self.con
        con.execute(
            "CREATE TABLE ranked AS SELECT *, row_number() OVER same AS nth, first(label) OVER same AS first_label"
            " FROM indexed WINDOW same AS (PARTITION BY user, item, time_us, action ORDER BY file, line)"
        )
        con.execute("DROP TABLE indexed")
        con.execute(
            "INSERT INTO bad SELECT file, line, lines, 'conflicting_label' FROM ranked WHERE label <> first_label"
        )
        repeated = self._count("SELECT count(*) FROM ranked WHERE nth > 1 AND label = first_label")
        stored = self.folder.event_files(self.state["generations"])
        if not stored:
            con.execute("CREATE VIEW fresh AS SELECT * FROM ranked WHERE nth = 1")
            return repeated
        # row-group statistics on time keep the scan of what is stored to the span of the new events.
        con.execute(
            "CREATE TABLE repeats AS SELECT ranked.file, ranked.line, ranked.lines,"
            f" stored.raw_label <> ranked.label::FLOAT AS conflict FROM {parquet(*stored)} AS stored JOIN ranked"
            " ON nth = 1 AND stored.user = ranked.user AND stored.item = ranked.item AND stored.action = ranked.action"
            " AND stored.time_us = ranked.time_us WHERE stored.time_us BETWEEN (SELECT min(time_us) FROM ranked)"
            " AND (SELECT max(time_us) FROM ranked)"
        )
        con.execute("INSERT INTO bad SELECT file, line, lines, 'conflicting_label' FROM repeats WHERE conflict")
        con.execute("CREATE VIEW fresh AS SELECT * FROM ranked ANTI JOIN repeats USING (file, line) WHERE nth = 1")
        return repeated + self._count("SELECT count(*) FROM repeats WHERE NOT conflict")

    def _publish(self, rows_read: int, duplicates: int, progress: Callable[[float, str], None]) -> IngestReport:
        con, generations = self.con, self.state["generations"]
        output = self.scratch / "generation"
        output.mkdir()
        added = write_events(con, self.spec, output)
        for table in self.changed_sides:
            write_catalogue(con, table, f"{table.removesuffix('s')}_id", f"{table}_ids", output / f"{table}.parquet")
        progress(0.92, "writing bad rows")
        write_quarantine(con, [*self.events, *self.sides.values()], output / "quarantine.parquet")
        of_events = f"FROM bad WHERE file < {len(self.events)}"
        reasons = dict(con.execute(f"SELECT reason, count(*) {of_events} GROUP BY 1 ORDER BY 1").fetchall())
        ingest_id = self._ingest_id()
        repeated = next((done for done in generations if done["id"] == ingest_id), None)
        unchanged = repeated is not None and added == 0 and not self.changed_sides
        if repeated is not None and not unchanged:
            # The same files, and now more of them is good (a time no longer lies in the future): another ingest.
            ingest_id = hashlib.sha256(f"{ingest_id} {len(generations)}".encode()).hexdigest()[:16]
            repeated = None
        name = f"{len(generations) + 1:06d}-{ingest_id}"
        files = sorted(str(path.relative_to(output)) for path in output.glob("events/**/*.parquet"))
        written = [*self.folder.event_files(generations), *(output / file for file in files)]
        totals = self._totals(written)
        report = IngestReport(
            ingest_id=ingest_id,
            rows_read=rows_read,
            rows_added=added,
            rows_duplicate=duplicates,
            rows_quarantined=sum(reasons.values()),
            reasons=reasons,
            quarantine=self.folder.generations / (repeated["folder"] if repeated else name) / "quarantine.parquet",
            users=totals["users"],
            items=totals["items"],
            first_us=totals["first_us"],
            last_us=totals["last_us"],
            label_mean=totals["label_mean"],
            warnings=self.warnings,
        )
        if unchanged:
            progress(1.0, "nothing new")
            return report
        progress(0.96, "publishing")
        flush_tree(output)
        output.rename(self.folder.generations / name)
        flush_folder(self.folder.generations)
        sides = {table: f"{name}/{table}.parquet" for table in self.changed_sides}
        generation = {"id": ingest_id, "folder": name, "files": files, "report": report.as_dict()}
        point_at(
            self.folder.pointer,
            {
                "name": self.spec.name,
                "number": self.number,
                "items": self.state["items"],
                "users": self.state["users"],
                **sides,
                "totals": totals,
                "generations": [*generations, generation],
            },
        )
        progress(1.0, "published")
        return report

    def _ingest_id(self) -> str:
        """A name for the work made of what is read and how, never of file names, so that a repeat is recognised."""
        sources = [*self.events, *self.sides.values()]
        declared = self.spec.model_dump_json(include={"name", "role", "task", "interactions", "items", "users"})
        content = f"{declared} {','.join(self.sides)} {content_hash(source.path for source in sources)}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _totals(self, files: list[Path]) -> dict[str, Any]:
        if not files:
            return {}
        self._warn_of_sameness(files)
        row = self.con.execute(
            "SELECT count(*), count(DISTINCT user), count(DISTINCT item), min(time_us), max(time_us),"
            f" fsum(label) / count(*) FROM {parquet(*files)}"
        ).fetchall()[0]
        return dict(zip(("events", "users", "items", "first_us", "last_us", "label_mean"), row, strict=True))

    def _warn_of_sameness(self, files: list[Path]) -> None:
        """Warn where nothing can be learned or judged: labels all alike, or no event later than another."""
        if not files:
            return
        of_events = f"FROM {parquet(*files)} HAVING count(*) > 1"
        declared = self.spec.interactions
        if declared.label and (
            alike := self.con.execute(f"SELECT min(label) {of_events} AND min(label) = max(label)").fetchall()
        ):
            self.warnings.append(f"every label is {alike[0][0] + 0.0:g}: there is nothing to learn from")
        if declared.time and self.con.execute(f"SELECT 1 {of_events} AND min(time_us) = max(time_us)").fetchall():
            self.warnings.append("all events are at one moment: no later ones are left to judge a model on")

    def _count(self, query: str) -> int:
        return self.con.execute(query).fetchall()[0][0]
