"""A home is backed up and restored while it is served: the same answers, and nothing acknowledged later is lost."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from domains.errors import Conflict, NotFound, Rejected
from orchestrator import use_cases
from orchestrator.data.model_store import Artifacts
from orchestrator.jobs import backup
from orchestrator.servers import plan
from orchestrator.settings import Settings
from tests.integration.service.conftest import client_of, served
from tests.integration.service.fakes import Market, eventually


def users(market: Market) -> list[str]:
    """Users of the target, in the order of their first events."""
    return list(dict.fromkeys(market.data("live").interactions(["user_id"])["user_id"].to_pylist()))


def answers(client, market: Market) -> list[dict]:
    """What a few users of each target get; without what differs from request to request."""
    bodies = [
        {"user_id": user, "items": [{"item_id": item} for item in market.items("live")]}
        for user in [*users(market)[1:6], "nobody"]
    ]
    found = []
    for name, body in itertools.product(("live", "grocery"), bodies):
        answer = client.post(f"/v1/domains/{name}/rank", json=body).json()
        found.append({key: value for key, value in answer.items() if key not in ("request_id", "took_ms")})
    return found


def send(client, request_id: str, user: str, item: str) -> bool:
    """Feedback of a user; whether it was acknowledged."""
    body = {"request_id": request_id, "user_id": user, "domain": "live", "events": [{"item_id": item}]}
    return client.post("/v1/feedback", json=body).status_code == 200


def kept(market: Market) -> set[str]:
    """Requests whose feedback the registry's file holds, read by nobody else's connection."""
    with closing(sqlite3.connect(str(make_url(market.settings.registry_url).database))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {name for (name,) in connection.execute("SELECT request_id FROM feedback")}


@pytest.mark.parametrize("name", ["copy", "copy.tar.gz"])
def test_a_fresh_home_made_of_a_backup_gives_the_same_answers(market, client, tmp_path, name):
    """What users did just before is part of them; the fresh home knows nothing of the old one's path."""
    user, item = users(market)[0], market.items("live")[0]
    known = market.read(user).recent.time_us.tolist()
    assert send(client, "before", user, item)
    eventually(lambda: market.read(user).recent.time_us.tolist() != known, 30)
    before, just_now = answers(client, market), market.read(user).recent.time_us.tolist()
    made = backup.back_up(tmp_path / name, settings=market.settings)
    assert made.registry == "sqlite"
    fresh = Market(Settings(home=tmp_path / "fresh"))
    assert backup.restore(tmp_path / name, settings=fresh.settings) == made
    market.settings.home.rename(tmp_path / "gone")
    with served(fresh, fresh.registry) as serving, client_of(serving) as restored:
        assert answers(restored, fresh) == before
    # What one did a second ago tells another score each second; so here the history itself.
    assert fresh.read(user).recent.time_us.tolist() == just_now
    assert "before" in kept(fresh)
    assert [entry["what"] for entry in fresh.registry.audit(limit=1)] == ["restore"]


