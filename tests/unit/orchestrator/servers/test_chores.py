"""Old answers are deleted: by command, and every hour by the supervisor if the setting says so."""

from datetime import UTC, datetime, timedelta

from typer.testing import CliRunner

from domains.registry.registry import Registry
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.cli import app
from orchestrator.servers.chores import Chores
from orchestrator.settings import Settings


def a_registry(settings: Settings) -> Registry:
    """One domain with an answer of two weeks ago and one of today."""
    registry = use_cases.open_registry(settings)
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
    monkeypatch.setenv("GRAFT_KEEP_PREDICTIONS_DAYS", "0")
    registry = a_registry(Settings())
    refused = CliRunner().invoke(app, ["prune"])
    assert refused.exit_code == 1
    assert "GRAFT_KEEP_PREDICTIONS_DAYS" in refused.output + refused.stderr
    done = CliRunner().invoke(app, ["prune", "--days", "7"])
    assert "1 old rows" in done.output
    assert set(registry.answered({"old", "new"})) == {"new"}


def test_the_supervisor_deletes_by_the_setting_once_an_hour(tmp_path):
    """At once, and then not before an hour has passed; 0 keeps all."""
    for days, left in ((0.0, {"old", "new"}), (7.0, {"new"})):
        settings = Settings(home=tmp_path / str(days), keep_predictions_days=days)
        registry = a_registry(settings)
        said: list[str] = []
        chores = Chores(settings, registry, said.append)
        chores.prune()
        assert set(registry.answered({"old", "new"})) == left
        assert len(said) == (days > 0)
        row = {"request_id": "old", "domain": "live", "user_id": "u1", "item_id": "i1"}
        registry.log_predictions([{**row, "at": datetime.now(UTC) - timedelta(days=14)}])
        chores.prune()
        assert "old" in registry.answered({"old"})


def test_upkeep_once_does_what_it_can_and_names_what_it_cannot(tmp_path, monkeypatch):
    """No Prefect server answers: old answers are deleted all the same, and the exit status is 1."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path))
    monkeypatch.setenv("GRAFT_PREFECT_API_URL", "http://127.0.0.1:1/api")
    registry = a_registry(Settings())
    row = {"request_id": "oldest", "domain": "live", "user_id": "u1", "item_id": "i1"}
    registry.log_predictions([{**row, "at": datetime.now(UTC) - timedelta(days=40)}])
    done = CliRunner().invoke(app, ["upkeep", "--once"])
    assert done.exit_code == 1
    assert "resume crashed failed: the Prefect server does not answer" in done.stderr
    assert set(registry.answered({"old", "new", "oldest"})) == {"old", "new"}
    assert Registry(Settings().registry_url).logged_rows() == 2
