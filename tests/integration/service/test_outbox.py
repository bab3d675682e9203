"""The way of feedback into the histories: one id is one ranking everywhere, and no death and no lost store loses it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from deployment.engine import feedback
from deployment.engine.serving import Serving
from deployment.http.api import create_app
from domains.registry.request_ids import Asked
from feature_repo.definitions import apply
from orchestrator.data.online import feature_repo, refresh
from orchestrator.settings import Settings
from tests.integration.service.fakes import Market, ask, assert_is_error, eventually


def tell(client, request_id, events, **more):
    return client.post("/v1/feedback", json={"request_id": request_id, "events": events, **more})


@pytest.fixture
def elsewhere(market: Market) -> Iterator[TestClient]:
    """A second process of the service, as far as the first can tell."""
    other = Serving(market.settings)
    other.start()
    with TestClient(create_app(lambda: other), raise_server_exceptions=False) as client:
        yield client
    other.close()


def test_of_two_processes_one_answers_an_id(market, client, elsewhere):
    """Asked at the same moment for two users: one answer and one conflict each time, and one user in the log."""
    items = market.items("live")
    for number in range(10):
        answers = {}

        def one(where, user, request_id=f"same-{number}", into=answers):
            into[user] = ask(where, user, items, request_id=request_id)

        threads = [threading.Thread(target=one, args=pair) for pair in ((client, "first"), (elsewhere, "second"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in answers.values()) == [200, 409]
        [winner] = [user for user, answer in answers.items() if answer.status_code == 200]
        for where in (client, elsewhere):
            event = [{"item_id": items[number]}]
            told = tell(where, f"same-{number}", event, user_id=winner, domain="live").json()
            assert told["accepted"] + told["duplicates"] == 1
            loser = ({"first", "second"} - {winner}).pop()
            assert_is_error(tell(where, f"same-{number}", event, user_id=loser), 409, "feedback_conflict")
    ids = {f"same-{number}" for number in range(10)}
    eventually(lambda: len(market.registry.feedback("live")) == 10)
    rows = [one for one in market.registry.feedback("live") if one["request_id"] in ids]
    assert len({(one["request_id"], one["user_id"]) for one in rows}) == 10


def test_an_id_belongs_to_who_was_first_to_tell(market, client, elsewhere):
    """Feedback under an id of no ranking takes it too: no stranger's event stands in the way of somebody's ranking."""
    items = market.items("live")
    assert tell(client, "mine", [{"item_id": items[0]}], user_id="me", domain="live").json()["accepted"] == 1
    for where in (client, elsewhere):
        other = tell(where, "mine", [{"item_id": items[1]}], user_id="thief", domain="live")
        assert assert_is_error(other, 409, "feedback_conflict")["field"] == "user_id"
        assert_is_error(ask(where, "thief", items, request_id="mine"), 409, "request_id_taken")
    assert tell(elsewhere, "mine", [{"item_id": items[1]}], user_id="me", domain="live").json()["accepted"] == 1
    assert ask(elsewhere, "me", items, request_id="mine").status_code == 200


def test_an_event_is_the_same_by_any_of_its_names(market, client):
    """A retry that says `purchase` for `buy` is no second sale."""
    user, [item, *_] = market.user(), market.items("live")
    ask(client, user, [item], request_id="r-8")
    assert tell(client, "r-8", [{"item_id": item, "action": "buy"}]).json()["accepted"] == 1
    same = [{"item_id": item, "action": name} for name in ("purchase", "Order", " BUY ")]
    assert tell(client, "r-8", same).json() == {"request_id": "r-8", "accepted": 0, "duplicates": 3}


def test_a_full_outbox_turns_feedback_away(market, serving, client, monkeypatch):
    """Before it is acknowledged, at once, and nothing of it is kept; the rest of the service goes on."""
    serving._pusher.close()  # noqa: SLF001 (a store that is away)
    user, items = market.user(), market.items("live")
    monkeypatch.setattr(feedback, "MOST_UNPUSHED", 3)
    ask(client, user, items, request_id="r-9")
    assert tell(client, "r-9", [{"item_id": item} for item in items[:3]]).json()["accepted"] == 3
    began = time.monotonic()
    answer = tell(client, "r-9", [{"item_id": items[3]}])
    assert time.monotonic() - began < 2
    assert_is_error(answer, 503, "overloaded")
    assert answer.headers["Retry-After"]
    assert market.registry.unpushed() == 3
    assert ask(client, user, items).status_code == 200


def test_what_waits_is_said(market, serving, client, monkeypatch):
    """In the status and the metrics, with its age; both are nothing when nothing waits."""
    user, items = market.user(), market.items("live")
    pushed = type(serving._pusher)._push  # noqa: SLF001

    def away(*_):
        raise ConnectionError("no store")

    monkeypatch.setattr(type(serving._pusher), "_push", away)  # noqa: SLF001
    tell(client, "r-10", [{"item_id": item} for item in items[:4]], user_id=user, domain="live")
    eventually(lambda: client.get("/v1/domains").json()["outbox"]["events"] == 4)
    eventually(lambda: client.get("/v1/domains").json()["outbox"]["oldest_s"] > 0.5)
    assert "graft_outbox_events 4.0" in client.get("/metrics").text
    assert "graft_outbox_oldest_seconds" in client.get("/metrics").text
    monkeypatch.setattr(type(serving._pusher), "_push", pushed)  # noqa: SLF001
    eventually(lambda: client.get("/v1/domains").json()["outbox"] == {"events": 0, "oldest_s": 0.0})


def test_an_event_of_a_domain_that_nobody_serves_holds_up_nothing(market, serving, client, monkeypatch):
    """It waits, alone, and is given up after a day, which counts as lost."""
    row = {"request_id": "x", "item_id": "i", "action": "click", "domain": "gone", "user_id": "u"}
    market.registry.log_feedback([row], push=True)
    user, items = market.user(), market.items("live")
    before = len(market.read(user).recent)
    tell(client, "r-11", [{"item_id": item} for item in items[:3]], user_id=user, domain="live")
    eventually(lambda: market.registry.unpushed() == 1)
    assert len(market.read(user).recent) == before + 3
    monkeypatch.setattr("deployment.engine.pusher.KEPT_FOR", timedelta(0))
    eventually(lambda: market.registry.unpushed() == 0)
    assert serving.lost_records == 1


HOLDS_THE_LOCK = """
import sys, time
from orchestrator.data.online import feature_repo
from orchestrator.settings import Settings
with feature_repo(Settings()).online.writing():
    print("held", flush=True)
    time.sleep(600)
