"""A database of the first revision, with rows in every state that there was, comes up to date whole."""

from dataclasses import replace

import pytest
from sqlalchemy import text

from domains.lifecycle import State
from domains.registry import migrations
from domains.registry.database import Database
from domains.registry.records import Version
from domains.registry.registry import Registry
from tests.integration.registry.fakes import adapter, click, prediction, ready, spec

SHIPS, HELD = {"decision": {"promote": True}}, {"decision": {"promote": False}}
OLD = {
    "registered": ("registered", "registered", None, None),
    "with-data": ("data_ready", "data_ready", None, None),
    "training": ("training", "data_ready", None, None),
    "training-borrowed": ("training", "data_ready", "zero_shot", None),
    "training-live": ("training", "live", "adapter", None),
    "waiting": ("challenger", "data_ready", None, SHIPS),
    "waiting-borrowed": ("challenger", "data_ready", "zero_shot", SHIPS),
    "waiting-live": ("challenger", "live", "adapter", SHIPS),
    "waiting-held": ("challenger", "live", "adapter", HELD),
    "live": ("live", "live", "adapter", None),
    "live-borrowed": ("live", "data_ready", "zero_shot", None),
    "paused": ("paused", "paused", None, None),
    "paused-live": ("paused", "paused", "adapter", None),
    "retired": ("retired", "retired", None, None),
    "retired-live": ("retired", "retired", "adapter", None),
}
"""By name: the state then, the state that it is now, the level of what is live, the report of a newer version."""


def old_home(url: str) -> None:
    """Fill a database, take it back to the first revision and write the states that only that one had."""
    database, registry = Database(url), Registry(url)
    registry.migrate()
    ready(registry)
    for name, (_, _, level, report) in OLD.items():
        registry.register_domain(spec(name), by="ann")
        if name != "registered":
            registry.record_ingest(name, "first", {"rows_added": 10})
        if level is not None:
            registry.add_version(replace(adapter(f"{name}-first", name), level=level))
            registry.promote(name, f"{name}-first", expect=None, who="ann", why="first")
        if report is not None:
            registry.add_version(replace(adapter(f"{name}-next", name), report=report))
    registry.log_predictions([prediction()])
    registry.log_feedback([click()])
    registry.close()
    with database.change_tables() as connection:
        migrations.downgrade(connection, "0001")
        for name, (state, *_) in OLD.items():
            connection.execute(text(f"UPDATE domains SET state = '{state}' WHERE name = :name"), {"name": name})
    database.engine.dispose()


@pytest.fixture
def migrated(url: str) -> Registry:
    old_home(url)
    registry = Registry(url)
    registry.migrate()
    return registry


def test_every_old_state_is_one_of_todays(migrated: Registry) -> None:
    """What answered goes on answering, what waited waits, and nothing that was paused or retired comes back."""
    for name, (_, state, level, report) in OLD.items():
        domain, live = migrated.domain(name), migrated.live(name)
        assert (name, domain.state, live and live.level) == (name, State(state), level)
        assert domain.challenger == (f"{name}-next" if report is SHIPS else None)
    assert migrated.api_keys() == []
    assert [row["item_id"] for row in migrated.feedback("live-rooms")] == ["i1"]
    migrated.close()


def test_an_old_domain_goes_on_as_any_other(migrated: Registry) -> None:
    """Promote, roll back, pause, resume and retire, each on rows that the first revision wrote."""
    migrated.promote("waiting-live", "waiting-live-next", expect="waiting-live-first", who="ann", why="")
    assert migrated.domain("waiting-live").challenger is None
    assert migrated.roll_back("waiting-live", who="ann", why="").to_version == "waiting-live-first"
    assert migrated.resume("paused-live", by="ann").state is State.LIVE
    assert migrated.resume("paused", by="ann").state is State.DATA_READY
    assert migrated.move("training", State.RETIRED, by="ann").state is State.RETIRED
    migrated.add_version(Version(id="newer", kind="backbone", artifact="tag:newer"))
    migrated.promote(None, "newer", expect=None, who="ann", why="")
    assert migrated.live(None).version_id == "newer"
    migrated.close()


def test_the_tables_of_an_old_home_are_those_of_the_code(url: str) -> None:
    old_home(url)
    database = Database(url)
    with database.change_tables() as connection:
        assert migrations.current(connection) == "0001"
        migrations.upgrade(connection)
        migrations.check(connection)
    database.engine.dispose()
