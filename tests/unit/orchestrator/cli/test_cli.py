"""The command line answers with tables when it works and with one line when it does not."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from domains.errors import UnknownDomain
from orchestrator.cli import app

CLOSED_PORT = "1"  # nothing listens on it


@pytest.fixture
def graft(tmp_path, monkeypatch):
    """Runs a command in a home of its own and gives its result."""
    for name, value in {
        "HOME": str(tmp_path / "home"),
        "SERVICE_PORT": CLOSED_PORT,
        "PREFECT_PORT": CLOSED_PORT,
    }.items():
        monkeypatch.setenv(f"GRAFT_{name}", value)
    monkeypatch.setenv("COLUMNS", "160")
    runner = CliRunner()
    return lambda *words: runner.invoke(app, [str(word) for word in words])


@pytest.fixture
def marketplace(graft, tmp_path) -> Path:
    """A tiny simulated marketplace on disk."""
    out = tmp_path / "market"
    assert graft("simulate", "--size", "tiny", "--out", out).exit_code == 0
    return out


def refused(result) -> str:
    """The one line on standard error of a refused command."""
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_domain_is_registered_with_its_data_and_listed(graft, marketplace):
    """Register and ingest in one command; the list shows what is there."""
    video = marketplace / "video"
    done = graft(
        *("domains", "register", video / "spec.yaml", "-i", video / "interactions.parquet"),
        *("--items", video / "items.csv", "--users", video / "users.csv"),
    )
    assert done.exit_code == 0, done.output
    assert "registered as a source domain" in done.output
    assert "0 set aside" in done.output
    listed = graft("domains", "list").output
    assert "video" in listed
    assert "data_ready" in listed


def test_ingesting_again_adds_nothing_twice(graft, marketplace):
    """The same file twice is known the second time."""
    video = marketplace / "video"
    graft("domains", "register", video / "spec.yaml", "-i", video / "interactions.parquet")
    again = graft("ingest", "video", "-i", video / "interactions.parquet")
    assert again.exit_code == 0, again.output
    assert " 0 added" in again.output


def test_registering_the_same_spec_again_changes_nothing(graft, marketplace):
    """The command is safe to repeat."""
    spec = marketplace / "video" / "spec.yaml"
    first, second = graft("domains", "register", spec), graft("domains", "register", spec)
    assert (first.exit_code, first.output) == (second.exit_code, second.output) == (0, first.output)


def test_a_name_that_is_taken_is_refused(graft, marketplace):
    """Another spec under the same name is a conflict, in one line."""
    spec = marketplace / "video" / "spec.yaml"
    graft("domains", "register", spec)
    spec.write_text(spec.read_text().replace("owner: ", "owner: another-"))
    assert "video" in refused(graft("domains", "register", spec))


def test_a_misspelt_key_is_named_with_its_file_and_line(graft, marketplace):
    """The line says what to correct, and where."""
    spec = marketplace / "video" / "spec.yaml"
    lines = spec.read_text().splitlines()
    at = next(number for number, line in enumerate(lines, 1) if line.startswith("role:"))
    spec.write_text("\n".join(lines).replace("role:", "rolle:"))
    line = refused(graft("domains", "register", spec))
    assert "rolle" in line
    assert "spec.yaml" in line
    assert str(at) in line


def test_a_file_that_is_not_there_is_named(graft, marketplace):
    """No such spec, no such events: the path is in the line."""
    assert "nowhere.yaml" in refused(graft("domains", "register", marketplace / "nowhere.yaml"))
    spec = marketplace / "video" / "spec.yaml"
    assert "nowhere.csv" in refused(graft("domains", "register", spec, "-i", marketplace / "nowhere.csv"))


@pytest.mark.parametrize(
    "words", [("domains", "show"), ("readiness",), ("launch",), ("promote", "--why", "x"), ("rollback", "--why", "x")]
)
def test_an_unknown_domain_is_named(graft, words):
    """Every command that takes a domain refuses one that nobody registered."""
    command = [
        *words[:1],
        *(words[1:2] if words[0] == "domains" else []),
        "ghost",
        *(words[1:] if "--why" in words else []),
    ]
    assert "ghost" in refused(graft(*command))


def test_a_choice_that_the_recipe_lacks_is_named_before_anything_starts(graft):
    """A misspelt option does not cost a training run."""
    assert "did you mean epochs?" in refused(graft("train", "--set", "epoch=2"))
    assert "epochs" in refused(graft("train", "--set", "epochs=none"))


def test_without_a_service_a_ranking_says_where_it_looked(graft):
    """The address that does not answer is in the line."""
    assert f"127.0.0.1:{CLOSED_PORT}" in refused(graft("rank", "video", "--user", "u", "--items", "a,b"))


def test_without_servers_a_run_says_how_to_start_them(graft, marketplace):
    """The Prefect server is named, and so is the command that starts it."""
    video = marketplace / "video"
    graft("domains", "register", video / "spec.yaml", "-i", video / "interactions.parquet")
    line = refused(graft("train"))
    assert "Prefect" in line
    assert "graft up" in line


def test_a_run_that_could_not_start_is_recorded(graft):
    """It is listed as failed."""
    graft("train")
    assert "failed" in graft("runs").output


def test_status_and_down_know_that_nothing_runs(graft):
    """Both are safe at any time."""
    assert "no servers are running" in graft("status").output
    assert "no servers are running" in graft("down").output


def test_an_unknown_public_data_set_lists_the_known_ones(graft, tmp_path):
    """A usage error, with what would be right."""
    result = graft("data", "nonesuch", "--path", tmp_path, "--out", tmp_path)
    assert result.exit_code == 2
    assert "douban" in result.output


def test_a_bug_keeps_its_traceback(graft, monkeypatch):
    """Only errors that a user can correct become one line."""
    monkeypatch.setattr("domains.registry.registry.Registry.domains", lambda self: 1 / 0)
    result = graft("domains", "list")
    assert isinstance(result.exception, ZeroDivisionError)


def test_the_traceback_of_an_error_is_shown_when_asked_for(graft):
    """The one line becomes the place where it was raised."""
    assert isinstance(graft("--traceback", "domains", "show", "ghost").exception, UnknownDomain)


@pytest.mark.slow
def test_help_needs_no_framework():
    """`graft --help` answers at once: none of the heavy packages is loaded for it."""
    code = (
        "import sys; from orchestrator import cli; "
        "print([name for name in ('torch', 'prefect', 'feast', 'bentoml', 'streamlit') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
