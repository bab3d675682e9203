"""The online store away and back: Redis frozen, slow, dead and flapping, and the disk of the home full.

Both rows start the prediction service alone, over a copy of the stack's home: one with Redis as its online store, one
on a small file system.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.chaos.load import Load, Log
from benchmarks.chaos.rows import Measured, Row
from benchmarks.chaos.stack import Stack, wait_for
from domains.registry.registry import Registry
from orchestrator.data import online
from orchestrator.servers import plan
from orchestrator.settings import Settings

PER_S = 20.0
TIMES_QUIET = 2.0
DISK_MB = 64


class Alone:
    """The prediction service alone, with settings of its own; callers take it for the stack."""

    def __init__(self, stack: Stack, settings: Settings) -> None:
        self.settings = settings
        self.url = settings.service_url
        self.people = stack.people
        self._process = subprocess.Popen(
            plan.service(settings).command,
            env=plan.environment(settings),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def said(self, path: str) -> dict[str, Any]:
        """What a path answers; nothing where it does not."""
        with contextlib.suppress(httpx.HTTPError, ValueError):
            return httpx.get(f"{self.url}{path}", headers=self.settings.service_headers, timeout=2).json()
        return {}

    def features(self) -> str:
        """What /v1/domains says of the feature store."""
        return str(self.said("/v1/domains").get("features", ""))

    def worker(self) -> psutil.Process | None:
        """The process that answers."""
        children = psutil.Process(self._process.pid).children()
        return children[0] if children else None

    def ready(self) -> bool:
        """Whether it answers."""
        return self.said("/readyz").get("status") == "ready"

    def end(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(60)


def free_port() -> int:
    """A port of loopback that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def alone(stack: Stack, settings: Settings) -> Iterator[Alone]:
    """The service alone, ready."""
    service = Alone(stack, settings)
    try:
        wait_for(service.ready, 180, "ready service")
        yield service
    finally:
        service.end()


def redis(stack: Stack, seconds: float) -> Measured:
    """Each fault for a share of the time, and then until the store answers again; callers ask throughout."""
    if shutil.which("redis-server") is None:
        return Measured("no redis-server on this machine", ok=False)
    folder = Path(tempfile.mkdtemp(prefix="graft-chaos-redis-"))
    port = free_port()
    words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    servers = [subprocess.Popen(words, stdout=subprocess.DEVNULL)]
    settings = stack.settings.model_copy(
        update={
            "online_store": "redis",
            "online_store_address": f"127.0.0.1:{port}",
            "service_port": free_port(),
            "home": folder / "home",
        }
    )

    def freeze() -> None:
        servers[-1].send_signal(signal.SIGSTOP)

    def thaw() -> None:
        servers[-1].send_signal(signal.SIGCONT)

    def end() -> None:
        servers[-1].terminate()
        servers[-1].wait()

    def begin() -> None:
        servers.append(subprocess.Popen(words, stdout=subprocess.DEVNULL))

    try:
        shutil.copytree(stack.settings.home, settings.home, ignore=shutil.ignore_patterns("prefect", "logs"))
        wait_for(lambda: _listens(port), 20, "Redis")
        online.refresh(registry=Registry(settings.registry_url), settings=settings)
        with alone(stack, settings) as service:
            return _taken_away(service, seconds, {"frozen": (freeze, thaw), "dead": (end, begin)})
    finally:
        thaw()
        end()
        shutil.rmtree(folder, ignore_errors=True)


