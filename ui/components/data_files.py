"""Data files: uploaded or named, followed while they are validated, and the outcome with every bad row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from domains.errors import InvalidData
from domains.events.domain_data import DomainData, IngestReport
from domains.ingestion.source_files import SourceFile, open_source
from domains.ingestion.validation import REASONS
from domains.registry.records import Domain
from ui import session
from ui.components import errors, layout, tables, wording
from ui.components.ingest_job import UPLOADS, DataFiles, IngestJob

BAD_ROWS_SHOWN = 1000
ON_SERVER = "On this server"
FILE_TYPES = ["csv", "tsv", "parquet", "pq", "gz"]


def choose_files(key: str) -> DataFiles:
    """Upload files, or name files in the folder of the setting ``import_dir`` where there is one.

    Raises:
        InvalidData: a named file does not exist or lies elsewhere.
    """
    turn = st.session_state.get(f"{key}-turn", 0)
    folder = session.settings().import_dir
    where = "Upload"
    if folder is not None:
        where = st.segmented_control(
            "Where the files are", [where, ON_SERVER], default=where, key=f"{key}-where", required=True
        )
    columns = st.columns(3)
    titles = ("Interactions", "Items (optional)", "Users (optional)")
    if folder is not None and where == ON_SERVER:
        typed = [
            column.text_input(title, key=f"{key}-path-{title}", placeholder="interactions.parquet").strip()
            for column, title in zip(columns, titles, strict=True)
        ]
        columns[0].caption(f"Files in {folder}; separate several with commas.")
        paths = [[_on_server(part.strip(), folder) for part in text.split(",") if part.strip()] for text in typed]
        return DataFiles(tuple(paths[0]), *(found[0] if found else None for found in paths[1:]))
    interactions = columns[0].file_uploader(
        titles[0],
        FILE_TYPES,
        accept_multiple_files=True,
        key=f"{key}-interactions-{turn}",
        help="Who did what, and when.",
    )
    items = columns[1].file_uploader(
        titles[1], FILE_TYPES, key=f"{key}-items-{turn}", help="One row per item, with its features."
    )
    users = columns[2].file_uploader(
        titles[2], FILE_TYPES, key=f"{key}-users-{turn}", help="One row per user, with their features."
    )
    return DataFiles(tuple(_saved(file) for file in interactions or []), _saved(items), _saved(users))


def _on_server(name: str, folder: Path) -> Path:
    """The file of this name in the folder; links are followed first, so that none leads out of it."""
    home = folder.resolve()
    try:
        path = (home / name).resolve()
    except (OSError, ValueError, RuntimeError):  # a circle of links, a NUL
        path = Path("/")
    if not path.is_relative_to(home):
        if st.session_state.get("refused-path") != name:  # a page is drawn many times
            st.session_state["refused-path"] = name
            session.acting().refuse_path(name[:400])
        raise InvalidData(f"{name[:400]}: files are read from {folder} alone (setting import_dir)", file=name[:400])
    if not path.is_file():
        raise InvalidData(f"there is no file {name} in {folder}", file=name)
    return path


def look_at(path: Path | None) -> SourceFile | None:
    """A file's columns, or None without a file.

    Raises:
        InvalidData: the file cannot be read.
    """
    return None if path is None else open_source(path)


def start(domain: str, files: DataFiles, *, key: str) -> None:
    """Start to validate and add the files chosen under ``key``; the page then follows the job."""
    # A new turn empties the uploaders, whose copies on disk go when the job ends.
    st.session_state[f"{key}-turn"] = st.session_state.get(f"{key}-turn", 0) + 1
    st.session_state["ingest"] = IngestJob(domain, files).start(
        acting=session.acting(), uploads=session.settings().home / UPLOADS
    )


def follow(domain: str) -> IngestJob | None:
    """Show the progress of this session's latest ingest into a domain; returns the job once it has ended."""
    job: IngestJob | None = st.session_state.get("ingest")
    if job is None or job.domain != domain:
        return None
    if not job.going:
        return job

    def draw() -> None:
        if not job.going:
            st.rerun()
        with st.container(border=True):
            st.markdown("**Checking every row**")
            st.progress(min(max(job.fraction, 0.0), 1.0), text=f"{job.step} · {job.fraction:.0%}")
            st.caption("You may leave this page; the check continues.")

    st.fragment(draw, run_every=0.5)()
    return None


def add_data(domain: Domain) -> None:
    """Add data to a registered domain: choose files, check them, see the outcome."""
    job = follow(domain.name)
    if job is not None:
        show_outcome(job)
    elif (running := st.session_state.get("ingest")) is not None and running.domain == domain.name:
        return
    with errors.shown():
        files = choose_files(f"add-{domain.name}")
        if st.button("Check and add", type="primary", disabled=not files, key=f"add-{domain.name}"):
            start(domain.name, files, key=f"add-{domain.name}")
            st.rerun()
        st.caption("Adding the same file again adds no row twice.")


