"""More requests than the service can answer, from a process of its own that spends little on each.

    python -m benchmarks.chaos.flood URL BODIES.json --per-s 700 --seconds 60

Requests leave by the clock, whatever became of those before them. Each goes out on a kept connection that is idle, or
on a new one while there are few; ``/livez`` is asked ten times a second beside them. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

MOST_CONNECTIONS = 400
PROBE_EVERY_S = 0.1


class Caller(asyncio.Protocol):
    """One kept connection; it has one request out at a time."""

    def __init__(self, flood: Flood) -> None:
        self._flood = flood
        self._transport: asyncio.Transport | None = None
        self._answer = b""
        self._began = 0.0
        self.waits = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, request: bytes) -> None:
        assert self._transport is not None
        self.waits, self._answer, self._began = True, b"", time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found:
            return
        lowered = head.lower()
        at = lowered.find(b"content-length:")
        length = int(lowered[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(body) < length:
            return
        self.waits = False
        self._flood.answered(int(head[9:12]), time.perf_counter() - self._began)
        if b"connection: close" in lowered:
            assert self._transport is not None
            self._transport.close()
        else:
            self._flood.free(self)

    def connection_lost(self, _: Exception | None) -> None:
        if self.waits:
            self._flood.answered(0, time.perf_counter() - self._began)
        if self in self._flood.idle:
            self._flood.idle.remove(self)
        self._flood.connections -= 1


class Flood:
    """The requests of one address, and what became of them."""

    def __init__(self, url: str, bodies: list[bytes], headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._requests = [
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n{more}"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
            for body in bodies
        ]
        self._probe = f"GET /livez HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
        self.idle: list[Caller] = []
        self.connections = 0
        self._took: dict[int, list[float]] = {}
        self._alive: list[float] = []
        self._again_until = 0.0
        self.sent = 0
        self.held_back = 0
        """Requests that found every connection waiting: the caller's own limit."""

    def answered(self, status: int, took_s: float) -> None:
        """Note an answer; status 0 is a connection that broke."""
        self._took.setdefault(status, []).append(took_s)

    async def run(self, *, per_s: float, seconds: float) -> None:
        """Send so many a second, for so long, and wait a moment for the last answers."""
        began = time.perf_counter()
        probes = asyncio.create_task(self._ask_livez(began + seconds))
        while (now := time.perf_counter() - began) < seconds:
            due = int(now * per_s)
            while self.sent + self.held_back < due:
                await self._send()
            await asyncio.sleep(0.002)
        await asyncio.sleep(1)
        await probes

    async def saturate(self, *, callers: int, seconds: float) -> None:
        """Callers that ask again as soon as they are answered: what the service can do."""
        self._again_until = time.perf_counter() + seconds
        for _ in range(callers):
            await self._send()
        await asyncio.sleep(seconds + 1)

    def free(self, caller: Caller) -> None:
        """Take back a connection that was answered."""
        if time.perf_counter() < self._again_until:
            self._ask(caller)
        else:
            self.idle.append(caller)

    async def _send(self) -> None:
        if self.idle:
            caller = self.idle.pop()
        elif self.connections < MOST_CONNECTIONS:
            self.connections += 1
            try:
                _, caller = await asyncio.get_running_loop().create_connection(
                    lambda: Caller(self), self._host, self._port
                )
            except OSError:
                self.connections -= 1
                self.sent += 1
                self.answered(0, 0.0)
                return
        else:
            self.held_back += 1
            return
        self._ask(caller)

    def _ask(self, caller: Caller) -> None:
        caller.ask(self._requests[self.sent % len(self._requests)])
        self.sent += 1

    async def _ask_livez(self, until: float) -> None:
        while time.perf_counter() < until:
            began = time.perf_counter()
            try:
                async with asyncio.timeout(5):
                    reader, writer = await asyncio.open_connection(self._host, self._port)
                    writer.write(self._probe)
                    await reader.readuntil(b"\r\n\r\n")
                    writer.close()
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                pass
            self._alive.append(time.perf_counter() - began)
            await asyncio.sleep(PROBE_EVERY_S)

    def result(self, seconds: float) -> dict[str, object]:
        """Rates a second and times in milliseconds."""
        shed, good = self._took.get(503, []), self._took.get(200, [])
        return {
            "sent": self.sent,
            "held_back": self.held_back,
            "statuses": Counter({str(status): len(took) for status, took in self._took.items()}),
            "goodput_per_s": len(good) / seconds,
            "good_ms": _percentiles(good),
            "shed_ms": _percentiles(shed),
            "livez_ms": _percentiles(self._alive),
            "livez_worst_ms": max(self._alive, default=0.0) * 1e3,
        }


def _percentiles(took_s: list[float]) -> dict[str, float] | None:
    return {f"p{at}": float(np.percentile(took_s, at)) * 1e3 for at in (50, 95, 99)} if took_s else None


def main() -> None:
    """Read the options, send, print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path, help="JSON list of bodies")
    parser.add_argument("--headers", type=json.loads, default={})
    parser.add_argument("--per-s", type=float, help="requests a second; without it as many as are answered")
    parser.add_argument("--callers", type=int, default=8, help="how many ask at once where no rate is given")
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    bodies = [json.dumps(body).encode() for body in json.loads(options.bodies.read_text())]
    flood = Flood(options.url, bodies, options.headers)
    if options.per_s is None:
        asyncio.run(flood.saturate(callers=options.callers, seconds=options.seconds))
    else:
        asyncio.run(flood.run(per_s=options.per_s, seconds=options.seconds))
    print(json.dumps(flood.result(options.seconds)))


if __name__ == "__main__":
    main()