def test_a_restore_under_a_running_service_loses_nothing_acknowledged_after_it(market, client, tmp_path):
    """Two versions take turns and feedback is sent all the while; the service then shows what was restored."""
    user, items = users(market)[0], market.items("live")
    zero, trained = (market.versions()[level] for level in ("zero_shot", "adapter"))
    assert send(client, "in-the-backup", user, items[0])
    backup.back_up(tmp_path / "copy", settings=market.settings)
    market.set_live("live", trained)
    acknowledged: list[tuple[float, str]] = []
    stop = threading.Event()

    def callers(caller: int) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            request_id = f"{caller}-{number}"
            began = time.monotonic()
            if send(client, request_id, user, items[number % len(items)]):
                acknowledged.append((began, request_id))

    threads = [threading.Thread(target=callers, args=(caller,)) for caller in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    backup.restore(tmp_path / "copy", settings=market.settings, replace=True)
    restored_at = time.monotonic()
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    held = kept(market)
    after = {request_id for at, request_id in acknowledged if at > restored_at}
    assert len(after) > 10
    assert after - held == set()
    assert "in-the-backup" in held
    body = {"user_id": user, "items": [{"item_id": items[0]}]}
    assert client.post("/v1/domains/live/rank", json=body).json()["model_version"] == zero


def test_a_backup_made_while_files_come_in_and_feedback_is_written_is_whole(market, client, tmp_path):
    """Every version, event and id that the copied registry speaks of is in the copy."""
    user, items, stop = users(market)[0], market.items("live"), threading.Event()

    def busy() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            send(client, f"busy-{number}", user, items[number % len(items)])

    thread = threading.Thread(target=busy)
    thread.start()
    simulated = market.settings.home / "simulated" / "video"
    ingest = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "ingest", "video", "-i", str(simulated / "interactions.parquet")],
        env=plan.environment(market.settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for number in range(3):
            backup.back_up(tmp_path / f"copy-{number}", settings=market.settings)
            fresh = Market(Settings(home=tmp_path / f"fresh-{number}"))
            backup.restore(tmp_path / f"copy-{number}", settings=fresh.settings)
            for version in fresh.registry.versions():
                assert Artifacts(fresh.settings.artifacts_dir).verified(version.artifact)
            for domain in fresh.registry.domains():
                assert fresh.data(domain.name).interactions(["user_id"]).num_rows > 0
    finally:
        stop.set()
        thread.join()
        ingest.wait(60)


def test_a_damaged_backup_changes_nothing(market, tmp_path):
    """A file that is missing, changed, or cut short; a folder that is none; a path that leads out."""
    made = backup.back_up(tmp_path / "copy", settings=market.settings)
    fresh = Settings(home=tmp_path / "fresh")
    name = next(name for name in made.files if name.endswith(".parquet"))
    whole = (tmp_path / "copy" / name).read_bytes()
    for broken in (whole[:-1], b"", None):
        (tmp_path / "copy" / name).unlink()
        if broken is not None:
            (tmp_path / "copy" / name).write_bytes(broken)
        with pytest.raises(Rejected, match="missing or damaged"):
            backup.restore(tmp_path / "copy", settings=fresh)
        (tmp_path / "copy" / name).write_bytes(whole)
    manifest = tmp_path / "copy" / backup.MANIFEST
    out = made.as_dict() | {"files": {"../evil": "0"}}
    manifest.write_text(json.dumps(out))
    with pytest.raises(Rejected, match="leads out"):
        backup.restore(tmp_path / "copy", settings=fresh)
    manifest.write_text("{")
    with pytest.raises(Rejected, match="cannot be read"):
        backup.restore(tmp_path / "copy", settings=fresh)
    (tmp_path / "copy.tar").write_bytes(b"not a tar")
    with pytest.raises(Rejected, match="cannot be read"):
        backup.restore(tmp_path / "copy.tar", settings=fresh)
    with pytest.raises(NotFound):
        backup.restore(tmp_path / "nowhere", settings=fresh)
    assert not fresh.home.exists()


def test_what_is_there_is_overwritten_only_when_somebody_says_so(market, tmp_path):
    """Neither a home by a restore, nor a file by a backup; a backup that fails leaves nothing behind."""
    backup.back_up(tmp_path / "copy", settings=market.settings)
    with pytest.raises(Conflict, match="--replace"):
        backup.restore(tmp_path / "copy", settings=market.settings)
    with pytest.raises(Conflict, match="exists"):
        backup.back_up(tmp_path / "copy", settings=market.settings)
    with pytest.raises(NotFound, match="no registry"):
        backup.back_up(tmp_path / "none", settings=Settings(home=tmp_path / "empty"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".none", ".copy", "none"))] == []


def test_a_run_that_was_under_way_is_closed_and_secrets_stay_where_they_were(market, tmp_path):
    """Nobody would ever end it in the restored home; a backup lets nobody in."""
    (market.settings.home / "prefect-auth").write_text("secret")
    market.registry.start_run("train-shared", None, params={}, by="ann", run_id="going")
    made = backup.back_up(tmp_path / "copy.tar", settings=market.settings)
    assert (tmp_path / "copy.tar").stat().st_mode & 0o077 == 0
    assert not any("prefect-auth" in name or "runs/" in name for name in made.files)
    fresh = Settings(home=tmp_path / "fresh")
    backup.restore(tmp_path / "copy.tar", settings=fresh)
    assert use_cases.open_registry(fresh).run("going").state == "failed"


def test_the_commands_say_what_they_did(market, tmp_path):
    """In one line each."""

    def graft(home: Path, *words: str) -> subprocess.CompletedProcess:
        environment = {**plan.environment(Settings(home=home)), "COLUMNS": "200"}
        command = [sys.executable, "-m", "orchestrator.cli", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = graft(market.settings.home, "backup", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr
    assert "files of" in done.stdout
    refused = graft(market.settings.home, "restore", str(tmp_path / "copy"))
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1
    done = graft(tmp_path / "fresh", "restore", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr
    assert "live" in graft(tmp_path / "fresh", "domains", "list").stdout
