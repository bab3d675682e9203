"""Homes and ports of their own, commands from another shell, and servers that do nothing."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from orchestrator.servers import plan, state
from orchestrator.servers.plan import Server
from orchestrator.settings import Settings


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds now."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def settings_in(home) -> Settings:
    """A home of its own on ports of its own."""
    prefect, service, ui = free_ports(3)
    return Settings(home=home, prefect_port=prefect, service_port=service, ui_port=ui)


def wait_until(done: Callable[[], object], limit_s: float) -> None:
    """Fail when it does not come true in time."""
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def graft(settings: Settings, *words: str, **options) -> subprocess.CompletedProcess:
    """A command from another shell."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env=plan.environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def idle(
    name: str, code: str = "import time; time.sleep(600)", *, healthy: Callable[[], bool] = lambda: True
) -> Server:
    """A server that does nothing."""
    return Server(name, (sys.executable, "-c", code), check=healthy)


def ready(settings: Settings) -> bool:
    """Whether all servers have come up."""
    running = state.read(settings)
    return running is not None and running.ready


def restarts(settings: Settings) -> dict[str, int]:
    """How often each server was started again, by name."""
    running = state.read(settings)
    return {server.name: server.restarts for server in running.servers} if running else {}


def pids(settings: Settings) -> dict[str, int]:
    """The process of each server."""
    return {server.name: server.pid for server in state.read(settings).servers}
