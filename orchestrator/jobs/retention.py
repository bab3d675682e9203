"""What may be forgotten: old answers and feedback, finished runs, versions that nothing needs, forgotten uploads.

Each part has a bound by default (``keep_...`` in the settings). Whoever looks after the home, the supervisor or ``graft
upkeep``, collects once an hour.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from domains.events.publishing import only_writer, point_at, pointed_at
from domains.registry.registry import Promotion, Registry
from orchestrator.data.model_store import Artifacts
from orchestrator.errors import ArtifactMissing
from orchestrator.settings import Settings
from orchestrator.values import Value

UPLOADS_KEPT_S = 86_400.0
"""An uploaded file is deleted when it is ingested; one whose page went away first, after this long."""
YOUNG_S = 86_400.0
"""A version younger than this stays: its run may be about to offer it."""
REPORT = "retention.json"
"""In Graft's home: what the last collection did, and when."""


class Collected(Value):
    """How much one collection deleted."""

    at: float = 0.0
    """When it ended, seconds since the epoch."""
    rows: int = 0
    audit: int = 0
    runs: int = 0
    versions: int = 0
    uploads: int = 0
    mb: float = 0.0
    """Of files."""

    def in_words(self) -> str:
        """One line for a person; empty when there was nothing."""
        said = {
            "rows": "rows of answers and feedback",
            "audit": "entries of the audit log",
            "runs": "folders of runs",
            "versions": "versions",
            "uploads": "uploads",
        }
        words = [f"{count:,} {what}" for name, what in said.items() if (count := getattr(self, name))]
        return ", ".join(words) + (f" ({self.mb:,.0f} MB of files)" if words and self.mb >= 1 else "")


def prune(*, registry: Registry, settings: Settings, days: float | None = None) -> int:
    """Delete answers and feedback older than ``days``, by default the setting's; returns how many rows.

    Raises:
        ValueError: neither the caller nor the setting names a number of days.
    """
    days = settings.keep_predictions_days if days is None else days
    if days <= 0:
        raise ValueError("say how many days of answers to keep: --days, or the setting GRAFT_KEEP_PREDICTIONS_DAYS")
    return registry.forget_answers(_days_ago(days))


def collect(*, registry: Registry, settings: Settings) -> Collected:
    """Delete all that the settings no longer keep, and write down that it was done."""
    rows = prune(registry=registry, settings=settings) if settings.keep_predictions_days else 0
    rows += _thin_out(registry, settings.keep_predictions_rows)
    audit = registry.forget_audit(_days_ago(settings.keep_audit_days)) if settings.keep_audit_days else 0
    runs, freed = _forget_runs(registry, settings) if settings.keep_runs_days else (0, 0)
    versions, more = collect_versions(registry, settings) if settings.keep_versions else (0, 0)
    uploads, rest = _forget_uploads(settings.home / "uploads")
    mb = (freed + more + rest) / 1e6
    done = Collected(at=time.time(), rows=rows, audit=audit, runs=runs, versions=versions, uploads=uploads, mb=mb)
    point_at(settings.home / REPORT, done.as_dict())
    return done


def last(settings: Settings) -> Collected | None:
    """What the last collection deleted; None before the first."""
    try:
        held = pointed_at(settings.home / REPORT)
        return None if held is None else Collected.from_dict(held)
    except (OSError, ValueError):
        return None


def collect_versions(registry: Registry, settings: Settings) -> tuple[int, int]:
    """Delete the files of versions that nothing needs; returns how many, and their bytes.

    The registry marks them first, in one transaction with its look at what is in use: from then on none can go live,
    and a pointer that moved in between has kept its version.
    """
    with only_writer(settings.artifacts_dir):  # a backup is made of what is there
        return _collect_versions(registry, settings)


def _collect_versions(registry: Registry, settings: Settings) -> tuple[int, int]:
    runs = registry.unfinished_runs()
    began = min((run.started_at for run in runs), default=datetime.now(UTC)) - timedelta(seconds=YOUNG_S)
    marked = registry.collect_versions(
        keep=settings.keep_versions, made_before=began, used=_named_by_runs(registry, settings)
    )
    store, deleted, freed = Artifacts(settings.artifacts_dir), 0, 0
    for version_id, tag in marked:
        try:
            store.path(tag)
        except ArtifactMissing:
            continue
        # Published again meanwhile, it is wanted: whoever published it makes sure of the files.
        if registry.version(version_id).collected_at is not None:
            deleted, freed = deleted + 1, freed + store.delete(tag)
    return deleted, freed


def _named_by_runs(registry: Registry, settings: Settings) -> set[str]:
    """Versions that a run which is under way, or can be continued, speaks of anywhere: what it began with and made."""
    wanted = {run.id for run in registry.unfinished_runs()}
    wanted |= {run.id for run in registry.runs(limit=1000) if run.state in ("failed", "cancelled")}
    texts = [str((run.params, run.detail, run.result)) for run in registry.unfinished_runs()]
    for run_id in wanted:
        for file in (settings.runs_dir / run_id).glob("*.json"):
            with contextlib.suppress(OSError):
                texts.append(file.read_text(errors="replace"))
    named = {version.id for version in registry.versions() if any(version.id in text for text in texts)}
    if registry.unfinished_runs():
        # What was live when it began, and it may still compare itself with.
        named |= _live_of_late(registry.promotions())
    return named


def _live_of_late(moves: Iterable[Promotion]) -> set[str]:
    """Versions that were live within the last day."""
    since = datetime.now(UTC) - timedelta(seconds=YOUNG_S)
    return {move.from_version for move in moves if move.at >= since and move.from_version is not None}


def _thin_out(registry: Registry, most: int) -> int:
    """Delete the oldest hours of the log of answers until it has no more than ``most`` rows; 0 sets no bound."""
    deleted = 0
    over = registry.logged_rows() - most if most else 0
    while over > 0 and (oldest := registry.oldest_answer()) is not None:
        some = registry.forget_answers(oldest + timedelta(hours=1))
        deleted, over = deleted + some, over - some
        if not some:
            break
    return deleted


def _forget_runs(registry: Registry, settings: Settings) -> tuple[int, int]:
    """Delete the folders of runs that ended long ago; returns how many, and their bytes."""
    before = _days_ago(settings.keep_runs_days)
    registry.forget_runs(before)
    kept = {run.id for run in registry.unfinished_runs()}
    return _delete_old((folder for folder in _inside(settings.runs_dir) if folder.name not in kept), before.timestamp())


def _forget_uploads(folder: Path) -> tuple[int, int]:
    return _delete_old(_inside(folder), time.time() - UPLOADS_KEPT_S)


def _delete_old(folders: Iterable[Path], before_s: float) -> tuple[int, int]:
    """Delete folders in which nothing has changed since; returns how many, and their bytes."""
    deleted = freed = 0
    for folder in folders:
        with contextlib.suppress(OSError):  # another process deletes it just now
            files = [file for file in folder.rglob("*") if file.is_file()]
            if max([folder.stat().st_mtime, *(file.stat().st_mtime for file in files)]) < before_s:
                freed += sum(file.stat().st_size for file in files)
                shutil.rmtree(folder)
                deleted += 1
    return deleted, freed


def _inside(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _days_ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)
