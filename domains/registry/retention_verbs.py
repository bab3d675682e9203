"""Verbs that forget: versions whose files are to go, old runs, old entries of the audit log, the oldest answers."""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from domains.registry.database import Verbs, now
from domains.registry.records import BACKBONE_SLOT, FINISHED, note
from domains.registry.tables import audit, domains, feedback, live, predictions, promotions, runs, versions

RUNS_KEPT = 20
"""The newest runs of each kind of a domain stay, however old they are."""
AUDIT_KEPT_DAYS = 365
"""No entry of the audit log goes before; a migration tells the database so."""
BATCH = 500


class RetentionVerbs(Verbs):
    """What may go; each verb can be stopped at any moment and goes on with its next call."""

    def collect_versions(self, *, keep: int, made_before: datetime, used: Set[str]) -> list[tuple[str, str]]:
        """Mark the versions whose files may be deleted; gives id and artifact of all marked: none can go live any more.

        Kept are those that are live, to which a roll back would return, or which wait to be promoted; the ``keep``
        newest of each domain and of the shared model; those made later than ``made_before`` or named in ``used``; and
        the shared model that any of these rests on.
        """
        with self._database.write() as connection:
            # A report may be large, and is not needed.
            columns = [versions.c[name] for name in ("id", "domain", "backbone_id", "created_at", "collected_at")]
            newest = list(connection.execute(select(*columns).order_by(versions.c.created_at.desc(), versions.c.id)))
            kept = _in_use(connection) | used | {row.id for row in newest if row.created_at >= made_before}
            kept |= _newest(newest, keep)
            kept |= {row.backbone_id for row in newest if row.id in kept}
            for row in newest:
                if row.id not in kept and row.collected_at is None:
                    connection.execute(update(versions).where(versions.c.id == row.id).values(collected_at=now()))
                    note(connection, "retention", "collect_version", row.domain, id=row.id)
            marked = select(versions.c.id, versions.c.artifact).where(versions.c.collected_at.is_not(None))
            return [(row.id, row.artifact) for row in connection.execute(marked.order_by(versions.c.created_at))]

    def forget_runs(self, before: datetime) -> list[str]:
        """Delete runs that ended before, but for the newest of each kind of a domain; returns their ids."""
        with self._database.write() as connection:
            chosen = select(runs.c.id, runs.c.kind, runs.c.domain, runs.c.finished_at)
            ended = chosen.where(runs.c.state.in_(FINISHED)).order_by(runs.c.started_at.desc(), runs.c.id)
            counted: dict[tuple[str, str | None], int] = {}
            old = []
            for row in connection.execute(ended):
                of_its_kind = counted[row.kind, row.domain] = counted.get((row.kind, row.domain), 0) + 1
                if of_its_kind > RUNS_KEPT and row.finished_at < before:
                    old.append(row.id)
            for start in range(0, len(old), BATCH):
                connection.execute(delete(runs).where(runs.c.id.in_(old[start : start + BATCH])))
            return old

    def forget_audit(self, before: datetime) -> int:
        """Delete entries of the audit log older than ``before``; returns how many.

        Younger than ``AUDIT_KEPT_DAYS`` none goes, whatever is asked: the database refuses it.
        """
        before = min(before, now() - timedelta(days=AUDIT_KEPT_DAYS + 1))
        deleted = 0
        while True:
            with self._database.write() as connection:
                old = select(audit.c.id).where(audit.c.at < before).order_by(audit.c.id).limit(BATCH)
                some = connection.execute(delete(audit).where(audit.c.id.in_(old))).rowcount
            deleted += some
            if some < BATCH:
                return deleted

    def logged_rows(self) -> int:
        """How many rows the log of answers and feedback has."""
        with self._database.read() as connection:
            counts = [select(func.count()).select_from(table) for table in (predictions, feedback)]
            return sum(int(connection.execute(count).scalar_one()) for count in counts)

    def oldest_answer(self) -> datetime | None:
        """When the oldest row of the log of answers was written; None where there is none."""
        with self._database.read() as connection:
            # One look at the index for each domain, and not at every row.
            names = connection.execute(select(domains.c.name)).scalars().all()
            oldest = [
                connection.execute(select(func.min(predictions.c.at)).where(predictions.c.domain == name)).scalar_one()
                for name in names
            ]
            return min((at for at in oldest if at is not None), default=None)


def _in_use(connection: Connection) -> set[str]:
    """What is live, what a roll back would return to, and what waits to be promoted."""
    pointers = connection.execute(select(live)).all()
    ids = {row.version_id for row in pointers}
    ids |= set(connection.execute(select(domains.c.challenger).where(domains.c.challenger.is_not(None))).scalars())
    below = select(promotions.c.rests_on).where(promotions.c.id.in_([row.rests_on for row in pointers]))
    return ids | set(connection.execute(select(promotions.c.to_version).where(promotions.c.id.in_(below))).scalars())


def _newest(versions_newest_first: list[Row[Any]], keep: int) -> set[str]:
    counted: dict[str, int] = {}
    kept = set()
    for row in versions_newest_first:
        slot = row.domain or BACKBONE_SLOT
        counted[slot] = counted.get(slot, 0) + 1
        if counted[slot] <= keep:
            kept.add(row.id)
    return kept
