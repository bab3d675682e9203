"""`graft demo` runs every step of the main job, on simulated data and in one process."""

import pytest
from typer.testing import CliRunner

from domains.errors import NotFound, Rejected
from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatorConfig, simulate
from orchestrator.cli import app, demo
from orchestrator.settings import Settings


def test_the_demo_ends_with_a_launched_version_and_its_report(tmp_path, monkeypatch):
    """Each step has its heading; the version offered is recorded with its certificate and the gate's decision."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path))
    shown = CliRunner().invoke(app, ["demo", "--local", "--size", "tiny"])
    assert shown.exit_code == 0, shown.output
    headings = (
        "Data of a marketplace",
        "Train the shared model",
        "Register the new domain",
        "Launch 'live'",
        "Promote",
    )
    places = [shown.output.index(heading) for heading in headings]
    assert places == sorted(places)
    assert "gate: " in shown.output
    assert "Ask the endpoint" not in shown.output, "no servers, no endpoint"
    (version,) = [found for found in Registry(Settings().registry_url).versions("live") if found.level == "adapter"]
    assert version.certificate


def test_a_data_set_that_is_not_there_is_named_before_anything_starts(tmp_path):
    """The name, or the folder."""
    with pytest.raises(NotFound, match="nonesuch"):
        demo.run(Settings(home=tmp_path), data="nonesuch", local=True)
    with pytest.raises(NotFound, match="--path FOLDER"):
        demo.run(Settings(home=tmp_path), data="amazon", path=tmp_path / "nowhere", local=True)


def test_data_without_a_target_domain_is_refused(tmp_path, monkeypatch):
    """There is nothing to launch."""
    sources = [made for made in simulate(SimulatorConfig(size="tiny"), tmp_path / "made") if made.spec.role == "source"]
    monkeypatch.setattr(demo, "simulate", lambda config, out: sources)
    with pytest.raises(Rejected, match="no target domain"):
        demo.run(Settings(home=tmp_path), local=True)
