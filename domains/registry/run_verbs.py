"""Verbs on runs: start or resume, report progress, finish. A run is one execution of a flow."""

from __future__ import annotations

import math
from typing import Any
from uuid import uuid4

from sqlalchemy import insert, select, update

from domains.errors import Conflict, Rejected
from domains.registry.database import Verbs, now
from domains.registry.records import FINISHED, Run, RunState, as_run, domain_row, note, row_of
from domains.registry.tables import runs


class RunVerbs(Verbs):
    """Runs that wait, are under way or have ended, with the progress that the pages show."""

    def start_run(
        self,
        kind: str,
        domain: str | None,
        *,
        params: dict[str, Any],
        by: str,
        run_id: str | None = None,
        state: RunState = "running",
    ) -> Run:
        """Record that a run begins (or waits, with ``state="queued"``).

        The same ``run_id`` again resumes that run: it is running once more and keeps its progress and its times.

        Raises:
            UnknownDomain: no such domain.
            Conflict: the id belongs to a run of another kind or domain.
        """
        run_id = run_id or uuid4().hex
        with self._database.write() as connection:
            held = connection.execute(select(runs).where(runs.c.id == run_id)).one_or_none()
            if held is None:
                if domain is not None:
                    domain_row(connection, domain)
                row: dict[str, Any] = {"id": run_id, "kind": kind, "domain": domain, "state": state, "progress": 0.0}
                row |= {"step": "", "detail": {}, "params": params, "result": {}, "started_at": now(), "started_by": by}
                connection.execute(insert(runs).values(row))
                note(connection, by, "start_run", domain, run_id=run_id, kind=kind)
            elif (held.kind, held.domain) != (kind, domain):
                raise Conflict(f"run {run_id!r} is {held.kind} of {held.domain}, not {kind} of {domain}", run_id=run_id)
            else:
                resumed = {"state": state, "error": None, "finished_at": None}
                connection.execute(update(runs).where(runs.c.id == run_id).values(resumed))
                if held.state in FINISHED:
                    note(connection, by, "resume_run", domain, run_id=run_id, was=held.state)
            return as_run(row_of(connection, runs, run_id))

    def report_progress(self, run_id: str, fraction: float, step: str, **detail: Any) -> None:
        """Record how far a run is (0 to 1) and which step it is at; ``detail`` is added to what was reported before.

        A run that has ended does not change. Raises UnknownRun.
        """
        with self._database.write() as connection:
            held = row_of(connection, runs, run_id)
            if held.state in FINISHED:
                return
            progress = min(max(float(fraction), 0.0), 1.0) if math.isfinite(fraction) else held.progress
            change = {"progress": progress, "step": step, "detail": {**held.detail, **detail}}
            connection.execute(update(runs).where(runs.c.id == run_id).values(change))

    def finish_run(
        self, run_id: str, *, state: RunState, result: dict[str, Any] | None = None, error: str | None = None
    ) -> Run:
        """End a run. Only the first end counts: a crash hook that fires late changes nothing.

        Raises UnknownRun, and Rejected when ``state`` is not an end.
        """
        if state not in FINISHED:
            raise Rejected(f"a run ends {', '.join(FINISHED)}, not {state}")
        with self._database.write() as connection:
            held = row_of(connection, runs, run_id)
            if held.state not in FINISHED:
                progress = 1.0 if state == "succeeded" else held.progress
                end = {"state": state, "result": result or {}, "error": error, "finished_at": now()}
                connection.execute(update(runs).where(runs.c.id == run_id).values(progress=progress, **end))
                note(connection, held.started_by, "finish_run", held.domain, run_id=run_id, state=state, error=error)
            return as_run(row_of(connection, runs, run_id))

    def link_flow_run(self, run_id: str, flow_run_id: str) -> None:
        """Note which flow run of the scheduler executes a run. Raises UnknownRun."""
        with self._database.write() as connection:
            row_of(connection, runs, run_id)
            connection.execute(update(runs).where(runs.c.id == run_id).values(flow_run_id=flow_run_id))

    def run(self, run_id: str) -> Run:
        """Raises UnknownRun."""
        with self._database.read() as connection:
            return as_run(row_of(connection, runs, run_id))

    def runs(self, domain: str | None = None, limit: int = 50) -> list[Run]:
        """The latest runs, of one domain or of all."""
        chosen = select(runs).order_by(runs.c.started_at.desc(), runs.c.id).limit(limit)
        if domain is not None:
            chosen = chosen.where(runs.c.domain == domain)
        with self._database.read() as connection:
            return [as_run(row) for row in connection.execute(chosen)]

    def unfinished_runs(self) -> list[Run]:
        """All runs that wait or are under way, however many there have been since."""
        chosen = select(runs).where(runs.c.state.not_in(FINISHED)).order_by(runs.c.started_at.desc(), runs.c.id)
        with self._database.read() as connection:
            return [as_run(row) for row in connection.execute(chosen)]
