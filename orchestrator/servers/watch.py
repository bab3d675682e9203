"""One server under supervision: its process, when it is started again, and whether it still answers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass

import psutil

from orchestrator.servers.plan import Server
from orchestrator.servers.state import RunningServer

STOP_LIMIT_S = 15
"""A server that is asked to stop is killed after this long."""
FORGIVEN_AFTER_S = 60.0
"""A server that was healthy for so long has one death less to its name."""
LONGEST_WAIT_S = 60.0
"""Nothing stays down for good: a server that dies at every start is tried again once a minute."""
HUNG_AFTER = 15
"""So many looks in a row, some four seconds apart, that nothing answered: it is frozen, and started anew."""


@dataclass
class Watched:
    """A server, what is known of its process, and how often it died of late."""

    server: Server
    record: RunningServer
    process: subprocess.Popen[bytes] | None = None
    """None where another supervisor started it."""
    deaths: int = 0
    """Of late: each ``FORGIVEN_AFTER_S`` in health takes one away."""
    due: float | None = None
    """When it is started again (monotonic clock); None while it lives."""
    healthy_since: float | None = None
    silent: int = 0
    """Looks in a row at which it did not respond at all, though it once was healthy."""

    def ended(self) -> bool:
        """Whether its process is gone."""
        if self.process is not None:
            return self.process.poll() is not None
        return not self.record.alive

    def how(self) -> str:
        """How it ended."""
        return "ended" if self.process is None else f"ended with status {self.process.returncode}"

    def look(self, *, healthy: bool, responds: bool) -> None:
        """Take in what a look at its health found."""
        now = time.monotonic()
        self.silent = 0 if responds else self.silent + 1
        if not healthy:
            self.healthy_since = None
        elif self.healthy_since is None:
            self.healthy_since = now
        elif now - self.healthy_since > FORGIVEN_AFTER_S:
            self.deaths, self.healthy_since = max(0, self.deaths - 1), now
        self.record.healthy = healthy

    def wait_s(self) -> float:
        """How long to wait before the next start: 0, 1, 3, 7 s and so on."""
        return min(2.0 ** (self.deaths - 1) - 1, LONGEST_WAIT_S)


def end(pid: int) -> None:
    """SIGTERM to a server, then SIGKILL to it and to those of its children that are left."""
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
        leader.terminate()
        leader.resume()  # a stopped process would not hear it
    except psutil.NoSuchProcess:
        family = []
    _, left = psutil.wait_procs(family, timeout=STOP_LIMIT_S)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    kill_group(pid)
    psutil.wait_procs(left, timeout=5)


def kill_group(leader_pid: int) -> None:
    """Kill a server's whole process group, which lives on while one of its children does."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)
