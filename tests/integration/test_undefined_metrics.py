"""Users who have one label each: AUC within a user is not defined, and nothing may break on that."""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from orchestrator.cli import app

SMALL = ["--set", "epochs=1", "--set", "width=4", "--set", "lifelong=10", "--set", "batch_size=512"]
START = 1_760_000_000
SPEC = """
name: {name}
role: {role}
task: {task}
owner: team
{sources}
interactions: {{user: u, item: i, time: t, time_unit: s, label: y, label_range: [{low}, {high}]}}
"""


@pytest.fixture
def graft(tmp_path, monkeypatch):
    """Runs commands in a home of its own; each must end well."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))

    def run(*words):
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    return run


@pytest.fixture
def registered(graft, tmp_path):
    """Registers a source and a target whose labels hang on the user alone."""

    def register(task, low, high):
        for name, role, rows, start in (("reading", "source", 6_000, START), ("rooms", "target", 3_000, START + 10**6)):
            random = np.random.default_rng(0)
            user, item = random.integers(1, 300, rows), random.integers(1, 60, rows)
            time = np.sort(random.integers(start, start + 20 * 86_400, rows))
            label = np.where(user % 3 == 0, high, low)
            lines = [f"u{u},i{i},{t},{y}" for u, i, t, y in zip(user, item, time, label, strict=True)]
            (tmp_path / f"{name}.csv").write_text("\n".join(["u,i,t,y", *lines]))
            sources = "sources: [reading]" if role == "target" else ""
            page = SPEC.format(name=name, role=role, task=task, sources=sources, low=low, high=high)
            (tmp_path / f"{name}.yaml").write_text(page)
            graft("domains", "register", tmp_path / f"{name}.yaml", "-i", tmp_path / f"{name}.csv")

    return register


@pytest.mark.parametrize("task", ["ctr", "rating"])
def test_from_training_to_the_report_every_command_ends_well(graft, registered, tmp_path, task):
    """It says "not defined" where it is not; no NaN is shown, and what was published is not hidden by a failure."""
    registered(task, *((0, 1) if task == "ctr" else (1, 5)))
    assert "ready to launch" in graft("readiness", "rooms")
    trained = graft("train", "--local", *SMALL, "--set", f"task={task}")
    launched = graft("launch", "rooms", "--local", *SMALL)
    shown = graft("domains", "show", "rooms")
    graft("domains", "list")
    out = tmp_path / "report.html"
    graft("report", "rooms", "--out", out)
    page = re.sub(r"<style.*?</style>", "", out.read_text(), flags=re.S)
    for text in (trained, launched, shown, page):
        assert not re.search(r"\bnan\b", text, re.IGNORECASE), text
    if task == "ctr":
        assert "not defined" in launched
        assert "not defined" in page
