"""The online store frozen, dead, slow, in error, moved, locked or broken: what requests see of it, and how it heals."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployment.engine import features
from deployment.engine.serving import Serving
from orchestrator.data import online
from orchestrator.settings import Settings
from tests.integration.service.conftest import client_of, served
from tests.integration.service.fakes import Market, ask, eventually

LIMIT_S = 0.3
"""What a request waits for features here, on a machine that may be busy; a store that is waited for takes seconds."""


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHORTEST_LIMIT_S", LIMIT_S)
    monkeypatch.setattr(features, "LONGEST_LIMIT_S", LIMIT_S)


def away(client: Any, user: str, items: list[str]) -> None:
    """Every answer comes by popularity, the first within the limit and the others at once; the service says why."""
    slow = 0
    for _ in range(20):
        began = time.monotonic()
        body = ask(client, user, items).json()
        slow += time.monotonic() - began > LIMIT_S
        assert (body["served_by"], body["reason"]) == ("prior", "features_unavailable")
    assert slow <= 2
    assert client.get("/v1/domains").json()["features"] != "up"
    assert client.get("/readyz").json() == {"status": "ready", "features": "away"}


def back(client: Any, user: str, items: list[str], within_s: float = features.LONGEST_REST_S + 5) -> None:
    eventually(lambda: ask(client, user, items).json()["served_by"] == "zero_shot", within_s)
    assert client.get("/v1/domains").json()["features"] == "up"
    assert client.get("/readyz").json() == {"status": "ready", "features": "up"}


def moved(file: Path) -> Callable[[], object]:
    kept = file.with_name("kept")
    file.rename(kept)
    return lambda: kept.rename(file)


def locked(file: Path) -> Callable[[], object]:
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    connection.execute("pragma locking_mode = exclusive")
    connection.execute("begin exclusive")
    return connection.close


def broken(file: Path) -> Callable[[], object]:
    with sqlite3.connect(file) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    connection.close()
    good = file.read_bytes()
    file.write_bytes(b"no database" * (len(good) // 11))
    return lambda: replaced(file, good)


def replaced(file: Path, content: bytes) -> None:
    """Put a good file in place, as a restore does."""
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    fresh = file.with_name("fresh")
    fresh.write_bytes(content)
    fresh.replace(file)


@pytest.mark.parametrize("harm", [moved, locked, broken])
def test_sqlite_taken_away_and_given_back(market: Market, harm: Callable[[Path], Callable[[], object]]) -> None:
    """Moved, held by another process, or overwritten."""
    user, items = market.user(), market.items("live")
    file = market.settings.features_dir / "online.db"
    if harm is locked:  # a lock that shuts readers out takes a store without a reader
        give_back = harm(file)
    with served(market, market.registry) as serving, client_of(serving) as client:
        if harm is not locked:
            assert ask(client, user, items).json()["served_by"] == "zero_shot"
            give_back = harm(file)
        away(client, user, items)
        give_back()
        back(client, user, items)


class Redis:
    """A Redis of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        words = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        self.process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
        eventually(self._answers)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()  # it saves what it holds
        self.process.wait()


class Between:
    """A relay before a server, that hands on each piece of an answer after a while."""

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            caller, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                caller.close()
                continue
            for pair in ((caller, server, False), (server, caller, True)):
                threading.Thread(target=self._relay, args=pair, daemon=True).start()

    def _relay(self, source: socket.socket, sink: socket.socket, slowly: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 20):
                if slowly:
                    time.sleep(self.delay_s)
                sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine")
    server = Redis(tmp_path)
    yield server
    server.end()


@contextmanager
def on_redis(market: Market, port: int) -> Iterator[tuple[Serving, Any]]:
    """The service over the market with its features in Redis."""
    settings: Settings = market.settings.model_copy(
        update={"online_store": "redis", "online_store_address": f"127.0.0.1:{port}"}
    )
    online.refresh(registry=market.registry, settings=settings)
    with served(Market(settings), market.registry) as serving, client_of(serving) as client:
        yield serving, client


@pytest.mark.servers
def test_redis_frozen_dead_in_error_and_slow(market: Market, redis: Redis) -> None:
    """Each in turn costs one request, and heals by itself."""
    user, items, relay = market.user(), market.items("live"), Between(redis.port)
    with on_redis(market, relay.port) as (_, client):
        assert ask(client, user, items).json()["served_by"] == "zero_shot"

        os.kill(redis.process.pid, signal.SIGSTOP)
        away(client, user, items)
        os.kill(redis.process.pid, signal.SIGCONT)
        back(client, user, items)

        relay.delay_s = 2 * LIMIT_S
        away(client, user, items)
        relay.delay_s = 0.0
        back(client, user, items)

        import redis as library

        with library.Redis(port=redis.port) as admin:
            admin.config_set("requirepass", "another")
            admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            away(client, user, items)
            admin.config_set("requirepass", "")
        back(client, user, items)

        redis.end()
        away(client, user, items)
        redis.start()
        back(client, user, items)
