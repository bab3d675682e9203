"""Adding data in the background, so that it continues while another page is open."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domains.ingestion.ingest import IngestReport
from orchestrator.acting import Acting

UPLOADS = "uploads"
"""Folder in Graft's home that holds uploaded files until they are ingested."""


@dataclass(frozen=True)
class DataFiles:
    """The data files of a domain."""

    interactions: tuple[Path, ...] = ()
    items: Path | None = None
    users: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.interactions)


@dataclass
class IngestJob:
    """One ingest; ``report`` or ``error`` is set at its end."""

    domain: str
    files: DataFiles
    fraction: float = 0.0
    step: str = "Reading the files"
    report: IngestReport | None = None
    error: Exception | None = None
    _thread: threading.Thread | None = field(default=None, repr=False)

    @property
    def going(self) -> bool:
        """Whether it has not ended yet."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, *, acting: Acting, uploads: Path) -> IngestJob:
        """Start on somebody's behalf, and return at once; files in the folder of uploads are deleted at the end."""
        self._thread = threading.Thread(
            target=self._run, args=(acting, uploads), name=f"ingest-{self.domain}", daemon=True
        )
        self._thread.start()
        return self

    def _run(self, acting: Acting, uploads: Path) -> None:
        try:
            self.report = acting.ingest_data(
                self.domain,
                interactions=list(self.files.interactions),
                items=self.files.items,
                users=self.files.users,
                on_progress=self._on_progress,
            )
        except Exception as error:
            self.error = error
        finally:
            self._delete_uploads(uploads)

    def _delete_uploads(self, folder: Path) -> None:
        for path in (*self.files.interactions, self.files.items, self.files.users):
            if path is not None and path.is_relative_to(folder):
                path.unlink(missing_ok=True)

    def _on_progress(self, fraction: float, step: str, _detail: dict[str, Any]) -> None:
        self.fraction, self.step = fraction, step
