"""Settings, terminals and databases that do not fit: one line that names them, and no secret in it."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from domains.registry.registry import Registry
from orchestrator.cli import app
from orchestrator.jobs import runner
from orchestrator.settings import Settings


def one_line(result) -> str:
    """What a refused command says."""
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def graft(tmp_path, monkeypatch):
    """A command in a home of its own."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    return lambda *words: CliRunner().invoke(app, list(words))


@pytest.mark.parametrize("character", list("@:/#?%[] \\\"'"))
@pytest.mark.parametrize("place", ["p{}sEcreT", "sEc{}reT", "sEcreT{}"])
def test_no_piece_of_a_password_is_printed(graft, monkeypatch, character, place):
    """Whatever it holds, encoded or not: one line, and neither half of it."""
    monkeypatch.setenv("GRAFT_DATABASE_URL", f"postgresql://u:{place.format(character)}@127.0.0.1:1/x")
    line = one_line(graft("domains", "list"))
    assert "GRAFT_DATABASE_URL" in line or "URL" in line
    assert not any(piece in line for piece in ("sEc", "reT", "sEcreT"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVICE_PORT", "many"),
        ("DEVICE", "tpu"),
        ("REQUIRED_SEEDS", "0"),
        ("THREADS", "-1"),
        ("REQUIRED_BASELINES", "luck"),
        ("ONLINE_STORE", "paper"),
    ],
)
def test_a_setting_that_is_wrong_is_named(graft, monkeypatch, name, value):
    """By the name under which it was set."""
    monkeypatch.setenv(f"GRAFT_{name}", value)
    assert f"GRAFT_{name}" in one_line(graft("domains", "list"))


def test_a_home_that_cannot_be_written_is_named(graft, monkeypatch, tmp_path):
    """A file where the folder should be is as bad as a folder without the right to write."""
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "taken"))
    assert "taken" in one_line(graft("domains", "list"))


def test_a_registry_that_is_a_folder_is_named(graft, tmp_path):
    """SQLite says only that it cannot open the file."""
    (tmp_path / "home" / "registry.db").mkdir(parents=True)
    assert "registry.db" in one_line(graft("domains", "list"))


def test_a_terminal_of_few_characters_shows_the_others_escaped(tmp_path):
    """The work is done, so the command ends well."""
    spec = tmp_path / "s.yaml"
    interactions = "{user: u, item: i, time: t, label: y}"
    spec.write_text(f"name: loc\nrole: source\ntask: ctr\nowner: t\ninteractions: {interactions}\n")
    events = tmp_path / "イベント.csv"
    events.write_text("u,i,t,y\na.0,1,1764000000,1\n12.0,2,1764000001,1\n")
    environment = {"PATH": "/usr/bin:/bin", "GRAFT_HOME": str(tmp_path / "home"), "PYTHONIOENCODING": "latin-1"}
    environment["PYTHONPATH"] = ":".join(sys.path)
    command = [sys.executable, "-m", "orchestrator.cli", "domains", "register", str(spec), "-i", str(events)]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"\\u30a4" in done.stdout


def test_a_killed_ingest_is_closed_at_the_next_look(graft, tmp_path):
    """It left the record of a process that is no more."""
    settings = Settings(home=tmp_path / "home")
    registry = Registry(settings.registry_url)
    registry.migrate()
    run = registry.start_run("ingest", None, params={}, by="ann", run_id=runner.new_run_id("ingest"))
    context = runner.RunContext(run.id, "ingest", None, {}, "ann", registry, settings)
    runner.note_process(context)
    noted = context.result_of(runner.PROCESS, runner.ProcessAtWork)
    context.write(runner.PROCESS, runner.ProcessAtWork(host=noted.host, pid=noted.pid, created=noted.created - 60))
    assert graft("runs").exit_code == 0
    assert registry.run(run.id).state == "failed"
