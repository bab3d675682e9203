"""Old answers are deleted: by command, and by the servers every hour where the setting says so."""

import threading
from datetime import UTC, datetime, timedelta

from typer.testing import CliRunner

from domains.registry.registry import Registry
from domains.spec import DomainSpec
from orchestrator.cli import app
from orchestrator.servers import supervisor as stack
from orchestrator.settings import Settings


def a_registry(settings: Settings) -> Registry:
    """One domain with an answer of two weeks ago and one of today."""
    settings.home.mkdir(parents=True, exist_ok=True)
    registry = Registry(settings.registry_url)
    registry.migrate()
    columns = {"user": "u", "item": "i", "label": "y"}
    declared = {"name": "live", "role": "source", "task": "ctr", "owner": "team", "interactions": columns}
    registry.register_domain(DomainSpec.from_mapping(declared), by="ann")
    for request, days in (("old", 14), ("new", 0)):
        row = {"request_id": request, "domain": "live", "user_id": "u1", "item_id": "i1"}
        registry.log_predictions([{**row, "at": datetime.now(UTC) - timedelta(days=days)}])
    return registry


def test_the_command_deletes_what_is_older_and_asks_for_the_days(tmp_path, monkeypatch):
    """Without days, here or in the settings, it refuses in one line."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path))
    registry = a_registry(Settings())
    refused = CliRunner().invoke(app, ["prune"])
    assert refused.exit_code == 1
    assert "GRAFT_KEEP_PREDICTIONS_DAYS" in refused.output + refused.stderr
    done = CliRunner().invoke(app, ["prune", "--days", "7"])
    assert "1 old rows" in done.output
    assert set(registry.answered({"old", "new"})) == {"new"}


def test_the_servers_delete_by_the_setting_once_an_hour(tmp_path):
    """Off unless it is set; on, the first chores do it and the next ones wait."""
    for days, left in ((0.0, {"old", "new"}), (7.0, {"new"})):
        settings = Settings(home=tmp_path / str(days), keep_predictions_days=days)
        registry = a_registry(settings)
        said: list[str] = []
        supervisor = stack._Supervisor(settings, [], registry, said.append, threading.Event())
        supervisor._prune()
        assert set(registry.answered({"old", "new"})) == left
        assert len(said) == (days > 0)
        row = {"request_id": "old", "domain": "live", "user_id": "u1", "item_id": "i1"}
        registry.log_predictions([{**row, "at": datetime.now(UTC) - timedelta(days=14)}])
        supervisor._prune()
        assert "old" in registry.answered({"old"})
