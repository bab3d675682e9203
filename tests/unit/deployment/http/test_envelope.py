"""Around every request: what is turned away before its body is read, and callers who are slow."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest

from deployment.http import bodies
from deployment.http.bodies import Bodies
from deployment.http.envelope import Envelope
from deployment.records import metrics
from deployment.records.log_lines import FewTraces

RANK = "/v1/domains/live/rank"


def call(
    chunks: list[Any], *, path: str = RANK, overloaded: bool = False, **headers: str
) -> tuple[int, dict, dict, int]:
    """Status, headers and body of the answer, and how many of the chunks were taken; None among them never comes."""
    sent: list[dict] = []
    taken = 0

    async def receive() -> dict:
        nonlocal taken
        if taken == len(chunks) or chunks[taken] is None:
            await asyncio.Event().wait()
        taken += 1
        return {"type": "http.request", "body": chunks[taken - 1], "more_body": taken < len(chunks)}

    async def send(message: dict) -> None:
        sent.append(message)

    async def app(scope: dict, receive: Any, send: Any) -> None:
        if (await receive())["body"] == b"break":
            raise KeyError("a secret")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    names = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {"type": "http", "method": "POST", "path": path}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in names.items()]
    around = Envelope(Bodies(app, lambda: SimpleNamespace(overloaded=overloaded), most_bytes=1_000))
    asyncio.run(around(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"]), taken


def test_a_request_that_is_too_many_is_turned_away_unread():
    """However large it is; other paths are not."""
    status, headers, body, taken = call([b"x" * 500] * 2, overloaded=True)
    assert (status, body["error"]["code"], taken) == (503, "overloaded", 0)
    assert headers[b"retry-after"] == b"1"
    assert call([b"{}"], path="/v1/feedback", overloaded=True)[0] == 200


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
    """408, and the connection with it."""
    monkeypatch.setattr(bodies, "BODY_LIMIT_S", 0.05)
    status, headers, body, _ = call([b"{", None])
    assert (status, body["error"]["code"], headers[b"connection"]) == (408, "too_slow", b"close")


def test_what_is_too_large_is_refused_at_once():
    """Unread where its length is declared; a caller that waits for leave to send is to send nothing."""
    assert call([b"x" * 600] * 9)[::3] == (413, 2)
    assert call([b"x" * 600] * 9, content_length="5400")[::3] == (413, 0)
    status, headers, _, taken = call([b"x" * 600] * 9, content_length="5400", expect="100-continue")
    assert (status, taken, headers[b"connection"]) == (413, 0, b"close")
    assert call([b"{}"] * 3, content_encoding="br")[::3] == (415, 0)


def test_every_answer_says_that_it_is_for_its_caller_alone():
    """The right ones and the wrong ones."""
    for answer in (call([b"{}"]), call([b"x" * 2_000]), call([b"break"])):
        assert answer[1][b"x-content-type-options"] == b"nosniff"
        assert answer[1][b"cache-control"] == b"no-store"


def test_a_fault_is_an_answer_and_tells_no_secrets():
    """The exception goes no further: the server around would log it once more."""
    status, _, body, _ = call([b"break"])
    assert (status, body["error"]["code"]) == (500, "internal")
    assert "secret" not in json.dumps(body)


def test_one_trace_a_minute_of_each_kind():
    """And how many were held back; lines without a trace all pass."""
    few = FewTraces(every_s=60.0)

    def passes(message: str, error: Exception | None) -> bool:
        info = (type(error), error, None) if error else None
        return few.filter(logging.LogRecord("deployment", logging.ERROR, "f", 1, message, (), info))

    assert [passes("request failed", KeyError(str(number))) for number in range(3)] == [True, False, False]
    assert passes("request failed", TypeError())
    assert passes("other", KeyError())
    assert passes("request failed", None)


@pytest.mark.parametrize(("workers", "shared"), [(1, False), (2, True)])
def test_counts_lie_in_memory(monkeypatch, tmp_path, workers, shared):
    """Never on the disk of the data, where a full one would end the process; files of dead workers go."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/data")
    monkeypatch.setattr(metrics, "SHARED_MEMORY", tmp_path)
    metrics.place("3000", workers=workers)
    folder = metrics.os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    assert (folder is not None) == shared
    if folder is not None:
        dead = metrics.Path(folder) / "counter_999999999.db"
        own = metrics.Path(folder) / f"counter_{metrics.os.getpid()}.db"
        dead.write_bytes(b"x")
        own.touch()
        with own.open("r+b") as file:
            file.truncate(1 << 20)
        metrics.place("3000", workers=workers)
        metrics.reserve()
        assert [dead.exists(), own.stat().st_blocks * 512] == [False, 1 << 20]
        metrics.release()
        assert not metrics.Path(folder).exists()


def test_domains_that_answer_no_more_leave_the_metrics():
    """What else is counted stays."""
    counted = metrics.Metrics()
    for domain in ("here", "retired"):
        counted.answered(domain, "prior", None)
    text = metrics.exposition(["here"])[0].decode()
    assert 'graft_answers_total{domain="here"' in text
    assert "retired" not in text
    assert "graft_requests_total" in text
