"""A server of its own over loopback, and callers who are slow, too long, ambiguous or of another protocol."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import uvicorn

from deployment.engine.serving import Ranking
from deployment.http import api, connections
from deployment.http.api import create_app
from deployment.http.connections import BoundedConnection
from deployment.http.replies import error
from deployment.messages import MOST_BYTES, DomainsAnswer, FeedbackAnswer, OutboxStatus, RankAnswer
from domains.errors import Conflict, Rejected, UnknownDomain
from orchestrator.errors import Unavailable

BODY = b'{"request_id":"r","events":[{"item_id":"i"}]}'
RANK = b'{"user_id":"u","items":[{"item_id":"i"}]}'
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


class Fake:
    """Answers at once, or holds an answer back until it is let go."""

    overloaded = False
    registry = "up"
    features = "up"
    snapshot = SimpleNamespace(domains={})
    slow_s = 0.0
    fault: Exception | None = None

    def fail(self) -> None:
        if self.fault is not None:
            raise self.fault

    @property
    def ready(self) -> bool:
        self.fail()
        return True

    async def rank(self, domain, request) -> Ranking:
        self.fail()
        answer = RankAnswer(request_id="r", domain=domain, model_version=None, served_by="prior", took_ms=1.0, items=[])
        return Ranking(answer, 0.0, 0.0, 0.0)

    def status(self) -> DomainsAnswer:
        self.fail()
        outbox = OutboxStatus(events=0, oldest_s=0.0)
        return DomainsAnswer(generation=1, registry="up", features="up", lost_records=0, outbox=outbox, domains=[])

    async def feedback(self, request, key=None) -> FeedbackAnswer:
        self.fail()
        await asyncio.sleep(self.slow_s)
        return FeedbackAnswer(request_id=request.request_id, accepted=len(request.events), duplicates=0)


class FakeKeys:
    """Refuses with a status, if it is told one."""

    status = 0

    def refusal(self, method, path, token, *, from_here=True):
        return None, error(self.status, "refused", "by its key") if self.status else None


@pytest.fixture
def server() -> Iterator[SimpleNamespace]:
    fake, keys = Fake(), FakeKeys()
    config = uvicorn.Config(
        create_app(lambda: fake, lambda: keys),
        port=0,
        http=BoundedConnection,
        log_config=None,
        server_header=False,
        lifespan="off",
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    listening = running.servers[0].sockets[0]
    known = {"fake": fake, "keys": keys, "listening": listening, "connections": running.server_state.connections}
    yield SimpleNamespace(address=listening.getsockname(), **known)
    running.should_exit = running.force_exit = True
    thread.join()


def post(*more: bytes, body: bytes = BODY, length: bool = True, line: bytes = b"POST /v1/feedback HTTP/1.1") -> bytes:
    heads = [line, b"host: x", b"content-type: application/json", *more]
    if length:
        heads.append(b"content-length: %d" % len(body))
    return b"\r\n".join(heads) + b"\r\n\r\n" + body


def get(path: bytes = b"/livez", *more: bytes, host: bytes = b"host: x") -> bytes:
    return b"\r\n".join([b"GET %b HTTP/1.1" % path, host, *more]) + b"\r\n\r\n"


def told(server, *parts: bytes, pause_s: float = 0.0, close: bool = True) -> list[tuple[int, dict]]:
    """Status and body of each answer, once the connection ends (``close`` asks for that at the end)."""
    with socket.create_connection(server.address, timeout=10) as caller:
        for part in parts:
            caller.sendall(part)
            time.sleep(pause_s)
        if close:
            caller.sendall(get(b"/livez", b"connection: close"))
        came = b""
        while piece := caller.recv(1 << 16):
            came += piece
    answers = []
    while came:
        head, _, came = came.partition(b"\r\n\r\n")
        if b"100 Continue" in head:
            continue
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(lines[b"content-length"])
        assert lines[b"content-type"] in (b"application/json", b"text/plain; charset=utf-8")
        assert lines[b"x-content-type-options"] == b"nosniff"
        assert b"server" not in lines
        status = int(head.split()[1])
        assert status not in (429, 503) or int(lines[b"retry-after"]) >= 1
        answers.append((status, json.loads(came[:length] or b"null")))
        came = came[length:]
    return answers


ALIVE = (200, {"status": "alive"})


@pytest.mark.parametrize(
    "raw",
    [
        get(b"http://elsewhere/livez"),
        b"\r\n\r\n" + get(),
        get() + get(),
        post(),
        post(b"transfer-encoding: chunked", body=CHUNKED, length=False),
        post(b"expect: 100-continue"),
        get(b"/livez", b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"),
        post(b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"),
        post(b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13"),
        post(b"connection: upgrade", b"upgrade: h2c", b"transfer-encoding: chunked", body=CHUNKED, length=False),
        post(body=b" " * 300_000 + BODY) + get(),
    ],
)
def test_a_request_is_answered_in_whatever_pieces_it_comes(server, raw):
    """And the one after it on the same connection; who offers another protocol gets this one."""
    for parts in ([raw], [raw[:20], raw[20:70], raw[70:]]):
        answers = told(server, *parts, pause_s=0.02)
        assert {status for status, _ in answers} == {200}
        assert answers[-1] == ALIVE


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"BREW /livez HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /livez\r\n\r\n", 505),
        (b"GET /livez HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT other:443 HTTP/1.1\r\nhost: other\r\n\r\n", 400),
        (get(host=b"x: y"), 400),
        (get(b"/livez", b"host: y"), 400),
        (get(b"/\xff"), 400),
        (get(b"http://[::1/livez"), 400),
        (get(b"/livez", b"x : y"), 400),
        (get(b"/livez", b"x: a\x00b"), 400),
        (get(b"/livez", b"x: a", b" folded"), 400),
        (get(b"/" + b"a" * 9_000), 414),
        (get(b"/" + b"a" * 3_000_000), 414),
        (get(b"/livez", b"x: " + b"a" * 70_000), 431),
        (get(b"/livez", b"x: " + b"a" * 3_000_000), 431),
        (get(b"/livez", *[b"x%d: a" % number for number in range(100_000)]), 431),
        (post(b"content-length: 45"), 400),
        (post(b"content-length: -1", length=False), 400),
        (post(b"content-length: 0x2d", length=False), 400),
        (post(b"content-length: 45, 45", length=False), 400),
        (post(b"content-length: 99999999999999999999999", length=False), 400),
        (post(b"transfer-encoding: chunked", body=CHUNKED), 400),
        (post(b"content-length: 4", b"transfer-encoding: chunked", length=False, body=b"0\r\n\r\n" + get()), 400),
        (post(b"transfer-encoding: identity", length=False), 400),
        (post(b"transfer-encoding: gzip, chunked", length=False, body=CHUNKED), 400),
        (post(b"transfer-encoding: xchunked", length=False, body=CHUNKED), 400),
        (post(b"transfer-encoding: chunked", b"transfer-encoding: chunked", length=False, body=CHUNKED), 400),
        (post(b"transfer-encoding: chunked", length=False, body=CHUNKED, line=b"POST /v1/feedback HTTP/1.0"), 400),
        (post(b"transfer-encoding: chunked", length=False, body=b"zz\r\n" + BODY), 400),
        (post(b"content-type: text/plain"), 400),
        (post(b"content-encoding: gzip", b"content-encoding: identity"), 400),
        (post(b"authorization: Bearer a", b"authorization: Bearer b"), 400),
    ],
)
def test_what_is_no_request_is_answered_once_and_ends_the_connection(server, raw, status):
    """In the shape of every error; nothing behind it is taken for a request."""
    before = time.monotonic()
    [(found, body)] = told(server, raw, get(), close=False)
    assert found == status
    assert set(body["error"]) == {"code", "message"}
    assert time.monotonic() - before < 2


@pytest.mark.parametrize("bad", [b"BREW / HTTP/1.1\r\n\r\n", get(b"/" + b"a" * 9_000), get(host=b"x: y")])
def test_what_was_asked_before_nonsense_is_answered_before_the_connection_ends(server, bad):
    """The nonsense is not taken for its answer."""
    server.fake.slow_s = 0.2
    assert [status for status, _ in told(server, post() + post() + bad, close=False)] == [200, 200]


def test_a_broken_body_behind_another_request_is_answered_in_its_turn(server):
    """Its own answer comes second."""
    server.fake.slow_s = 0.2
    broken = post(b"transfer-encoding: chunked", length=False, body=b"zz\r\n" + BODY)
    assert [status for status, _ in told(server, post() + broken, close=False)] == [200, 400]


@pytest.mark.parametrize("more", [(), (b"connection: close",), (b"expect: 100-continue",)])
@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"POST /v1/feedback HTTP/1.1", 413),
        (b"POST /v1/feedback HTTP/1.0", 413),
        (b"PUT /v1/feedback HTTP/1.1", 405),
        (b"POST /nothing HTTP/1.1", 404),
        (b"GET /livez HTTP/1.1", 200),
    ],
)
def test_a_caller_who_sends_what_nobody_reads_still_reads_its_answer(server, line, status, more):
    """Much too large, sent to its end, on a connection that is to be closed or not."""
    parts = [b"x" * (1 << 20)] * (3 * MOST_BYTES // (1 << 20))
    head = post(*more, b"content-length: %d" % sum(map(len, parts)), line=line, body=b"", length=False)
    assert told(server, head, *parts, close=not more and b"1.1" in line)[0][0] == status


def test_a_head_that_does_not_come_is_given_up(server, monkeypatch):
    """Half of one is told so, a silent caller is not; nor is the rest of a body waited for that was not read."""
    monkeypatch.setattr(connections, "HEAD_LIMIT_S", 0.1)
    assert [status for status, _ in told(server, b"GET /livez HTTP/1.1\r\n", close=False)] == [408]
    assert told(server, b"", close=False) == []
    half = post(b"content-length: 9", length=False, line=b"PUT /v1/feedback HTTP/1.1", body=b"1")
    assert [status for status, _ in told(server, half, close=False)] == [405]


def test_idle_connections_are_kept_as_long_as_the_setting_says(server, monkeypatch):
    """Neither longer nor shorter."""
    monkeypatch.setattr(connections, "KEEP_ALIVE_S", 0.5)
    before = time.monotonic()
    assert told(server, get(), get(), pause_s=0.3, close=False) == [ALIVE, ALIVE]
    assert 0.8 < time.monotonic() - before < 2


def test_a_connection_holds_few_requests_in_waiting(server):
    """However many are sent at once; those that it holds are answered, and it ends."""
    answers = told(server, get() * 100_000, close=False)
    assert connections.MOST_PIPELINED < len(answers) < 1_000
    assert set(map(str, answers)) == {str(ALIVE)}


def test_a_caller_who_does_not_read_is_let_go(server, monkeypatch):
    """What is written to it would be held for ever."""
    monkeypatch.setattr(connections, "TAKE_LIMIT_S", 0.2)
    server.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for asked in (90, 4):  # more than is buffered before writing stops, and less
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            caller.connect(server.address)
            caller.sendall(get(b"/openapi.json") * asked + get(b"/livez", b"connection: close"))
            time.sleep(1)
            assert not [one for one in server.connections if one.transport.get_write_buffer_size()]


def test_every_status_that_is_declared_is_seen(server, monkeypatch):
    """Of every operation; the other way round, that none else is seen, is asked of every answer in the tests."""
    fake, keys = server.fake, server.keys

    def seen(
        method: str,
        path: str,
        *,
        fault: Exception | None = None,
        key: int = 0,
        end: str = "",
        more: str = "",
        cut: bool = False,
    ) -> int:
        fake.fault, keys.status = fault, key
        monkeypatch.setattr(connections, "HEAD_LIMIT_S", 0.1 if cut else 10.0)  # whole requests may come slowly
        body = b"" if method == "GET" else BODY if path == "/v1/feedback" else RANK
        heads = [f"{method} {path}{end or ' HTTP/1.1'}", "host: x", more or "content-type: application/json"]
        if "content-length" not in more:
            heads.append(f"content-length: {len(body)}")
        raw = "\r\n".join(heads).encode() + (b"" if cut else b"\r\n\r\n" + body)
        return told(server, raw, close=False)[0][0]

    monkeypatch.setattr(connections, "KEEP_ALIVE_S", 0.1)
    for path, operations in create_app(lambda: fake).openapi()["paths"].items():
        for name, operation in operations.items():
            ask = partial(seen, name.upper(), path.replace("{domain}", "live"))
            monkeypatch.setattr(api, "exposition", lambda _: fake.fail() or (b"", "text/plain"))
            how = {
                200: partial(ask),
                400: partial(ask, more="host: y"),
                401: partial(ask, key=401),
                403: partial(ask, key=403),
                404: partial(ask, fault=UnknownDomain("no such domain")),
                408: partial(ask, cut=True),
                409: partial(ask, fault=Conflict("on record otherwise")),
                413: partial(ask, more="content-length: 5000000"),
                414: partial(ask, end="?" + "a" * 9_000 + " HTTP/1.1"),
                415: partial(ask, more="content-type: text/plain"),
                422: partial(ask, fault=Rejected("no")),
                429: partial(ask, key=429),
                431: partial(ask, more="x: " + "a" * 70_000),
                500: partial(ask, fault=KeyError("secret")),
                503: partial(ask, fault=Unavailable("not now")),
                505: partial(ask, end=" HTTP/2.0"),
            }
            for status in map(int, operation["responses"]):
                assert how[status]() == status, (path, name, status)
