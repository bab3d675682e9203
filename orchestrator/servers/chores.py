"""The regular work on a home: new schedules, crashed and lost runs, what may be forgotten.

The supervisor does it beside its servers, and ``graft upkeep`` where there is no supervisor, as in containers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from domains.errors import NotFound
from domains.registry.registry import Registry, Run
from orchestrator import prefect_client
from orchestrator.errors import as_line
from orchestrator.jobs import retention
from orchestrator.jobs.runner import close_dead, process_died
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

EVERY_S = 5
PRUNE_EVERY_S = 3600
LOST_AFTER_S = 30
"""A flow run that ended this long ago without the registry knowing will not be resumed by anybody else."""


class Chores:
    """The chores of one home; ``say`` receives each line meant for a person."""

    def __init__(self, settings: Settings, registry: Registry, say: Callable[[str], None]) -> None:
        self._settings, self._registry, self._say = settings, registry, say
        self._schedules: dict[str, str | None] = {}
        self._gone_since: dict[str, float] = {}
        self.faults: dict[str, str] = {}
        """What could not be done at the last turn, and why, by the name of the chore."""
        self._due = self._prune_due = 0.0

    def do(self) -> None:
        """Do all of them, when they are due; one that fails keeps none of the others from being done."""
        if time.monotonic() < self._due:
            return
        for chore in (
            self._hand_over_schedules,
            self._resume_crashed,
            self._end_lost_runs,
            self._close_dead,
            self.prune,
        ):
            try:
                chore()
                self.faults.pop(_name(chore), None)
            except Exception as fault:  # a locked registry or a restarting Prefect server must not stop the servers
                self._postponed(_name(chore), fault)
        self._due = time.monotonic() + EVERY_S

    def _postponed(self, chore: str, fault: Exception) -> None:
        # Once per outage: the chores come round every few seconds.
        reason = as_line(fault)
        if self.faults.get(chore) != reason:
            logger.warning("%s postponed: %s", chore, reason)
        self.faults[chore] = reason

    def prune(self) -> None:
        """Forget what the settings no longer keep, once an hour."""
        if time.monotonic() < self._prune_due:
            return
        self._prune_due = time.monotonic() + PRUNE_EVERY_S
        if said := retention.collect(registry=self._registry, settings=self._settings).in_words():
            self._say(f"deleted, as the settings keep no more: {said}")

    def _hand_over_schedules(self) -> None:
        """Domains are registered from several programs; this alone tells Prefect of their schedules."""
        for domain in self._registry.domains():
            cron = None if domain.state == "retired" else domain.spec.schedule
            if self._schedules.get(domain.name) != cron:
                prefect_client.schedule_retrain(domain.name, cron, api_url=self._settings.prefect_api)
                self._schedules[domain.name] = cron

    def _resume_crashed(self) -> None:
        for flow_run in prefect_client.resume_crashed(api_url=self._settings.prefect_api):
            self._say(f"the process of flow run {flow_run} is gone; the run continues where it stopped")

    def _close_dead(self) -> None:
        close_dead(self._registry, self._settings)

    def _end_lost_runs(self) -> None:
        """Start a run again that ended in Prefect, or whose process ended here, without a report; else record its end.

        Both happen when the Prefect server dies with it: nobody hears of a crash, and what was just starting fails.
        """
        waiting = [run for run in self._registry.unfinished_runs() if run.flow_run_id is not None]
        self._gone_since = {run.id: self._gone_since[run.id] for run in waiting if run.id in self._gone_since}
        for run in waiting:
            reason = self._why_lost(run)
            since = None if reason is None else self._gone_since.setdefault(run.id, time.monotonic())
            if since is None:
                self._gone_since.pop(run.id, None)
            elif time.monotonic() - since > LOST_AFTER_S:
                self._gone_since.pop(run.id, None)
                self._end(run, str(reason))

    def _why_lost(self, run: Run) -> str | None:
        """Why nobody works on a run that the registry takes to be under way; None if somebody may."""
        assert run.flow_run_id is not None
        try:
            state = prefect_client.state(run.flow_run_id, api_url=self._settings.prefect_api)
        except NotFound:
            return "Prefect does not know it, as after a restored backup; start it again"
        if state.final:
            return state.message or state.name
        return "its process ended without a word" if state.kind == "RUNNING" and self._died(run) else None

    def _died(self, run: Run) -> bool:
        return process_died(run.id, self._settings)

    def _end(self, run: Run, reason: str) -> None:
        assert run.flow_run_id is not None
        try:
            state = prefect_client.state(run.flow_run_id, api_url=self._settings.prefect_api)
            if state.kind != "CANCELLED" and prefect_client.start_again(
                run.flow_run_id, api_url=self._settings.prefect_api
            ):
                self._say(f"run {run.id} was lost ({reason}) and is started again")
                return
            ended = "cancelled" if state.kind == "CANCELLED" else "failed"
        except NotFound:
            ended = "failed"
        self._registry.finish_run(run.id, state="cancelled" if ended == "cancelled" else "failed", error=reason)


def _name(chore: Callable[[], None]) -> str:
    return chore.__name__.strip("_").replace("_", " ")
