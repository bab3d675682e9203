"""Requests that are turned away at the connection: what they are told, and that the connection is good afterwards."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from deployment.http import connections

PATH = "/v1/domains/live/rank"


class App:
    """Says how many bytes it was given, and counts its requests."""

    def __init__(self) -> None:
        self.requests = 0
        self.answers = threading.Event()
        self.answers.set()

    async def __call__(self, scope, receive, send) -> None:
        self.requests += 1
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        body = str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


class Busy:
    now = False


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    Busy.now = False
    monkeypatch.setattr(connections, "OVERLOADED", [lambda: Busy.now])
    return App()


@pytest.fixture
def port(app: App) -> Iterator[int]:
    config = uvicorn.Config(app, http=connections.BoundedConnection, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)


def ask(client: http.client.HTTPConnection, size: int, path: str = PATH, **headers: str) -> tuple[int, bytes]:
    client.request("POST", path, b"x" * size, headers)
    answer = client.getresponse()
    return answer.status, answer.read()


def test_a_busy_service_answers_without_the_app_and_keeps_the_connection(app: App, port: int) -> None:
    """The body is passed over, whatever its size; the next request on the connection is answered as ever."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    assert ask(client, 10) == (200, b"10")
    for size in (0, 10, 3_000_000):
        Busy.now = True
        client.request("POST", PATH, b"x" * size)
        answer = client.getresponse()
        assert (answer.status, answer.headers["Retry-After"], answer.headers["Content-Type"]) == (
            503,
            "1",
            "application/json",
        )
        assert b'"code":"overloaded"' in answer.read()
        Busy.now = False
        assert ask(client, 20) == (200, b"20")
    assert app.requests == 4
    client.close()


def test_what_is_no_ranking_or_cannot_be_passed_over_is_left_to_the_app(app: App, port: int) -> None:
    """Other paths and methods, bodies of unknown or too great a length, and callers that ask before they send."""
    Busy.now = True
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    assert ask(client, 10, "/v1/feedback")[0] == 200
    client.request("GET", PATH)
    assert client.getresponse().read() == b"0"
    client.request(
        "POST", PATH, iter([b"x" * 5, b"y" * 5]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    assert client.getresponse().read() == b"10"
    assert ask(client, 5_000_000)[0] == 200
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n".encode())
        assert plain.recv(1000).startswith(b"HTTP/1.1 100")
    assert app.requests == 5
    client.close()


def test_a_caller_that_wants_the_connection_closed_gets_it_closed(port: int) -> None:
    """After the answer, and not before the body has come."""
    Busy.now = True
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nConnection: close\r\n\r\n"
        plain.sendall(head.encode() + b"ab")
        time.sleep(0.2)
        plain.sendall(b"cd")
        answer = b""
        while piece := plain.recv(1000):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close" in answer.lower()


def test_requests_sent_one_behind_the_other_are_answered_in_order(port: int) -> None:
    """Two at once on one connection, both turned away."""
    Busy.now = True
    one = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab".encode()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(one + one)
        answer = b""
        while answer.count(b"overloaded") < 2:
            answer += plain.recv(1000)
    assert answer.count(b"HTTP/1.1 503 ") == 2
