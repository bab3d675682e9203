"""Migrations, crashes and the two databases below the registry."""

import signal
import sqlite3
import threading
from dataclasses import FrozenInstanceError
from datetime import UTC
from pathlib import Path

import pytest
from sqlalchemy import inspect, make_url, text

from domains.errors import (
    DomainFault,
)
from domains.lifecycle import State
from domains.registry import migrations
from domains.registry.database import Database
from domains.registry.registry import Registry
from tests.integration.registry.fakes import at_once, process, ready, spec


class TestMigrations:
    def test_up_check_down_and_up_again(self, url: str) -> None:
        """The migrations make exactly the tables of the code, take all of them away, and can make them again."""
        database = Database(url)
        for _ in range(2):
            with database.change_tables() as connection:
                migrations.upgrade(connection)
                migrations.check(connection)
            with database.change_tables() as connection:
                migrations.downgrade(connection, "base")
                assert set(inspect(connection).get_table_names()) <= {migrations.VERSION_TABLE}
        database.engine.dispose()

    @pytest.mark.servers
    def test_a_password_of_any_characters(self, postgres_url: str) -> None:
        """Encoded in the URL, it reaches the server whole; no text of the database or its address shows it."""
        password = "p@ss:w#rd/%?' sEcreT"
        admin = Database(postgres_url)
        with admin.read() as connection:
            secret = password.replace("'", "''")
            connection.execute(text(f"CREATE ROLE odd SUPERUSER LOGIN PASSWORD '{secret}'".replace(":", r"\:")))
        url = make_url(postgres_url).set(username="odd", password=password)
        registry = Registry(url.render_as_string(hide_password=False))
        try:
            registry.migrate()
            registry.register_domain(spec("odd"), by="ann")
            assert registry.domain("odd").name == "odd"
            database = Database(url.render_as_string(hide_password=False))
            assert "sEcreT" not in f"{url} {database.url!r} {database.engine!r}"
        finally:
            registry.close()
            with admin.read() as connection:
                connection.execute(text("DROP OWNED BY odd CASCADE"))
                connection.execute(text("DROP ROLE odd"))
            admin.engine.dispose()

    def test_many_may_migrate_at_once(self, url: str) -> None:
        """Every service migrates as it starts, and they start together."""
        registries = [Registry(url) for _ in range(6)]
        assert at_once(6, lambda number: registries[number].migrate()) == [None] * 6
        assert registries[0].generation() == 0
        for registry in registries:
            registry.close()

    def test_half_a_migration_never_happened(self, url: str) -> None:
        """A fault after the tables were made leaves none of them."""
        database = Database(url)

        def cut_short() -> None:
            with database.change_tables() as connection:
                migrations.upgrade(connection)
                raise RuntimeError("power cut")

        with pytest.raises(RuntimeError):
            cut_short()
        with database.read() as connection:
            assert inspect(connection).get_table_names() == []
        database.engine.dispose()

    def test_migrating_again_keeps_everything(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        registry.migrate()
        assert [domain.name for domain in registry.domains()] == ["live-rooms"]


class TestFaults:
    def test_killed_writers_lose_nothing_that_was_acknowledged(self, registry: Registry, url: str) -> None:
        """kill -9 amid a stream of writes: every domain whose registration was answered is there, whole."""
        script = """
import sys
from domains.registry.registry import Registry
from domains.spec import DomainSpec
registry = Registry(sys.argv[1])
for n in range(100_000):
    name = f"{sys.argv[2]}-{n}"
    registry.register_domain(DomainSpec.from_mapping({"name": name, "role": "target", "task": "ctr", "owner": "t",
        "interactions": {"user": "u", "item": "i"}}), by="t")
    registry.record_ingest(name, "first", {"rows_added": 1})
    print(name, flush=True)
"""
        acknowledged: list[str] = []
        for attempt in ("red", "blue"):
            writer = process(script, url, attempt)
            acknowledged += [writer.stdout.readline().strip() for _ in range(15)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += writer.communicate(timeout=30)[0].split("\n")[:-1]
        kept = {domain.name: domain for domain in registry.domains()}
        assert set(acknowledged) <= set(kept)
        assert all(kept[name].counts["rows_added"] == 1 for name in acknowledged)
        assert sorted(domain.number for domain in kept.values()) == list(range(1, len(kept) + 1))
        assert registry.register_domain(spec("after"), by="ann").number == len(kept) + 1

    def test_killed_inside_a_transaction_leaves_no_trace_and_no_lock(self, registry: Registry, url: str) -> None:
        script = """
import sys, time
from sqlalchemy import text
from domains.registry.database import Database, advance
with Database(sys.argv[1]).write() as connection:
    advance(connection, "generation", by=1000)
    connection.execute(text("UPDATE domains SET state = 'retired'"))
    print("inside", flush=True)
    time.sleep(600)
"""
        ready(registry)
        before = registry.generation()
        writer = process(script, url)
        assert writer.stdout.readline().strip() == "inside"
        writer.kill()
        writer.communicate(timeout=30)
        registry.move("live-rooms", State.PAUSED, by="ann")
        assert registry.generation() == before + 1

    def test_a_forked_child_opens_connections_of_its_own(self, registry: Registry, url: str) -> None:
        script = """
import os, sys
from domains.registry.registry import Registry
registry = Registry(sys.argv[1])
before = registry.generation()
child = os.fork()
if child == 0:
    ok = all(registry.generation() == before for _ in range(50))
    os._exit(0 if ok else 1)
ok = all(registry.generation() == before for _ in range(50))
_, status = os.waitpid(child, 0)
print("fine" if ok and status == 0 else "broken", registry.generation() == before)
"""
        assert process(script, url).communicate(timeout=60)[0].split() == ["fine", "True"]

    def test_what_comes_out_is_detached(self, registry: Registry) -> None:
        """Changing a value that was handed out changes nothing that is kept."""
        ready(registry)
        domain = registry.domain("live-rooms")
        domain.counts["rows_added"] = 0
        assert registry.domain("live-rooms").counts["rows_added"] == 10
        with pytest.raises(FrozenInstanceError):
            domain.state = State.LIVE

    def test_times_come_out_in_utc_whatever_the_session_says(self, registry: Registry, url: str) -> None:
        ready(registry)
        zone = "?options=-c%20timezone%3DAsia/Tokyo" if url.startswith("postgresql") else ""
        elsewhere = Registry(url + zone)
        created = elsewhere.domain("live-rooms").created_at
        assert created.tzinfo is UTC
        assert created == registry.domain("live-rooms").created_at
        elsewhere.close()


class TestDatabases:
    def test_sqlite_is_set_up_on_every_connection(self, tmp_path: Path) -> None:
        """Write-ahead log, patience, durable commits and foreign keys; the folder is made when it is missing."""
        database = Database(f"sqlite:///{tmp_path}/deep/down/registry.db")
        with database.change_tables() as connection:
            migrations.upgrade(connection)
        for _ in range(2):
            with database.read() as connection:
                pragmas = ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")
                values = [connection.execute(text(f"PRAGMA {pragma}")).scalar_one() for pragma in pragmas]
                assert values == ["wal", 30_000, 2, 1]
            database.engine.dispose()

    def test_a_new_sqlite_file_that_is_busy_is_waited_for(self, tmp_path: Path) -> None:
        """The switch to write-ahead logging fails at once while another process makes the file: tried again."""
        creator = sqlite3.connect(tmp_path / "registry.db", isolation_level=None, check_same_thread=False)
        creator.execute("BEGIN IMMEDIATE")
        creator.execute("CREATE TABLE being_made (x)")
        release = threading.Timer(0.3, lambda: creator.execute("COMMIT"))
        release.start()
        database = Database(f"sqlite:///{tmp_path}/registry.db")
        with database.read() as connection:
            assert connection.execute(text("SELECT count(*) FROM being_made")).scalar_one() == 0
        release.join()
        creator.close()
        database.engine.dispose()

    def test_memory_serves_many_threads(self) -> None:
        registry = Registry("sqlite://")
        registry.migrate()
        at_once(8, lambda n: registry.register_domain(spec(f"name-{n}"), by="ann"))
        assert len(registry.domains()) == 8

    @pytest.mark.parametrize("url", ["mysql://host/name", "registry.db", ""])
    def test_other_databases_are_refused_by_name(self, url: str) -> None:
        with pytest.raises(DomainFault, match=r"SQLite or PostgreSQL|must be a URL"):
            Registry(url)
