"""What `graft status` says of each part, and that one which is away keeps no other unsaid."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import asdict

import psutil
import pytest
from typer.testing import CliRunner

from orchestrator import use_cases
from orchestrator.cli import app
from orchestrator.jobs import retention
from orchestrator.servers import overview, state
from orchestrator.settings import Settings


@pytest.fixture
def settings(tmp_path) -> Settings:
    settings = Settings(home=tmp_path, service_port=1, prefect_port=1)
    use_cases.open_registry(settings).close()
    return settings


def parts(settings: Settings) -> dict[str, overview.Part]:
    """By name."""
    return {part.name: part for part in overview.overview(settings)}


def started(settings: Settings, **supervisor: float) -> None:
    """Servers as if this process were one of them, and their supervisor unless it is said otherwise."""
    own = psutil.Process()
    running = state.ServersState(**{"supervisor_pid": own.pid, "supervisor_created": own.create_time(), **supervisor})
    running.servers = [state.RunningServer("ui", own.pid, own.create_time(), "", "ui.log", restarts=3)]
    settings.servers_file.write_text(json.dumps(asdict(running)))


def test_a_home_without_servers_is_well_but_for_its_upkeep(settings):
    """Its registry, its disk, its outbox; nobody deletes what is old."""
    found = parts(settings)
    assert {name for name, part in found.items() if not part.well} <= {"upkeep", "disk"}
    assert "0 domains" in found["domains"].says
    assert "GB free" in found["disk"].says
    registry = use_cases.open_registry(settings)
    retention.collect(registry=registry, settings=settings)
    assert parts(settings)["upkeep"].well


def test_servers_that_do_not_answer_are_said(settings):
    """With what it means."""
    started(settings)
    found = parts(settings)
    assert not found["service"].well
    assert "no run can start" in found["Prefect"].says
    assert found["supervisor"].says == "started again: ui 3 times"
    started(settings, supervisor_created=1.0)
    assert "takes the servers over" in parts(settings)["supervisor"].says


def test_a_locked_registry_is_said_within_seconds(settings):
    """It can be read, not written."""
    with closing(sqlite3.connect(settings.home / "registry.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        found = parts(settings)["registry"]
        assert time.monotonic() - began < 10
        other.execute("ROLLBACK")
    assert not found.well
    assert "not written: database is locked" in found.says
    assert parts(settings)["registry"].well


def test_a_registry_that_is_gone_or_damaged_is_said_beside_the_rest(settings):
    """Status itself makes no new one."""
    file = settings.home / "registry.db"
    file.unlink()
    found = parts(settings)
    assert not found["registry"].well
    assert "disk" in found
    assert not file.exists()
    file.write_bytes(b"no database at all" * 1000)
    assert not parts(settings)["registry"].well


def test_the_command_marks_what_is_wrong(settings, monkeypatch):
    """A line each."""
    monkeypatch.setenv("GRAFT_HOME", str(settings.home))
    shown = CliRunner().invoke(app, ["status"])
    assert shown.exit_code == 0
    assert "registry: read and written in" in shown.output
    assert "WRONG upkeep: nothing was ever deleted here" in shown.output
