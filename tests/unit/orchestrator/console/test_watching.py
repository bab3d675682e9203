"""Watching a run on the worker: a Prefect server or a database that is away for a while ends nothing."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.exc import OperationalError

from domains.errors import NotFound
from domains.registry.registry import Registry
from orchestrator import prefect_client, use_cases
from orchestrator.console import terminal
from orchestrator.errors import FlowsUnavailable, Unavailable
from orchestrator.prefect_client import FlowState
from orchestrator.settings import Settings


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def registry(settings, monkeypatch) -> Registry:
    """With a run ``r`` under way on the worker; starting one gives it, and no time passes between two looks."""
    registry = use_cases.open_registry(settings)
    registry.start_run("train-shared", None, params={}, by="ann", run_id="r")
    registry.link_flow_run("r", "flow")
    monkeypatch.setattr(use_cases, "start", lambda *_words, **_options: registry.run("r"))
    passed = iter(range(0, 10**6, 6))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: float(next(passed)))
    monkeypatch.setattr(terminal.time, "sleep", lambda seconds: None)
    return registry


def watch(registry: Registry, settings: Settings):
    return terminal.run_to_end("train-shared", local=False, registry=registry, settings=settings, by="ann")


def answers(monkeypatch, *said):
    """What Prefect says at each look: a state, an error, or what to call; the last for ever."""
    left = list(said)

    def state(flow_run_id: str, *, api_url: str) -> FlowState:
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        return now() if callable(now) else now

    monkeypatch.setattr(prefect_client, "state", state)


def succeeded(registry: Registry):
    def end() -> FlowState:
        registry.finish_run("r", state="succeeded")
        return FlowState("COMPLETED", "Completed", "")

    return end


def test_a_prefect_server_that_restarts_does_not_end_the_watching(registry, settings, monkeypatch):
    """Its answers fail for a while, then the run ends well."""
    away = FlowsUnavailable("the Prefect server does not answer")
    answers(monkeypatch, FlowState("RUNNING", "Running", ""), *[away] * 10, succeeded(registry))
    assert watch(registry, settings).state == "succeeded"


def test_a_locked_database_does_not_end_the_watching(registry, settings, monkeypatch):
    """Three reads in a row fail."""
    answers(monkeypatch, succeeded(registry))
    run, left = registry.run, [OperationalError("SELECT", None, sqlite3.OperationalError("locked"))] * 3

    def locked(run_id: str):
        if left:
            raise left.pop()
        return run(run_id)

    started = registry.run("r")
    monkeypatch.setattr(use_cases, "start", lambda *_words, **_options: started)
    monkeypatch.setattr(registry, "run", locked)
    assert watch(registry, settings).state == "succeeded"
    assert left == []


@pytest.mark.parametrize("fault", [FlowsUnavailable("no answer"), NotFound("Prefect knows nothing")])
def test_what_nobody_hears_of_for_minutes_is_told_with_where_to_look(registry, settings, monkeypatch, fault):
    """The run may go on; the watching ends."""
    answers(monkeypatch, fault)
    with pytest.raises(Unavailable, match="graft runs"):
        watch(registry, settings)


def test_a_run_that_ended_without_a_word_is_lost(registry, settings, monkeypatch):
    """After the time in which somebody would have resumed it."""
    answers(monkeypatch, FlowState("CRASHED", "Crashed", "no heartbeat"))
    with pytest.raises(Unavailable, match="no heartbeat"):
        watch(registry, settings)
