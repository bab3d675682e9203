"""Feast end to end: what is read online is what training would see at the same moment."""

from __future__ import annotations

import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from domains.events.domain_data import DomainData
from domains.events.histories import Histories
from domains.ingestion.ingest import ingest
from domains.lifecycle import State
from domains.registry.registry import Domain
from domains.spec import DomainSpec
from feature_repo.definitions import EVENT_FIELDS, HISTORY_EVENTS, RECENT_EVENTS, FeatureRepo, apply
from feature_repo.materialise import Push, materialise, push_events
from feature_repo.online import FeatureStoreDown, OnlineFeatures, PushedEvent
from feature_repo.online_stores import ONLINE_STORES, SqliteStore
from orchestrator.data.online import feature_repo
from orchestrator.settings import Settings

NOW = 1_700_000_000_000_000
HOUR = 3_600_000_000
AFTER_ALL = NOW + 10_000 * HOUR


def push_event(repo, store, event, *, target):
    """Push one event; whether it was new."""
    return push_events(repo, store, [Push(event, target)]) == 1


def spec(name: str, role: str, **more: object) -> DomainSpec:
    return DomainSpec.from_mapping(
        {
            "name": name,
            "role": role,
            "task": "ctr",
            "owner": "tests",
            "interactions": {"user": "user", "item": "item", "time": "ts", "time_unit": "us", "label": "click"},
            "users": {"id": "user", "features": {"age band: years": "category", "height": "number"}},
            "domain_features": {"surface": name, "rows": 3},
            **more,
        }
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Two sources and a target; a user with 2,500 events, one with none, one who is only in the target, 60 others."""
    folder = tmp_path_factory.mktemp("features")
    random = np.random.default_rng(7)
    users = [f"u{number}" for number in range(60)]
    rows = {}
    for name, most in (("video", 60), ("shop", 30)):
        who = [user for user in users for _ in range(int(random.integers(1, most)))]
        if name == "video":
            who += ["busy"] * 2_500
        times = NOW + random.integers(0, 5_000, len(who)) * HOUR
        rows[name] = pd.DataFrame(
            {
                "user": who,
                "item": [f"{name}-{item}" for item in random.integers(0, 400, len(who))],
                "ts": times,
                "click": random.integers(0, 2, len(who)),
            }
        ).drop_duplicates(["user", "item", "ts"])
    rows["live"] = pd.DataFrame(
        {
            "user": ["u1", "u1", "u2", "newcomer"] * 10,
            "item": [f"live-{item}" for item in range(40)],
            "ts": NOW + np.arange(40) * HOUR,
            "click": [0, 1] * 20,
        }
    )
    profiles = pd.DataFrame(
        {"user": [*users, "silent"], "age band: years": ["18-24", "25-34", None] * 20 + ["60+"], "height": 1.5}
    )
    domains = []
    for number, (name, role) in enumerate((("video", "source"), ("shop", "source"), ("live", "target")), start=1):
        declared = spec(name, role, history={"short": 5})
        events, people = folder / f"{name}.parquet", folder / f"{name}-users.csv"
        rows[name].to_parquet(events)
        profiles.to_csv(people, index=False)
        report = ingest(
            declared, number=number, interactions=[events], users=people, data_dir=folder / "data", now_us=AFTER_ALL
        )
        assert report.rows_added == len(rows[name])
        domains.append(
            Domain(
                name=name,
                number=number,
                role=role,
                state=State.DATA_READY,
                spec=declared,
                owner="tests",
                created_at=pd.Timestamp.now(tz="UTC").to_pydatetime(),
                counts={"rows_added": report.rows_added},
            )
        )
    Histories.build(folder / "data", [(domain.spec, domain.number) for domain in domains])
    return {
        "data": folder / "data",
        "domains": domains,
        "histories": Histories.open(folder / "data"),
        "users": DomainData(folder / "data", "video").user_vocabulary,
    }


def publish(world: dict, repo: FeatureRepo, **more: object) -> int:
    return materialise(
        repo,
        domains=world["domains"],
        data_dir=world["data"],
        histories=world["histories"],
        users=world["users"],
        **more,
    )


@pytest.fixture(scope="module")
def repo(world: dict, tmp_path_factory: pytest.TempPathFactory) -> FeatureRepo:
    made = FeatureRepo(tmp_path_factory.mktemp("repo"))
    publish(world, made)
    return made


@pytest.fixture
def own_repo(world: dict, tmp_path: Path) -> FeatureRepo:
    made = FeatureRepo(tmp_path / "repo")
    publish(world, made)
    return made


def expected(world: dict, user_id: str, before_us: int, length: int = HISTORY_EVENTS) -> dict[str, np.ndarray]:
    """What training would see: the window of the history store."""
    store = world["histories"].source
    user = world["users"].index([user_id])
    start, stop = store.window(user, np.array([before_us]), length)
    return {name: np.asarray(getattr(store, name)[int(start[0]) : int(stop[0])]) for name in EVENT_FIELDS}


def assert_same(read: object, wanted: dict[str, np.ndarray]) -> None:
    for name in EVENT_FIELDS:
        np.testing.assert_array_equal(getattr(read, name), wanted[name], err_msg=name)


def test_features_read_online_equal_those_that_training_would_use_at_the_same_moment(world, repo):
    """Every user, one with 2,500 events and one with none among them; then the same through the network's window."""
    online = OnlineFeatures(repo)
    everyone = world["users"].names().to_pylist()
    assert {"busy", "silent", "newcomer"} <= set(everyone)
    for user_id in everyone:
        read = online.read_user(user_id, "live")
        assert read is not None
        assert read.index == world["users"].index([user_id])[0]
        assert_same(read.history, expected(world, user_id, AFTER_ALL))
    assert len(online.read_user("busy", "live").history) == HISTORY_EVENTS
    assert len(online.read_user("silent", "live").history) == 0


def test_recent_events_are_the_latest_of_the_asked_domain(world, repo):
    """As many as any network reads, oldest first, and none of another domain."""
    online = OnlineFeatures(repo)
    store = world["histories"].target["live"]
    user = world["users"].index(["u1"])
    start, stop = store.window(user, np.array([AFTER_ALL]), RECENT_EVENTS)
    recent = online.read_user("u1", "live").recent
    np.testing.assert_array_equal(recent.item, store.item[int(start[0]) : int(stop[0])])
    np.testing.assert_array_equal(recent.time_us, store.time_us[int(start[0]) : int(stop[0])])
    assert len(recent) == 20
    assert len(online.read_user("u1", "another-domain").recent) == 0


def test_profiles_come_with_the_text_that_code_books_know(repo):
    """Column names with spaces and colons survive; a missing value is absent; an unknown user is None."""
    online = OnlineFeatures(repo)
    assert online.read_user("u0", "live").profile == {"age band: years": "18-24", "height": "1.5"}
    assert online.read_user("u2", "live").profile == {"height": "1.5"}
    assert online.read_user("nobody", "live") is None


def test_historical_retrieval_agrees_with_the_history_store(world, repo):
    """Feast's point-in-time join gives training's window at and after a user's newest event, and nothing before it."""
    store = repo.store()
    users = ["u0", "u1", "u5", "busy", "silent"]
    newest = {user: expected(world, user, AFTER_ALL)["time_us"] for user in users}
    asked = [(user, AFTER_ALL) for user in users]
    # The very moment of the newest event does not see that event, so it must not see this row.
    asked += [(user, int(newest[user][-1])) for user in ("u0", "busy")]
    frame = pd.DataFrame(
        {
            "user_id": [user for user, _ in asked],
            "event_timestamp": pd.to_datetime([moment for _, moment in asked], unit="us", utc=True).astype(
                "datetime64[us, UTC]"
            ),
        }
    )
    features = [f"user_history:{name}" for name in EVENT_FIELDS]
    found = store.get_historical_features(entity_df=frame, features=features).to_df()
    assert len(found) == len(asked)
    for user, moment in asked:
        at = pd.Timestamp(moment, unit="us", tz="UTC")
        [row] = found[(found.user_id == user) & (found.event_timestamp == at)].to_dict("records")
        if moment != AFTER_ALL or user == "silent":
            assert row["item"] is None or np.ndim(row["item"]) == 0
            continue
        wanted = expected(world, user, moment)
        for name in EVENT_FIELDS:
            np.testing.assert_array_equal(np.asarray(row[name]), wanted[name])


def test_a_snapshot_of_an_earlier_moment_holds_strictly_the_past(world, tmp_path):
    """``before_us`` cuts online features as it cuts training's windows."""
    early = FeatureRepo(tmp_path / "early")
    before = NOW + 1_000 * HOUR
    publish(world, early, before_us=before)
    online = OnlineFeatures(early)
    for user_id in ("u0", "u7", "busy"):
        assert_same(online.read_user(user_id, "live").history, expected(world, user_id, before))


def test_pushing_an_event_shows_at_once_and_only_once(own_repo):
    """Pushed at its place in time; pushed again it changes nothing; the oldest of 2,000 makes room."""
    store, online = own_repo.store(), OnlineFeatures(own_repo)
    before = online.read_user("busy", "live").history
    event = PushedEvent("busy", item=7, domain=1, action=2, value=1.0, time_us=AFTER_ALL)
    assert push_event(own_repo, store, event, target=None)
    assert not push_event(own_repo, store, event, target=None)
    after = online.read_user("busy", "live").history
    assert len(after) == HISTORY_EVENTS
    assert (after.item[-1], after.domain[-1], after.action[-1], after.time_us[-1]) == (7, 1, 2, AFTER_ALL)
    np.testing.assert_array_equal(after.time_us[:-1], before.time_us[1:])

    late = replace(event, time_us=int(after.time_us[100]) + 1, item=9)
    assert push_event(own_repo, store, late, target=None)
    times = online.read_user("busy", "live").history.time_us
    assert (np.diff(times) >= 0).all()


def test_a_push_to_a_target_domain_reaches_a_user_nobody_knew(own_repo):
    """The first thing a new user does is history for the next request."""
    store, online = own_repo.store(), OnlineFeatures(own_repo)
    assert online.read_user("brand-new", "live") is None
    assert push_event(own_repo, store, PushedEvent("brand-new", 3, 3, 1, 1.0, AFTER_ALL), target="live")
    read = online.read_user("brand-new", "live")
    assert read is not None
    assert read.index == 0
    assert read.recent.item.tolist() == [3]


def test_materialising_never_overwrites_what_was_pushed_since(world, own_repo):
    """Feast alone would put the older history over the fresher one."""
    store, online = own_repo.store(), OnlineFeatures(own_repo)
    event = PushedEvent("u3", item=11, domain=2, action=1, value=1.0, time_us=AFTER_ALL)
    push_event(own_repo, store, event, target=None)
    push_event(own_repo, store, replace(event, user_id="u1", domain=3), target="live")
    before = online.read_user("u3", "live").history
    assert publish(world, own_repo) == 2
    assert_same(online.read_user("u3", "live").history, before.arrays())
    assert online.read_user("u1", "live").recent.item[-1] == 11


def test_pushes_of_many_threads_all_arrive(own_repo):
    """Every writer reads, adds and writes whole histories; none may write over another."""

    def push(number: int) -> None:
        push_event(own_repo, own_repo.store(), PushedEvent("crowd", number, 1, 1, 1.0, NOW + number), target=None)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(1, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert OnlineFeatures(own_repo).read_user("crowd", "live").history.item.tolist() == list(range(1, 13))


def test_applying_again_changes_nothing_and_the_command_line_agrees(own_repo):
    """`feast apply` in the generated folder finds the same objects; it would delete what it does not find."""
    apply(own_repo)
    before = sorted(view.name for view in own_repo.store().list_feature_views())
    assert before == ["user_history", "user_profile", "user_recent"]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "feast"), "-c", str(own_repo.root), "apply"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(view.name for view in own_repo.store().list_feature_views()) == before
    assert OnlineFeatures(own_repo).read_user("u0", "live") is not None


@pytest.mark.parametrize("harm", ["deleted", "overwritten"])
def test_a_store_that_is_gone_says_so_and_is_found_again(own_repo, harm):
    """No stale answer from a deleted file, no endless failure once it is back."""
    online, file = OnlineFeatures(own_repo), own_repo.online.file
    assert online.read_user("u0", "live") is not None
    with sqlite3.connect(file) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    connection.close()
    kept = file.read_bytes()
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    file.unlink()
    if harm == "overwritten":
        file.write_bytes(b"no database" * 1000)
    with pytest.raises(FeatureStoreDown):
        online.read_user("u0", "live")
    with pytest.raises(FeatureStoreDown):
        online.read_user("u0", "live")
    file.unlink(missing_ok=True)
    file.write_bytes(kept)
    assert online.read_user("u0", "live") is not None


def test_a_store_is_added_by_a_row_of_the_table_alone(world, tmp_path, monkeypatch):
    """Settings accept its name, Feast is told of it, and what is published is read from it."""

    class OtherFile(SqliteStore):
        @property
        def file(self) -> Path:
            return Path(self.address)

    with pytest.raises(ValidationError, match="no online store is called 'other'; there are sqlite, redis"):
        Settings(online_store="other")
    monkeypatch.setitem(ONLINE_STORES, "other", OtherFile)
    address = tmp_path / "other.db"
    made = feature_repo(Settings(home=tmp_path, online_store="other", online_store_address=str(address)))
    publish(world, made)
    assert address.exists()
    assert OnlineFeatures(made).read_user("u0", "live") is not None


@pytest.fixture
def redis_port(tmp_path: Path):
    """A Redis of this test's own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on this machine")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port, server
    finally:
        server.kill()
        server.wait()


@pytest.mark.servers
def test_redis_gives_the_same_answers_and_the_same_rules(world, redis_port, tmp_path):
    """Equal reads, pushes that survive a materialisation and repeat harmlessly, and a plain word when it is down."""
    port, server = redis_port
    made = FeatureRepo(tmp_path / "repo", online_store="redis", online_store_address=f"127.0.0.1:{port}")
    publish(world, made)
    store, online = made.store(), OnlineFeatures(made)
    for user_id in ("u0", "busy", "silent", "newcomer"):
        assert_same(online.read_user(user_id, "live").history, expected(world, user_id, AFTER_ALL))
    event = PushedEvent("u3", item=11, domain=2, action=1, value=1.0, time_us=AFTER_ALL)
    assert push_event(made, store, event, target=None)
    assert not push_event(made, store, event, target=None)
    assert publish(world, made) == 1
    assert online.read_user("u3", "live").history.item[-1] == 11
    server.kill()
    server.wait()
    with pytest.raises(FeatureStoreDown):
        online.read_user("u3", "live")
