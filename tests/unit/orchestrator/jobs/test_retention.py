"""A home forgets what nobody needs, by default, and keeps what is in use."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from domains.registry.registry import Registry
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.data.model_store import Artifacts
from orchestrator.errors import ArtifactMissing
from orchestrator.jobs import retention, runner, versions
from orchestrator.settings import Settings

LONG_AGO = datetime.now(UTC) - timedelta(days=400)


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def registry(settings) -> Registry:
    registry = use_cases.open_registry(settings)
    columns = {"user": "u", "item": "i", "label": "y"}
    declared = {"name": "live", "role": "target", "task": "ctr", "owner": "team", "interactions": columns}
    registry.register_domain(DomainSpec.from_mapping(declared), by="ann")
    registry.record_ingest("live", "first", {"rows_added": 10})
    return registry


def age(folder: Path) -> None:
    """As if nothing had changed in it for a year."""
    long_ago = time.time() - 400 * 86_400
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (long_ago, long_ago))


def publish(
    registry: Registry, settings: Settings, id: str, *, kind: str = "adapter", made: datetime = LONG_AGO
) -> str:
    """A version with files in the store."""
    folder = settings.home / "made" / id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text(id)
    of = {"domain": "live", "backbone_id": "b", "level": "adapter"} if kind == "adapter" else {}
    context = runner.RunContext("r", "launch-domain", "live", {}, "ann", registry, settings)
    return versions.publish_version(context, folder, id, kind=kind, created_at=made, **of).artifact


def held(settings: Settings, *tags: str) -> list[bool]:
    """Which of these the store holds, whole."""
    found = []
    for tag in tags:
        try:
            Artifacts(settings.artifacts_dir).verified(tag)
            found.append(True)
        except ArtifactMissing:
            found.append(False)
    return found


def test_every_part_has_a_bound_by_default():
    """Nothing of a home grows for ever unless somebody says so."""
    bounds = {name: value for name, value in Settings().model_dump().items() if name.startswith(("keep_", "log_"))}
    assert len(bounds) == 7
    assert all(value > 0 for value in bounds.values())


def test_old_folders_of_runs_and_uploads_go(registry, settings):
    """A run that is under way keeps its own, however long nothing has changed in it; a young upload stays."""
    registry.start_run("preview", "live", params={}, by="ann", run_id="going")
    for name in ("runs/ended", "runs/going", "uploads/left", "runs/young", "uploads/now"):
        (settings.home / name).mkdir(parents=True)
        (settings.home / name / "file").write_bytes(b"x" * 1_000_000)
    for name in ("runs/ended", "runs/going", "uploads/left"):
        age(settings.home / name)
    done = retention.collect(registry=registry, settings=settings)
    assert (done.runs, done.uploads, done.mb) == (1, 1, 2.0)
    assert done.in_words() == "1 folders of runs, 1 uploads (2 MB of files)"
    assert {path.name for path in settings.runs_dir.iterdir()} == {"going", "young"}
    assert {path.name for path in (settings.home / "uploads").iterdir()} == {"now"}
    assert retention.last(settings) == done
    assert retention.collect(registry=registry, settings=settings).in_words() == ""


def test_files_of_versions_that_nothing_needs_go_and_come_back_when_published(registry, settings):
    """With the shared model that they rested on, unless another rests on it."""
    few = settings.model_copy(update={"keep_versions": 1})
    tags = {"b": publish(registry, settings, "b", kind="backbone")}
    publish(registry, settings, "young-b", kind="backbone", made=datetime.now(UTC))
    for number in range(4):
        made = LONG_AGO + timedelta(days=number)
        tags[f"a{number}"] = publish(registry, settings, f"a{number}", made=made)
    registry.promote("live", "a0", expect=None, who="ann", why="test")
    done = retention.collect(registry=registry, settings=few)
    assert done.versions == 2
    assert held(settings, tags["b"], tags["a0"], tags["a1"], tags["a2"], tags["a3"]) == [True, True, False, False, True]
    publish(registry, settings, "a1", made=datetime.now(UTC))
    assert held(settings, tags["a1"]) == [True]
    assert retention.collect(registry=registry, settings=few).versions == 1
    assert held(settings, tags["a1"], tags["a3"]) == [True, False], "it is the newest now"
    registry.promote("live", "a1", expect="a0", who="ann", why="test")


def test_what_a_run_began_with_or_made_stays(registry, settings):
    """One that is under way, and one that failed and can be continued."""
    few = settings.model_copy(update={"keep_versions": 1})
    publish(registry, settings, "b", kind="backbone")
    tags = [publish(registry, settings, f"a{number}", made=LONG_AGO + timedelta(days=number)) for number in range(4)]
    registry.start_run("launch-domain", "live", params={"init": "a0"}, by="ann", run_id="going")
    registry.start_run("launch-domain", "live", params={}, by="ann", run_id="failed")
    registry.finish_run("failed", state="failed", error="no space")
    (settings.runs_dir / "failed").mkdir(parents=True)
    (settings.runs_dir / "failed" / "zero_shot.json").write_text('{"version": "a1"}')
    assert retention.collect(registry=registry, settings=few).versions == 1
    assert held(settings, *tags) == [True, True, False, True]


def test_a_version_published_while_it_is_collected_keeps_its_files(registry, settings, monkeypatch):
    """Its mark is looked at once more before its files go, and its publisher looks at its files once more."""
    few = settings.model_copy(update={"keep_versions": 1})
    publish(registry, settings, "b", kind="backbone")
    tags = [publish(registry, settings, f"a{number}", made=LONG_AGO + timedelta(days=number)) for number in range(2)]
    add, gone = registry.add_version, []

    def collected_first(version):
        if version.id == "a0" and not gone:
            gone.append(retention.collect_versions(registry, few))
        return add(version)

    monkeypatch.setattr(registry, "add_version", collected_first)
    publish(registry, settings, "a0", made=datetime.now(UTC))
    assert gone == [(1, gone[0][1])]
    assert held(settings, tags[0]) == [True]


def test_over_its_number_of_rows_the_oldest_hours_of_the_log_go(registry, settings):
    """Whole hours, until it fits; what is younger than the rest stays."""
    row = {"domain": "live", "user_id": "u", "item_id": "i"}
    now = datetime.now(UTC)
    for hours in range(10):
        at = now - timedelta(hours=hours, minutes=1)
        registry.log_predictions([{**row, "request_id": f"{hours}-{number}", "at": at} for number in range(10)])
    tight = settings.model_copy(update={"keep_predictions_rows": 35})
    assert retention.collect(registry=registry, settings=tight).rows == 70
    assert registry.logged_rows() == 30
    assert set(registry.answered({f"{hours}-0" for hours in range(10)})) == {"0-0", "1-0", "2-0"}


def test_zero_keeps_all(registry, settings):
    """Of each part."""
    publish(registry, settings, "b", kind="backbone")
    registry.log_predictions([{"request_id": "r", "domain": "live", "user_id": "u", "item_id": "i", "at": LONG_AGO}])
    (settings.runs_dir / "old").mkdir(parents=True)
    age(settings.runs_dir / "old")
    off = {name: 0 for name in settings.model_dump() if name.startswith("keep_")}
    assert retention.collect(registry=registry, settings=settings.model_copy(update=off)).in_words() == ""