def show_outcome(job: IngestJob) -> None:
    """The outcome of a finished ingest."""
    if job.error is not None:
        errors.show(job.error)
        bad = getattr(job.error, "details", {}).get("first_bad")
        if bad:
            st.caption("The first rows that are wrong")
            tables.show(
                [{"Line": row["line"], "Reason": reason_in_words(row["reason"]), "Row": row["row"]} for row in bad],
                hide_index=True,
            )
        st.caption("Nothing was added. Correct the file and add it again.")
    elif job.report is not None:
        show_report(job.domain, job.report)


def show_report(domain: str, report: IngestReport) -> None:
    """Counts, and the bad rows with their reasons, of one ingest."""
    if report.rows_quarantined:
        st.warning(
            f"{wording.plural(report.rows_added, 'row')} added; "
            f"{wording.plural(report.rows_quarantined, 'bad row')} set aside, listed below with the reason."
        )
    elif report.rows_added:
        st.success(f"All rows are valid: {wording.plural(report.rows_added, 'row')} added.")
    else:
        st.info("Nothing new: every row had been added before.")
    for warning in report.warnings:
        st.warning(warning)
    show_counts(
        read=report.rows_read,
        added=report.rows_added,
        duplicate=report.rows_duplicate,
        bad=report.rows_quarantined,
        users=report.users,
        items=report.items,
    )
    mean = "" if report.label_mean is None else f" Mean label {report.label_mean:.3f}."
    if report.first_us and report.first_us > 1:
        st.caption(
            f"Events from {wording.event_time(report.first_us)} to {wording.event_time(report.last_us)} UTC.{mean}"
        )
    elif mean:
        st.caption(mean.strip())
    show_bad_rows(domain, report.reasons)


def show_counts(*, read: int, added: int, duplicate: int, bad: int, users: int, items: int) -> None:
    """Rows read and what became of them, as a row of figures."""
    titles = ("Rows read", "Added", "Duplicates", "Set aside", "Users", "Items")
    values = (read, added, duplicate, bad, users, items)
    layout.figures({title: wording.count(value) for title, value in zip(titles, values, strict=True)})


def show_bad_rows(domain: str, reasons: dict[str, int]) -> None:
    """Why rows were set aside, and the rows themselves with file, line and content; nothing when all were good."""
    rows = DomainData(session.settings().data_dir, domain).quarantine(BAD_ROWS_SHOWN)
    if not reasons and not rows:
        return
    st.markdown("**Rows set aside**")
    if reasons:
        most = max(reasons.values())
        st.dataframe(
            [
                {"Reason": reason_in_words(reason), "Rows": number}
                for reason, number in sorted(reasons.items(), key=lambda r: -r[1])
            ],
            hide_index=True,
            column_config={
                "Reason": st.column_config.Column(width="large"),
                "Rows": st.column_config.ProgressColumn(min_value=0, max_value=most, format="%d"),
            },
        )
    if rows:
        table = [
            {
                "File": Path(row["file"]).name,
                "Line": row["line"],
                "Reason": reason_in_words(row["reason"]),
                "Row": row["row"],
            }
            for row in rows
        ]
        tables.show(
            table,
            hide_index=True,
            height=min(38 + 35 * len(table), 420),
            column_config={
                "File": st.column_config.Column(width="small"),
                "Line": st.column_config.NumberColumn(width="small"),
                "Reason": st.column_config.Column(width="medium"),
                "Row": st.column_config.Column(width="large"),
            },
        )
        if len(rows) == BAD_ROWS_SHOWN:
            st.caption(f"Only the latest {BAD_ROWS_SHOWN:,}.")
        st.download_button(
            "Download the bad rows", tables.as_csv(table), file_name=f"{domain}-bad-rows.csv", mime="text/csv"
        )


def reason_in_words(reason: str) -> str:
    """Why a row was set aside, in words."""
    text = REASONS.get(reason, reason)
    return text[:1].upper() + text[1:]


def _saved(file: Any) -> Any:
    """Path of an uploaded file, which is written to disk once; None where none was uploaded."""
    if file is None:
        return None
    folder = session.settings().home / UPLOADS / "".join(c for c in file.file_id if c.isalnum() or c == "-")
    path = folder / (Path(file.name).name or "file")
    if not path.is_file() or path.stat().st_size != file.size:
        session.acting().keep_upload(path, file.getbuffer())
    return path