def _taken_away(
    service: Alone, seconds: float, faults: dict[str, tuple[Callable[[], None], Callable[[], None]]]
) -> Measured:
    share = seconds / (len(faults) + 1)
    with _load(service) as log:
        time.sleep(share)
    quiet_ms = log.took_ms(99)
    worst_ms, failed, told, healed = 0.0, len(log.failed), 0, []
    for take, give in faults.values():
        with _load(service) as log:
            take()
            time.sleep(share)
            told += service.features() not in ("", "up")
        worst_ms, failed = max(worst_ms, log.took_ms(99)), failed + len(log.failed)
        began = time.monotonic()
        give()
        wait_for(lambda: service.features() == "up", 30, "feature store")
        healed.append(time.monotonic() - began)
    return Measured(
        f"p99 {quiet_ms:.0f} ms quiet, {worst_ms:.0f} ms at worst while {' or '.join(faults)}; {failed} failed; "
        f"said in {told} of {len(faults)}; whole again after {max(healed):.1f} s at most",
        worst_ms <= TIMES_QUIET * quiet_ms and not failed and told == len(faults),
        {"quiet_ms": quiet_ms, "worst_ms": worst_ms, "healed_s": healed},
    )


@contextlib.contextmanager
def _load(service: Alone) -> Iterator[Log]:
    with Load(service, per_s=PER_S, feedback=False) as log:  # type: ignore[arg-type]
        yield log


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def disk(stack: Stack, seconds: float) -> Measured:
    """Full for half of the time, with the worker killed in between; then space again."""
    folder = Path(tempfile.mkdtemp(prefix="graft-chaos-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        return Measured("no right to mount a file system here", ok=False)
    settings = stack.settings.model_copy(update={"service_port": free_port(), "home": folder / "home"})
    try:
        shutil.copytree(stack.settings.home, settings.home, ignore=shutil.ignore_patterns("prefect", "logs"))
        with alone(stack, settings) as service:
            with _load(service) as quiet:
                time.sleep(seconds / 4)
            ballast = _fill(folder)
            with _load(service) as full:
                time.sleep(seconds / 2)
            with _load(service) as log:
                # What was free inside the registry's own files takes some of it.
                refused = next((status for status in (_feedback(service) for _ in range(2000)) if status != 200), 200)
                ingest = _ingest(stack, settings)
                if worker := service.worker():
                    worker.kill()
                    wait_for(service.ready, 60, "ready service")
            ballast.unlink()
            began = time.monotonic()
            wait_for(lambda: _feedback(service) == 200, 30, "feedback taken")
            healed_s = time.monotonic() - began
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        folder.rmdir()
    lines = ingest.stderr.strip().splitlines()
    one_line = ingest.returncode == 1 and "Traceback" not in ingest.stderr and 0 < len(lines) <= 2
    return Measured(
        f"full: {len(full.answers)} answers, {len(full.failed)} failed, p99 {full.took_ms(99):.0f} ms "
        f"({quiet.took_ms(99):.0f} quiet); {len(log.failed)} failed of {len(log.answers)} while the worker was killed; "
        f"feedback {refused}; ingest says {lines[-1][:80] if lines else 'nothing'!r}; feedback again {healed_s:.1f} s "
        "after there was space",
        not full.failed and refused == 503 and one_line and len(log.failed) <= 8,
        {"failed": log.failed, "ingest": ingest.stderr[-500:]},
    )


def _fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


def _feedback(service: Alone) -> int:
    users, items = service.people()
    event = {"item_id": items[0]}
    body = {"request_id": f"disk-{os.getpid()}-{time.time_ns()}", "user_id": users[0], "domain": "live"}
    try:
        return httpx.post(
            f"{service.url}/v1/feedback",
            json=body | {"events": [event]},
            headers=service.settings.service_headers,
            timeout=10,
        ).status_code
    except httpx.HTTPError:
        return 0


def _ingest(stack: Stack, settings: Settings) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "ingest", "live", "-i", str(stack.market["live"].interactions)],
        env=plan.environment(settings),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


ROWS = (
    Row("redis", f"Redis frozen and dead: p99 <= {TIMES_QUIET:.0f} x quiet, 0 failed, said, heals", 36, redis),
    Row("disk", "disk full: answers go on, writers refuse in one line, all heals with space", 20, disk),
)
