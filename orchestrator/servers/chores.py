"""The supervisor's regular work: new schedules, crashed and lost runs, old answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from domains.registry.registry import Registry
from orchestrator import prefect_client
from orchestrator.jobs import retention
from orchestrator.jobs.runner import close_dead
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

EVERY_S = 5
PRUNE_EVERY_S = 3600
LOST_AFTER_S = 30
"""A flow run that ended this long ago without the registry knowing will not be resumed."""


class Chores:
    """The chores of one home; ``say`` receives each line meant for a person."""

    def __init__(self, settings: Settings, registry: Registry, say: Callable[[str], None]) -> None:
        self._settings, self._registry, self._say = settings, registry, say
        self._schedules: dict[str, str | None] = {}
        self._ended_since: dict[str, float] = {}
        self._due = self._prune_due = 0.0

    def do(self) -> None:
        """Do all of them, when they are due."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + EVERY_S
        try:
            self._hand_over_schedules()
            for flow_run in prefect_client.resume_crashed(api_url=self._settings.prefect_api):
                self._say(f"the process of flow run {flow_run} died; the run continues where it stopped")
            self._close_lost_runs()
            close_dead(self._registry, self._settings)
            self.prune()
        except Exception:  # a locked registry or a restarting Prefect server must not stop the servers
            logger.warning("chores postponed", exc_info=True)

    def prune(self) -> None:
        """Delete old answers and feedback, if the setting says so and an hour has passed."""
        days = self._settings.keep_predictions_days
        if not days or time.monotonic() < self._prune_due:
            return
        self._prune_due = time.monotonic() + PRUNE_EVERY_S
        deleted = retention.prune(registry=self._registry, settings=self._settings)
        if deleted:
            self._say(f"{deleted:,} rows of answers and feedback older than {days:g} days deleted")

    def _hand_over_schedules(self) -> None:
        """Domains are registered from several programs; this alone tells Prefect of their schedules."""
        for domain in self._registry.domains():
            cron = domain.spec.schedule
            if self._schedules.get(domain.name) != cron:
                prefect_client.schedule_retrain(domain.name, cron, api_url=self._settings.prefect_api)
                self._schedules[domain.name] = cron

    def _close_lost_runs(self) -> None:
        """Record the end of each run that ended in Prefect without reporting it, and that nothing resumes."""
        for run in self._registry.runs():
            if run.state not in ("queued", "running") or run.flow_run_id is None:
                continue
            state = prefect_client.state(run.flow_run_id, api_url=self._settings.prefect_api)
            since = self._ended_since.setdefault(run.id, time.monotonic()) if state.final else None
            if since is None:
                self._ended_since.pop(run.id, None)
            elif time.monotonic() - since > LOST_AFTER_S:
                self._registry.finish_run(
                    run.id,
                    state="cancelled" if state.kind == "CANCELLED" else "failed",
                    error=state.message or state.name,
                )
