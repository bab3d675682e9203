"""The disk of the home runs full under the real service: what goes on, what refuses, and that it heals with space."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.servers import plan
from orchestrator.settings import Settings
from tests.integration.service.fakes import Market, ask, assert_is_error, eventually
from tests.integration.service.test_processes import Server

pytestmark = pytest.mark.servers


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\1" * size)
            except OSError:
                continue
    return ballast


def graft(settings: Settings, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env=plan.environment(settings),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_answers_go_on_writers_refuse_and_all_heals_with_space(trained: Market, small_disk: Path) -> None:
    """Rankings and probes answer, a killed worker comes back, feedback is 503, commands end in one line."""
    home = small_disk / "home"
    shutil.copytree(trained.settings.home, home)
    market = Market(Settings(home=home))
    user, items = market.user(), market.items("live")
    simulated = home / "simulated" / "live"
    server = Server(market)
    try:
        server.wait_until_ready()
        client = server.client
        body = {"request_id": "r-1", "user_id": user, "domain": "live", "events": [{"item_id": items[0]}]}
        assert ask(client, user, items, request_id="r-1").status_code == 200
        assert client.post("/v1/feedback", json=body).status_code == 200

        ballast = fill(small_disk)
        for number in range(30):
            answer = ask(client, user, items, request_id=f"full-{number}")
            assert (answer.status_code, answer.json()["served_by"]) == (200, "zero_shot")
        for number in range(2000):  # what was free inside the registry's own files takes some of it
            body = body | {"request_id": f"full-feedback-{number}"}
            began = time.monotonic()
            refused = client.post("/v1/feedback", json=body)
            if refused.status_code != 200:
                break
        assert_is_error(refused, 503, "database_unavailable")
        assert refused.headers["Retry-After"]
        assert time.monotonic() - began < 5
        assert client.get("/livez").status_code == client.get("/metrics").status_code == 200

        [worker] = server.workers()
        worker.kill()
        eventually(lambda: bool(server.workers()) and server.workers()[0].pid != worker.pid, 60)
        server.wait_until_ready()
        assert ask(client, user, items).json()["served_by"] == "zero_shot"

        for words in (
            ("ingest", "live", "-i", str(simulated / "interactions.parquet")),
            ("train", "--local", "--set", "epochs=1"),
        ):
            ended = graft(market.settings, *words)
            assert ended.returncode == 1, (words, ended.stdout[-500:], ended.stderr[-500:])
            assert "Traceback" not in ended.stderr
            assert len(ended.stderr.strip().splitlines()) <= 3, ended.stderr

        ballast.unlink()
        eventually(lambda: client.post("/v1/feedback", json=body).status_code == 200, 20)
        assert ask(client, user, items).json()["served_by"] == "zero_shot"
        assert graft(market.settings, "ingest", "live", "-i", str(simulated / "interactions.parquet")).returncode == 0
    finally:
        server.stop()
    assert server.process.returncode == 0
