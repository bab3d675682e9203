"""Whatever is wrong with the words, the settings or the spec: one line names it, and the exit status says so."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import duckdb
import pytest
import typer
from typer.testing import CliRunner

from domains.ingestion.engine import engine_faults, interruptible
from orchestrator.cli import app, interruption
from orchestrator.settings import Settings

SPEC = "name: dd\nrole: source\ntask: ctr\nowner: t\ninteractions: {user: u, item: i, time: t, label: y}\n"


@pytest.fixture
def graft(tmp_path, monkeypatch):
    """A command in a home of its own, where the domain ``dd`` is registered."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    # Ports that nothing listens on.
    for port in ("SERVICE", "UI", "PREFECT"):
        monkeypatch.setenv(f"GRAFT_{port}_PORT", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "e.csv").write_text("u,i,t,y\na,1,1764000000,1\n")

    def run(*words):
        return CliRunner().invoke(app, list(words))

    assert run("domains", "register", "spec.yaml").exit_code == 0
    return run


def line_of(result) -> str:
    """The one line on standard error."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, (lines, result.exception)
    assert lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ("nope", 2, "'nope'"),
        ("--nope", 2, "--nope"),
        ("domains nope", 2, "'nope'"),
        ("domains show", 2, "'name'"),
        ("domains list extra", 2, "extra"),
        ("domains show nope", 1, "'nope'"),
        ("domains register none.yaml", 1, "none.yaml: cannot be read"),
        ("domains register .", 1, "Is a directory"),
        ("domains register /dev/zero", 1, "/dev/zero: is no file"),
        ("domains register spec.yaml --items e.csv", 2, "--interactions"),
        ("domains register spec.yaml -i e.csv --users e.csv", 1, "the spec declares none"),
        ("ingest", 2, "'name'"),
        ("ingest dd", 2, "--interactions"),
        ("ingest nope -i e.csv", 1, "'nope'"),
        ("ingest dd -i none.csv", 1, "none.csv: cannot be read"),
        ("ingest dd -i .", 1, "is a folder"),
        ("readiness nope", 1, "'nope'"),
        ("preview nope --local", 1, "'nope'"),
        ("preview dd", 1, "'dd' is a source"),
        ("train", 1, "the Prefect server does not answer"),
        ("train --set", 2, "--set"),
        ("train --set x --local", 2, "name=value"),
        ("train --set x=1 --local", 1, "no choice 'x'"),
        ("train --set epoch=1 --local", 1, "did you mean epochs"),
        ("train --set epochs=abc --local", 1, "epochs"),
        ("train --set epochs=-1 --local", 1, "epochs"),
        ("train --set epochs=.nan --local", 1, "epochs"),
        ("train --set epochs={ --local", 2, "epochs={"),
        ("train --local", 1, "no domain has data yet"),
        ("launch nope --local", 1, "'nope'"),
        ("launch dd", 1, "'dd' is a source"),
        ("report nope", 1, "'nope'"),
        ("report dd", 1, "launch it first"),
        ("promote dd", 2, "--why"),
        ("promote dd --why x", 1, "launch it first"),
        ("promote dd zzz --why x", 1, "'zzz'"),
        ("rollback dd --why x", 1, "nothing is live"),
        ("cancel nope", 1, "'nope'"),
        ("runs nope", 1, "'nope'"),
        ("runs --limit 0", 2, "--limit"),
        ("rank dd", 2, "--user"),
        ("rank dd --user a", 2, "--items"),
        ("rank dd --user a --items x", 1, "does not answer"),
        ("prune --days -1", 2, "--days"),
        ("prune --days inf", 2, "--days"),
        ("simulate", 2, "--out"),
        ("simulate --out s --size huge", 1, "'huge'"),
        ("simulate --out s --seed -1", 2, "--seed"),
        ("simulate --out /dev/null/x --size tiny", 1, "/dev/null/x"),
        ("data nope --path . --out s", 2, "'nope'"),
        ("data movielens --path none --out s", 1, "none"),
        ("bench nope", 1, "'nope'"),
        ("domains pause nope --why x", 1, "'nope'"),
        ("backup", 2, ""),
        ("restore none", 1, "none"),
        ("users remove nope", 1, "'nope'"),
        ("keys add", 2, "'name'"),
        ("keys revoke nope", 1, "'nope'"),
        ("deploy", 1, "the Prefect server does not answer"),
        ("demo --data nope --local", 1, "'nope'"),
    ],
)
def test_a_wrong_word_is_named_in_one_line(graft, words, status, says):
    """Misused commands end with 2, impossible ones with 1; nobody reads a box or a page."""
    result = graft(*words.split())
    assert says in line_of(result)
    assert result.exit_code == status


def test_a_command_without_arguments_shows_its_help(graft):
    """That is no mistake."""
    for words in ([], ["domains"], ["keys"]):
        assert "Usage" in graft(*words).stdout


WRONG_SETTINGS = {
    "home": ["", "a?b", "/dev/null/x", "e.csv", "x" * 300],
    "database_url": ["mysql://x/y", "sqlite://", "sqlite:///", "nonsense", "postgresql://h:port/x", "://"],
    "online_store": ["paper", ""],
    "online_store_address": ["a b"],
    "bind_host": ["", "not a host", "-"],
    "service_port": ["", "0", "65536", "3.5", "many"],
    "ui_port": ["70000"],
    "prefect_port": ["-4"],
    "service_workers": ["0"],
    "service_keep_alive_s": ["0", "1e9"],
    "api_key": ["\u00fc", "a b"],
    "prefect_api_url": ["nonsense", "ftp://x", "http://", "http://u:sEcreT@h/api"],
    "prefect_auth": ["sEcreT", "a b:c"],
    "device": ["tpu"],
    "frozen_cache_mb": ["-1"],
    "threads": ["-1"],
    "required_baselines": ["luck", "popularity,luck"],
    "required_seeds": ["0", "21"],
    "price_per_processor_hour": ["-1", "nan", "inf", "1,5"],
    "currency": ["x" * 17, "a\nb"],
    "keep_predictions_days": ["-1", "inf", "1e300"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG_SETTINGS.items() for value in values]
)
def test_a_setting_that_cannot_be_is_named(graft, monkeypatch, name, value):
    """By its variable, before anything starts; never with a secret."""
    monkeypatch.setenv(f"GRAFT_{name.upper()}", value)
    result = graft("domains", "list")
    assert result.exit_code == 1
    line = line_of(result)
    assert f"GRAFT_{name.upper()}: " in line
    assert "sEcreT" not in line


def test_every_setting_is_among_those_that_can_be_wrong():
    """A new one is tried too; these take every value of their type."""
    free = {"import_dir", "log_mb", "log_files"}
    assert set(Settings.model_fields) >= set(WRONG_SETTINGS)
    unchecked = set(Settings.model_fields) - set(WRONG_SETTINGS) - free
    assert all(Settings.model_fields[name].metadata for name in unchecked), unchecked


NESTED = "a: " + "[" * 2000 + "]" * 2000
WRONG_SPECS = {
    "a key twice": (SPEC + "owner: x\n", ":6: owner: key 'owner' is given twice, first on line 4"),
    "a key twice inside": (SPEC.replace("label: y", "label: y, label: z"), ":5: interactions.label: .* twice"),
    "a tab": ("name: a\n\trole: source\n", ":2: .*cannot start"),
    "an anchor": ("a: &a [1]\nb: *a\n", ":2: .*aliases are not read"),
    "laughs": ("a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]\n", ":2: .*aliases are not read"),
    "a merge": ("<<: {name: x}\n" + SPEC, ":1: <<: unknown key"),
    "a list": ("- a\n", ":1: must be keys with values"),
    "text": ("hello", ":1: must be keys with values"),
    "nothing": ("", ":1: must be keys with values"),
    "two pages": (SPEC + "---\n" + SPEC, ":6: .*another document"),
    "depth": (NESTED, "nested too deeply"),
    "a megabyte": ("a: " + "x" * (1 << 20), "larger than a megabyte"),
    "a class": ('name: !!python/object/apply:os.system ["true"]\n', ":1: .*constructor"),
    "a number of 6,000 digits": (SPEC.replace("owner: t", "owner: " + "9" * 6000), ":4: .*is no number"),
    "a tag that does not fit": ("name: !!float x\n", ":1: .*'x' is no number"),
    "a number for a key": ("1: 2\n" + SPEC, ":1: 1: "),
    "a list for a key": ("? [1, 2]\n: 3\n" + SPEC, ":1: "),
    "a mapping for a text": (SPEC.replace("owner: t", "owner: {a: b}"), ":4: owner: must be"),
    "Latin-1": ("name: \u00e9\n".encode("latin-1"), ":1: is not UTF-8"),
    "UTF-16": (SPEC.encode("utf-16"), ":1: is not UTF-8"),
    "a NUL": ("name: a\0b\n", ":1: holds a character"),
    "a misspelt key": (SPEC.replace("owner", "ownr"), ":4: ownr: unknown key; did you mean 'owner'"),
    "a misspelt key of another section": (SPEC + "labell: y\n", "did you mean 'interactions.label'"),
    "3,000 unknown keys": (SPEC + "".join(f"k{at}: 1\n" for at in range(3000)), ":6: k0: unknown key"),
    "an unknown source": (SPEC.replace("source", "target") + "sources: [gone]\n", "sources: no domain .* 'gone'"),
}


@pytest.mark.parametrize("case", WRONG_SPECS)
def test_a_broken_spec_is_named_by_line_and_field(graft, tmp_path, case):
    """In bounded time and words."""
    content, says = WRONG_SPECS[case]
    (tmp_path / "wrong.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    began = time.monotonic()
    line = line_of(graft("domains", "register", "wrong.yaml"))
    assert re.search(says, line), line
    assert "None" not in line
    assert len(line) < 5_000
    assert time.monotonic() - began < 30


def test_a_pipe_is_no_spec(graft, tmp_path):
    """To open one would wait for ever."""
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "is no file" in line_of(graft("domains", "register", "pipe.yaml"))


def test_what_a_file_holds_never_reaches_the_terminal_as_orders(graft, tmp_path):
    """An escape sequence in a bad row is shown, not obeyed."""
    (tmp_path / "e.csv").write_text("u,i,t,y\n\x1b[31ma,1,never,1\n")
    line = line_of(graft("ingest", "dd", "-i", "e.csv"))
    assert ("\x1b" in line, "\\x1b[31ma" in line) == (False, True)


def test_what_is_no_prediction_service_is_said(graft, monkeypatch):
    """Another server on its port answers something else."""
    import httpx

    monkeypatch.setattr(httpx, "post", lambda *_, **__: httpx.Response(200, text="<html>"))
    assert "GRAFT_SERVICE_PORT" in line_of(graft("rank", "dd", "--user", "a", "--items", "x"))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("turned_into", [KeyboardInterrupt, RuntimeError])
def test_a_signal_ends_a_command_with_one_line(monkeypatch, number, status, turned_into):
    """Also where a library turns it into an error of its own; the handlers are put back."""
    before = signal.getsignal(number)

    def work():
        try:
            os.kill(os.getpid(), number)
            time.sleep(20)
        except KeyboardInterrupt:
            raise turned_into from None

    monkeypatch.setattr(
        app, "registered_commands", [*app.registered_commands, typer.models.CommandInfo("work", callback=work)]
    )
    result = CliRunner().invoke(app, ["work"])
    assert (result.exit_code, result.stderr.strip()) == (status, interruption.LINE[number])
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_command_line_loads_ends_it_with_one_line(number):
    """That takes seconds, and begins nothing."""
    script = f"import os, sys; sys.argv = ['graft']; import orchestrator.cli; os.kill(os.getpid(), {int(number)})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (interruption.STATUS[number], f"{interruption.LINE[number]}\n".encode())


def test_ctrl_c_ends_a_long_query_at_once(tmp_path):
    """A query is one step of Python's, however long it takes."""
    began = time.monotonic()

    def ask_for_long():
        with engine_faults(tmp_path), duckdb.connect() as con, interruptible(con):
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            con.execute("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b").fetchall()

    with interruption.heeded(), pytest.raises(KeyboardInterrupt):
        ask_for_long()
    assert time.monotonic() - began < 20
    assert interruption.met() is signal.SIGINT
