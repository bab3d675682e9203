"""Runs of which nobody hears any more: started again, so many times, or recorded as ended."""

from __future__ import annotations

import pytest

from domains.errors import NotFound
from domains.registry.registry import Registry
from orchestrator import prefect_client, use_cases
from orchestrator.jobs import runner
from orchestrator.jobs.runner import ProcessAtWork
from orchestrator.prefect_client import FlowState
from orchestrator.servers import chores
from orchestrator.servers.chores import Chores
from orchestrator.settings import Settings


class Prefect:
    """A Prefect server that knows one flow run."""

    def __init__(self, monkeypatch) -> None:
        self.now: FlowState | None = FlowState("RUNNING", "Running", "")
        self.starts_left = 3
        for name in ("state", "start_again"):
            monkeypatch.setattr(prefect_client, name, getattr(self, name))
        monkeypatch.setattr(prefect_client, "resume_crashed", lambda api_url: [])

    def state(self, flow_run_id: str, *, api_url: str) -> FlowState:
        if self.now is None:
            raise NotFound("Prefect knows nothing")
        return self.now

    def start_again(self, flow_run_id: str, *, api_url: str) -> bool:
        self.starts_left -= 1
        if self.starts_left >= 0:
            self.now = FlowState("SCHEDULED", "Resuming", "")
        return self.starts_left >= 0


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def registry(settings) -> Registry:
    """With a run ``r`` under way on the worker."""
    registry = use_cases.open_registry(settings)
    registry.start_run("train-shared", None, params={}, by="ann", run_id="r")
    registry.link_flow_run("r", "flow")
    return registry


@pytest.fixture
def prefect(monkeypatch) -> Prefect:
    return Prefect(monkeypatch)


@pytest.fixture
def turns(settings, registry, prefect, monkeypatch):
    """Has the chores done so many times, a minute apart."""
    passed = [1000.0]
    monkeypatch.setattr(chores.time, "monotonic", lambda: passed[0])
    all_of_them = Chores(settings, registry, lambda line: None)

    def do(count: int = 2) -> str:
        for _ in range(count):
            passed[0] += 60
            all_of_them.do()
        return registry.run("r").state

    return do


@pytest.mark.parametrize("kind", ["CRASHED", "FAILED"])
def test_a_run_whose_start_failed_with_the_prefect_server_is_started_again(prefect, turns, kind):
    """It has not reported, so nothing is wrong with the run itself; the fourth such end is its last."""
    for left in (2, 1, 0):
        prefect.now = FlowState(kind, kind.title(), "connection refused")
        assert turns() == "running"
        assert prefect.starts_left == left
        assert prefect.now.kind == "SCHEDULED"
    prefect.now = FlowState(kind, kind.title(), "connection refused")
    assert turns() == "failed"


def test_a_run_that_reported_its_failure_is_left_alone(registry, prefect, turns):
    """Bad data stays bad."""
    registry.finish_run("r", state="failed", error="too few rows")
    prefect.now = FlowState("FAILED", "Failed", "too few rows")
    turns()
    assert prefect.starts_left == 3


def test_a_process_that_died_with_the_prefect_server_is_noticed(settings, registry, prefect, turns):
    """Prefect says Running for ever; the process of this machine is gone."""
    turns()
    assert prefect.starts_left == 3, "nothing is known of its process yet"
    context = runner.RunContext("r", "train-shared", None, {}, "ann", registry, settings)
    runner.note_process(context)
    turns()
    assert prefect.starts_left == 3, "it lives"
    here = context.result_of(runner.PROCESS, ProcessAtWork)
    context.write(runner.PROCESS, ProcessAtWork(host=here.host, pid=here.pid, created=here.created - 1000))
    turns()
    assert prefect.starts_left == 2


def test_a_run_that_prefect_does_not_know_is_closed(registry, prefect, turns):
    """As after a restored backup; it keeps no other chore from being done."""
    prefect.now = None
    assert turns() == "failed"
    assert "restored backup" in registry.run("r").error


def test_a_cancelled_run_is_not_started_again(prefect, turns):
    """Somebody stopped it."""
    prefect.now = FlowState("CANCELLED", "Cancelled", "stopped")
    assert turns() == "cancelled"
    assert prefect.starts_left == 3


@pytest.mark.usefixtures("prefect")
def test_a_chore_that_fails_keeps_no_other_from_being_done(settings, registry, turns, monkeypatch, caplog):
    """Prefect is away: what needs the registry alone is done, and the log says it once."""

    def away(*_words, **_options):
        raise prefect_client.FlowsUnavailable("the Prefect server does not answer")

    for name in ("state", "resume_crashed"):
        monkeypatch.setattr(prefect_client, name, away)
    registry.start_run("ingest", None, params={}, by="ann", run_id="local")
    context = runner.RunContext("local", "ingest", None, {}, "ann", registry, settings)
    runner.note_process(context)
    here = context.result_of(runner.PROCESS, ProcessAtWork)
    context.write(runner.PROCESS, ProcessAtWork(host=here.host, pid=here.pid, created=here.created - 1000))
    turns(5)
    assert registry.run("local").state == "failed"
    assert sum("resume crashed postponed" in record.message for record in caplog.records) == 1