"""


def killed_while_writing(settings: Settings) -> None:
    """A process that holds back all other writers, killed."""
    environment = {**os.environ, **settings.as_environment()}
    with subprocess.Popen([sys.executable, "-c", HOLDS_THE_LOCK], env=environment, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGKILL)


def test_what_a_killed_process_held_goes_on_at_once(market, client):
    """Nothing waits for a claim of the dead to end."""
    user, items = market.user(), market.items("live")
    before = len(market.read(user).recent)
    killed_while_writing(market.settings)
    assert tell(client, "r-12", [{"item_id": items[0]}], user_id=user, domain="live").json()["accepted"] == 1
    eventually(lambda: len(market.read(user).recent) == before + 1)


def test_a_store_that_was_put_back_gets_what_it_lost(market, serving, client):
    """A backup of the online store comes without what was pushed since; the log of feedback still has it."""
    user, items = market.user(), market.items("live")
    file = market.settings.features_dir / "online.db"
    assert tell(client, "r-13", [{"item_id": items[0]}], user_id=user, domain="live").json()["accepted"] == 1
    eventually(lambda: market.registry.unpushed() == 0)
    held = len(market.read(user).recent)
    with closing(sqlite3.connect(file)) as store, closing(sqlite3.connect(file.with_suffix(".backup"))) as backup:
        store.backup(backup)
    events = [{"item_id": item} for item in items[1:6]]
    assert tell(client, "r-13", events, user_id=user, domain="live").json()["accepted"] == 5
    eventually(lambda: len(market.read(user).recent) == held + 5)
    for ending in ("-wal", "-shm"):
        file.with_name(file.name + ending).unlink(missing_ok=True)
    file.with_suffix(".backup").replace(file)
    assert len(market.read(user).recent) == held
    eventually(lambda: len(market.read(user).recent) == held + 5, timeout_s=60)


class RedisServer:
    """A Redis of a test's own, with its data in a folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        words = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        self.process = subprocess.Popen([*words, *self.options], stdout=subprocess.DEVNULL)
        eventually(self._answers)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def on_redis(market: Market, tmp_path: Path) -> Iterator[tuple[Market, RedisServer]]:
    """The marketplace with its histories in a Redis that saves when it is told to."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine")
    server = RedisServer(tmp_path, "--save", "")
    address = f"127.0.0.1:{server.port}"
    moved = Market(Settings(home=market.settings.home, online_store="redis", online_store_address=address))
    apply(feature_repo(moved.settings))
    refresh(registry=moved.registry, settings=moved.settings)
    yield moved, server
    server.kill()


@pytest.mark.servers
def test_redis_that_forgot_is_given_again_what_it_lost(on_redis):
    """Killed, it comes back with what it had saved, or with nothing: what was acknowledged is pushed again."""
    market, server = on_redis
    user, items = market.user(), market.items("live")
    serving = Serving(market.settings)
    serving.start()
    with TestClient(create_app(lambda: serving)) as client:
        before = len(market.read(user).recent)
        assert tell(client, "r-14", [{"item_id": items[0]}], user_id=user, domain="live").json()["accepted"] == 1
        eventually(lambda: len(market.read(user).recent) == before + 1)
        subprocess.run(["redis-cli", "-p", str(server.port), "save"], check=True, stdout=subprocess.DEVNULL)
        events = [{"item_id": item} for item in items[1:6]]
        assert tell(client, "r-14", events, user_id=user, domain="live").json()["accepted"] == 5
        eventually(lambda: len(market.read(user).recent) == before + 6)
        server.kill()
        # Acknowledged while the store is away: it waits.
        assert tell(client, "r-14", [{"item_id": items[6]}], user_id=user, domain="live").json()["accepted"] == 1
        server.start()
        eventually(lambda: len(market.read(user).recent) == before + 7, timeout_s=60)
        server.kill()
        (server.folder / "dump.rdb").unlink()
        server.start()
        time.sleep(1)
        refresh(registry=market.registry, settings=market.settings)
        eventually(lambda: len(market.read(user).recent) == before + 7, timeout_s=60)
    serving.close()


@pytest.mark.servers
def test_a_writer_of_redis_that_was_killed_holds_up_nobody_for_long(on_redis):
    """Its lock ends by itself; one that lives keeps its lock for as long as it needs."""
    market, _ = on_redis
    user, items = market.user(), market.items("live")
    killed_while_writing(market.settings)
    serving = Serving(market.settings)
    serving.start()
    with TestClient(create_app(lambda: serving)) as client:
        tell(client, "r-15", [{"item_id": items[0]}], user_id=user, domain="live")
        eventually(lambda: market.registry.unpushed() == 0, timeout_s=60)
        online = feature_repo(market.settings).online
        with online.writing():
            tell(client, "r-15", [{"item_id": items[1]}], user_id=user, domain="live")
            time.sleep(7)
            assert market.registry.unpushed() == 1
        eventually(lambda: market.registry.unpushed() == 0, timeout_s=60)
    serving.close()


def test_claims_end_with_the_log_and_with_time(registry):
    """The table of claims is as short as the log is behind."""
    now = datetime.now(UTC)
    asked = Asked("live", "u", now)
    assert registry.claim_request("a", asked) == asked
    assert registry.claim_request("a", Asked("live", "v", now)).user_id == "u"
    registry.log_predictions([{"request_id": "a", "domain": "live", "user_id": "u", "item_id": "i"}])
    assert registry.claim_request("b", asked) == asked
    assert registry.forget_claims(now + timedelta(seconds=1)) == 1
    assert registry.claim_request("a", Asked("live", "v", now)).user_id == "u"
