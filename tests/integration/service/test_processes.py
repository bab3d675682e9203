"""The service as real processes on loopback: promoted under load, and with a worker killed."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, closing

import httpx
import psutil
import pytest

from orchestrator.data.model_store import Artifacts
from orchestrator.servers import plan
from tests.integration.service.fakes import CONTRACT, Market, ask, assert_is_error, eventually, with_one_bit_turned


class Server:
    """The service as its own processes, on a free port of loopback."""

    def __init__(self, market: Market, workers: int = 1) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.settings = market.settings.model_copy(update={"service_port": port, "service_workers": workers})
        self.process = subprocess.Popen(plan.service(self.settings).command, env=plan.environment(self.settings))
        self.client = httpx.Client(base_url=self.settings.service_url, timeout=10, event_hooks={"response": [CONTRACT]})

    def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, "the service ended"
            try:
                return self.client.get("/readyz").status_code == 200
            except httpx.HTTPError:
                return False

        eventually(ready, timeout_s)

    def workers(self) -> list[psutil.Process]:
        """Processes that answer requests."""
        return [process for process in psutil.Process(self.process.pid).children(recursive=True) if _answers(process)]

    def stop(self) -> None:
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
            self.process.wait()


def _answers(process: psutil.Process) -> bool:
    try:
        return "worker.service" in " ".join(process.cmdline())
    except psutil.Error:  # it ended while we looked
        return False


class Load:
    """Callers that ask without pause, each on a connection of its own, until told to stop."""

    def __init__(self, server: Server, user: str, items: list[str], callers: int = 4) -> None:
        self.answers: list[tuple[int, str | None]] = []
        self.broken: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(server.settings.service_url, user, items)) for _ in range(callers)
        ]

    def _ask(self, url: str, user: str, items: list[str]) -> None:
        client = httpx.Client(base_url=url, timeout=20)
        while not self._stop.is_set():
            try:
                answer = ask(client, user, items)
            except httpx.HTTPError as error:
                self.broken.append(repr(error))
                client.close()
                client = httpx.Client(base_url=url, timeout=20)
                continue
            self.answers.append((answer.status_code, answer.json().get("model_version")))
        client.close()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.servers
def test_the_real_service_serves_and_promotes_under_load_without_a_failed_request(market):
    """Health, metrics, OpenAPI and the contract; then twelve promotions under load, of a broken version among them."""
    server = Server(market)
    try:
        server.wait_until_ready()
        client = server.client
        for path in ("/livez", "/readyz", "/healthz", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 200, path
        paths = client.get("/openapi.json").json()["paths"]
        assert {"/v1/domains/{domain}/rank", "/v1/feedback", "/v1/domains"} <= set(paths)
        user, items = market.user(), market.items("live")
        answer = ask(client, user, items)
        assert answer.json()["served_by"] == "zero_shot"
        assert {"features", "model", "rank"} <= {
            part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")
        }
        assert_is_error(ask(client, user, items, domain="nothing"), 404, "unknown_domain")
        assert_is_error(client.post("/v1/domains/live/rank", json={"user_id": "u"}), 422, "invalid_request")
        assert 'graft_answers_total{domain="live"' in client.get("/metrics").text

        versions = market.versions()
        weights = (
            Artifacts(market.settings.artifacts_dir).path(market.registry.version(versions["adapter"]).artifact)
            / "model.safetensors"
        )
        good = weights.read_bytes()
        with Load(server, user, items) as load:
            for turn in range(12):
                wanted = versions["adapter" if turn % 2 == 0 else "zero_shot"]
                if turn == 6:
                    weights.write_bytes(with_one_bit_turned(good))
                market.set_live("live", wanted)
                if turn == 6:
                    time.sleep(1.5)
                    assert ask(client, user, items).json()["model_version"] == versions["zero_shot"]
                    weights.write_bytes(good)
                eventually(lambda wanted=wanted: ask(client, user, items).json()["model_version"] == wanted)
        assert not load.broken
        assert {status for status, _ in load.answers} == {200}
        assert {version for _, version in load.answers} == set(versions.values())
        assert len(load.answers) > 100

        (market.settings.features_dir / "online.db").unlink()
        body = ask(client, user, items).json()
        assert (body["served_by"], body["reason"]) == ("prior", "features_unavailable")
    finally:
        server.stop()
    assert server.process.returncode == 0


@pytest.mark.servers
def test_killing_a_worker_costs_at_most_what_it_was_answering(market):
    """Of two workers one is killed under load: the other goes on, and a new one takes its place."""
    server = Server(market, workers=2)
    try:
        server.wait_until_ready()
        eventually(lambda: len(server.workers()) == 2, 60)
        user, items = market.user(), market.items("live")
        with Load(server, user, items, callers=4) as load:
            eventually(lambda: len(load.answers) > 50, 60)
            [killed, _] = server.workers()
            os.kill(killed.pid, signal.SIGKILL)
            at_kill = len(load.answers)
            eventually(lambda: len(load.answers) > at_kill + 50, 60)
            eventually(lambda: len(server.workers()) == 2 and killed.pid not in [w.pid for w in server.workers()], 60)
        assert {status for status, _ in load.answers} == {200}
        assert len(load.broken) <= 4
    finally:
        server.stop()


@pytest.mark.servers
def test_slow_and_large_callers_are_answered_or_let_go(market):
    """Idle connections are kept as long as the setting says, half-sent heads are not, and 413 is read by its caller."""
    market.settings = market.settings.model_copy(update={"service_keep_alive_s": 14})
    server = Server(market)
    address = ("127.0.0.1", server.settings.service_port)
    opened = ExitStack()
    try:
        server.wait_until_ready()
        halves = [opened.enter_context(socket.create_connection(address, timeout=20)) for _ in range(20)]
        for half in halves:
            half.sendall(b"POST /v1/domains/live/rank HTTP/1.1\r\nhost: x\r\n")
        kept = opened.enter_context(closing(http.client.HTTPConnection(*address, timeout=20)))
        for pause_s in (12, 0):  # longer than a head may take, shorter than an idle connection is kept
            kept.request("GET", "/v1/domains")
            assert kept.getresponse().read()
            time.sleep(pause_s)
        for half in halves:
            assert half.recv(100).startswith(b"HTTP/1.1 408")
        for close in ("close", "keep-alive"):
            large = opened.enter_context(closing(http.client.HTTPConnection(*address, timeout=20)))
            headers = {"content-type": "application/json", "connection": close}
            large.request("POST", "/v1/domains/live/rank", b"x" * 6_000_000, headers)
            assert large.getresponse().status == 413
        time.sleep(15)
        assert kept.sock.recv(100) == b""
    finally:
        opened.close()
        server.stop()


@pytest.mark.servers
def test_unknown_paths_cost_no_memory(market):
    """3,000 of them leave the worker and /metrics as they were."""
    server = Server(market)
    try:
        server.wait_until_ready()
        for path in ("/v1/never-there", "/metrics"):  # so that their own lines stand in what is compared
            server.client.get(path)
        [worker] = server.workers()
        before = len(server.client.get("/metrics").text), worker.memory_info().rss
        for number in range(3_000):
            server.client.get(f"/v1/x{number}")
        after = len(server.client.get("/metrics").text), worker.memory_info().rss
        assert after[0] < before[0] + 200
        assert after[1] < before[1] + 20e6
        assert server.client.get("/").json()["service"] == "graft"
    finally:
        server.stop()


@pytest.mark.servers
def test_a_killed_worker_is_away_for_moments_and_a_killed_template_not_at_all(market):
    """The template forks another worker; without it the workers go on until those of the next one answer."""
    server = Server(market)
    successor = None
    try:
        began = time.monotonic()
        server.wait_until_ready()
        start_s = time.monotonic() - began
        user, items = market.user(), market.items("live")
        with Load(server, user, items, callers=2) as load:
            eventually(lambda: len(load.answers) > 20, 60)
            for _ in range(3):
                [worker] = server.workers()
                at_kill, began = len(load.answers), time.monotonic()
                worker.kill()
                eventually(lambda at_kill=at_kill: len(load.answers) > at_kill + 5, 60)
                away_s = time.monotonic() - began
                assert away_s < start_s / 2  # a tenth on a quiet machine
            broken = len(load.broken)
            assert broken <= 3 * 2
            [orphan] = server.workers()
            server.process.kill()
            server.process.wait()
            at_kill = len(load.answers)
            eventually(lambda: len(load.answers) > at_kill + 20, 60)
            successor = subprocess.Popen(plan.service(server.settings).command, env=plan.environment(server.settings))
            eventually(lambda: not orphan.is_running(), 120)
            at_end = len(load.answers)
            eventually(lambda: len(load.answers) > at_end + 20, 60)
            # Connections of the worker that left are closed between two requests; one may be sent just then.
            assert len(load.broken) - broken <= 2
        assert {status for status, _ in load.answers} == {200}
    finally:
        if successor is not None:
            server.process = successor
        server.stop()
    assert server.process.returncode == 0
