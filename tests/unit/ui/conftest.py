"""For the tests of pages: a home of its own, a registry, and one with a version to decide on."""

import pytest

from domains.ingestion.ingest import ingest
from domains.registry.records import Version
from domains.registry.registry import Registry
from models.intervals import Interval
from orchestrator.data import version_check
from orchestrator.evaluation.report import HeldOut
from orchestrator.settings import Settings
from tests.unit.ui.fake_domains import CERTIFICATE, JUDGED, REPORT, spec, write_events
from ui import session

CLOSED_PORT = "1"  # nothing listens on it


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    """A home of its own, with no server up, looked at from this machine."""
    monkeypatch.setattr(session, "visitor", lambda: (None, None))
    for name, value in {
        "HOME": str(tmp_path / "home"),
        "IMPORT_DIR": str(tmp_path),
        "SERVICE_PORT": CLOSED_PORT,
        "PREFECT_PORT": CLOSED_PORT,
    }.items():
        monkeypatch.setenv(f"GRAFT_{name}", value)
    return Settings()


@pytest.fixture
def registry(settings) -> Registry:
    """The registry that the pages read."""
    settings.home.mkdir(parents=True)
    registry = Registry(settings.registry_url)
    registry.migrate()
    return registry


@pytest.fixture
def full(registry, settings, tmp_path, monkeypatch) -> Registry:
    """A source and a target with data, a shared model, and a challenger that passed its gate; no version has files."""
    monkeypatch.setattr(version_check, "check", lambda version, **known: None)
    for name, role in (("video", "source"), ("live", "target")):
        domain = registry.register_domain(spec(name, role), by="ann")
        report = ingest(
            domain.spec,
            number=domain.number,
            interactions=[write_events(tmp_path / f"{name}.csv")],
            data_dir=settings.data_dir,
        )
        registry.record_ingest(name, report.ingest_id, report.as_dict())
    held_out = HeldOut(
        examples=50,
        rows={row: {"auc": Interval(0.65, 0.6, 0.7)} for row in ("shared", "item_mean", "train_mean")},
    )
    registry.add_version(Version(id="b" * 64, kind="backbone", artifact="x:1", metrics={"video": held_out.as_dict()}))
    registry.promote(None, "b" * 64, expect=None, who="ann", why="first")
    common = {"kind": "adapter", "domain": "live", "backbone_id": "b" * 64}
    untrained = Version(id="1" * 64, artifact="x:2", level="zero_shot", report=JUDGED.as_dict(), **common)
    registry.add_version(untrained)
    registry.promote("live", "1" * 64, expect=None, who="ann", why="first answers")
    registry.add_version(
        Version(
            id="a" * 64,
            artifact="x:3",
            level="adapter",
            report=REPORT.as_dict(),
            certificate=CERTIFICATE.as_dict(),
            **common,
        )
    )
    registry.offer("live", registry.versions("live", "adapter")[0].id, by="ann")
    return registry
